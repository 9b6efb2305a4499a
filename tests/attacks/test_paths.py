"""Adversary: who can put names, links, special files or archives where a hospital reads. Nothing outside of the given
folder is opened, nothing waits for ever, nothing half-written is seen."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.enhance.find import find
from client.ingest import scan as scanning
from client.ingest import validate
from client.ingest.reasons import IngestReport, Quarantined, Reason
from client.ingest.run import ingest
from client.ingest.sources import SourceFile, open_file
from client.ingest.store import Store
from shared.errors import DataError
from shared.release import unpack
from tests.client.ingest.conftest import SECRET, data_config, new_image, save, write_series

OUTSIDE = "Thistlewood-outside"


def run(root: Path) -> IngestReport:
    return ingest(root / "source", root / "store", data_config(), secret=SECRET, mask_codes={}, diagnosis_codes={})


def index(root: Path) -> str:
    return (root / "store" / "index.json").read_text()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An honest series in `source`, and a secret image beside it that no ingest may read."""
    write_series(tmp_path / "source")
    save(new_image(9, patient=OUTSIDE), tmp_path / "outside" / "secret.dcm")
    return tmp_path


# ------------------------------------------------------------------------------------------------------ links and kinds


@pytest.mark.parametrize("kind", ["link to a file", "link to a folder", "link to itself", "link upwards", "dangling"])
def test_a_link_is_counted_and_never_followed(root: Path, kind: str) -> None:
    target = {
        "link to a file": root / "outside" / "secret.dcm",
        "link to a folder": root / "outside",
        "link to itself": root / "source" / "link",
        "link upwards": root,
        "dangling": root / "nowhere",
    }[kind]
    (root / "source" / "link").symlink_to(target)
    report = run(root)
    assert report.table() == (("stored", "image", 3), ("skipped", Reason.LINK, 1))
    assert Store.open(root / "store").series[0].num_instances == 3


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path has at most 108 bytes
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def _device(path: Path) -> None:
    try:
        os.mknod(path, 0o020600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root can make a device")


@pytest.mark.parametrize("make", [_pipe, _socket, _device])
def test_a_pipe_a_socket_or_a_device_is_counted_and_not_waited_for(root: Path, make: Callable[[Path], None]) -> None:
    make(root / "source" / "special.dcm")
    assert run(root).table() == (("stored", "image", 3), ("skipped", Reason.LINK, 1))


@pytest.mark.parametrize("make", [_pipe, _device])
def test_a_file_that_became_a_pipe_or_a_device_after_the_walk_is_not_read(
    root: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    path = root / "source" / "swapped.dcm"
    path.write_bytes(b"x")
    make(root / "special")

    def walk_and_swap(folder: Path, store: Path) -> tuple[SourceFile, ...]:
        files = _walk(folder, store)
        path.unlink()
        (root / "special").rename(path)
        return files

    from client.ingest import run as running

    _walk = running.walk
    monkeypatch.setattr(running, "walk", walk_and_swap)
    assert run(root).table() == (("stored", "image", 3), ("quarantined", Reason.UNREADABLE, 1))


def test_a_file_that_became_a_link_after_the_walk_is_not_followed(root: Path) -> None:
    path = root / "source" / "swapped.dcm"
    path.symlink_to(root / "outside" / "secret.dcm")
    with pytest.raises(Quarantined) as refusal:
        open_file(path)
    assert refusal.value.reason == Reason.UNREADABLE


def test_a_hard_link_is_the_same_instance_and_counted_once(root: Path) -> None:
    first = min((root / "source").rglob("*.dcm"))
    os.link(first, root / "source" / "again.dcm")
    assert run(root).table() == (("stored", "image", 3), ("skipped", Reason.DUPLICATE, 1))


# ---------------------------------------------------------------------------------------- files that do not hold still


def test_a_file_that_vanishes_while_it_is_read_costs_itself(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(new_image(9, patient="9"), root / "source" / "vanishing.dcm")
    whole = validate.read_whole

    def read_after(source: SourceFile) -> Any:
        (root / "source" / "vanishing.dcm").unlink(missing_ok=True)
        return whole(source)

    from client.ingest import prepare

    monkeypatch.setattr(prepare, "read_whole", read_after)
    assert run(root).table() == (("stored", "image", 3), ("quarantined", Reason.UNREADABLE, 1))


def test_a_file_that_grows_as_it_is_read_is_read_to_a_limit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "source" / "growing.dcm"
    path.write_bytes(b"\x08\0" + bytes(200))  # no preamble: it is named by its content
    limit = 3 << 20
    monkeypatch.setattr(scanning, "MAX_FILE_BYTES", limit)
    read: list[int] = []

    class Growing:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Growing:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def read(self, size: int) -> bytes:
            read.append(size)
            assert sum(read) <= limit, "it would never end"
            return bytes(size)

    monkeypatch.setattr(scanning, "open_file", lambda path: Growing(open_file(path)))
    assert run(root).table() == (("stored", "image", 3), ("quarantined", Reason.NO_PREAMBLE, 1))
    assert sum(read) == limit


def test_a_file_that_grew_over_the_limit_after_the_walk_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(new_image(9, patient="9"), root / "grown.dcm")
    monkeypatch.setattr(validate, "MAX_FILE_BYTES", 500)
    with pytest.raises(Quarantined) as refusal:
        validate.read_header(SourceFile(path, 499, regular=True))
    assert refusal.value.reason == Reason.TOO_LARGE


# --------------------------------------------------------------------------------------------------- names and archives


def test_names_with_control_characters_reach_no_output_and_no_index(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ["\x1b[31m\nQuill\r.dcm", "a\u202eb.dcm", os.fsdecode(b"\xff\xfe.dcm"), "%s{0}.dcm", "-rf", "x" * 255]
    for number, name in enumerate(names):
        (root / "source" / name).write_bytes(b"\x08\0" + bytes([number]) * 20)
    report = run(root)
    assert report.count("quarantined", Reason.NO_PREAMBLE) == len(names)
    said = "".join(capfd.readouterr()) + index(root) + repr(report.table())
    assert not any(name.strip(".dcm") in said for name in names if len(name) > 5)
    assert "Quill" not in said


def test_a_dicomdir_that_points_outside_is_skipped_and_not_followed(root: Path) -> None:
    ds = new_image(9, patient="9")
    ds.SOPClassUID = "1.2.840.10008.1.3.10"
    item = type(ds)()
    item.ReferencedFileID = ["..", "outside", "secret.dcm"]
    ds.DirectoryRecordSequence = [item]
    save(ds, root / "source" / "DICOMDIR")
    assert run(root).table() == (("stored", "image", 3), ("skipped", Reason.DIRECTORY, 1))


@pytest.mark.parametrize("suffix", ["zip", "dcm"])
def test_archives_are_not_opened_whatever_their_name(root: Path, suffix: str) -> None:
    """No zip bomb and no ../ in an archive can do anything: an ingest reads DICOM files and tables, not archives."""
    with zipfile.ZipFile(root / "source" / f"archive.{suffix}", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../escaped.dcm", (root / "outside" / "secret.dcm").read_bytes())
        archive.writestr("/escaped.dcm", b"x")
        archive.writestr("bomb", bytes(1 << 24))
    for name, flag in (("a.tar.gz", "gztar"), ("b.tar", "tar")):
        shutil.make_archive(str(root / name.split(".")[0]), flag, root / "outside")
        shutil.move(root / name, root / "source" / name)
    before = sorted(root.parent.rglob("*escaped*"))
    report = run(root)
    assert report.table() == (("stored", "image", 3), ("skipped", Reason.NOT_DICOM, 3))
    assert sorted(root.parent.rglob("*escaped*")) == before == []


def test_the_study_to_enhance_may_not_lead_out_of_its_folder_either(root: Path) -> None:
    (root / "source" / "link").symlink_to(root / "outside" / "secret.dcm")
    os.mkfifo(root / "source" / "pipe")
    found = find(root / "source", root / "out", data_config(), lambda *_: None)
    assert sum(stack.num_frames for stack in found.stacks) == 3
    assert found.refused == {Reason.LINK: 2}


# -------------------------------------------------------------------------------------------------------- release files


def _zip(path: Path, entries: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return path


@pytest.mark.parametrize(
    "name", ["../manifest.json", "/manifest.json", "manifest.json\0", "..\\manifest.json", "x" * 400]
)
def test_a_release_with_another_name_is_refused_and_nothing_is_unpacked(tmp_path: Path, name: str) -> None:
    path = _zip(tmp_path / "evil.release", {"manifest.json": b"{}"})
    content = path.read_bytes()
    encoded = name.encode()
    head = content[:26] + len(encoded).to_bytes(2, "little") + content[28:30] + encoded
    path.write_bytes(head + content[30 + len("manifest.json") :])
    with pytest.raises(DataError, match="where manifest.json belongs|not a release|damaged"):
        unpack(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_release_that_is_a_zip_bomb_is_refused_for_being_compressed(tmp_path: Path) -> None:
    path = _zip(tmp_path / "bomb.release", {"manifest.json": bytes(1 << 26)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="is compressed; entries are stored"):
        unpack(path)


def test_a_release_with_an_entry_twice_or_one_over_another_is_refused(tmp_path: Path) -> None:
    single = _zip(tmp_path / "one.release", {"manifest.json": b"{}"}).read_bytes()
    local = single[: single.index(b"PK\x01\x02")]
    (tmp_path / "two.release").write_bytes(local + single)
    with pytest.raises(DataError, match="two entries manifest.json"):
        unpack(tmp_path / "two.release")
    # The length of the first covers the head of the next: what a lenient reader would take for two files.
    over = local[:18] + (len(local) + 2).to_bytes(4, "little") * 2 + local[26:] + local
    (tmp_path / "over.release").write_bytes(over + single[len(local) :])
    with pytest.raises(DataError, match="damaged"):
        unpack(tmp_path / "over.release")


# ----------------------------------------------------------------------------------------- two at once, and a full disk


def test_two_ingests_at_once_leave_one_whole_store(root: Path) -> None:
    """The second is told to wait in words; the store holds what the first put in."""
    outcomes: list[str] = []
    together = threading.Barrier(4)

    def one() -> None:
        together.wait()
        try:
            outcomes.append(f"stored {run(root).count('stored') + run(root).count('already stored')}")
        except DataError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 4
    busy = "another ingest is writing this store; wait until it ends, or use another store"
    assert all(outcome == busy or outcome.startswith("stored") for outcome in outcomes)
    run(root)
    store = Store.open(root / "store")
    assert len(store.series) == 1
    assert store.image(store.series[0].key).shape == (3, 1, 8, 6)


_FULL = """
import json, resource, signal, sys
from pathlib import Path
from tests.attacks.test_paths import run
from shared.errors import WardroundError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    print(run(Path(sys.argv[1])).count("stored"))
except WardroundError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.mark.parametrize("room", [0, 100, 600])
def test_a_disk_that_is_full_leaves_the_old_store_and_says_so(root: Path, room: int) -> None:
    """The limit on a file's size stands for the disk: arrays or the index cannot be written to their end."""
    run(root)
    before = index(root)
    write_series(root / "source", slices=4, patient="2")
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(root), str(room)],
        capture_output=True, text=True, check=False, timeout=120, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        "DataError",
        "the store cannot be written; free disk space or check its permissions",
    ]
    assert index(root) == before
    old = Store.open(root / "store")
    assert len(old.series) == 1
    assert old.image(old.series[0].key).shape == (3, 1, 8, 6)
    assert run(root).count("stored", Reason.IMAGE) == 4, "with room again, the same ingest goes through"
    left = {path.name for path in (root / "store" / "series").iterdir()}
    assert not any(name.endswith(".part") for name in left)
    assert len(Store.open(root / "store").series) == 2
