"""The adversary reads disks: a stolen machine, a backup, what a killed program left. The oracle is a search for known
pixels and known identifiers in every byte of every file below a site's folder."""

from __future__ import annotations

import datetime as dt
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from client import folder as folders
from client.cli import main
from client.encrypt import encrypt
from client.folder import SiteFolder
from client.forget import forget
from client.ingest import arrays
from client.ingest.forgotten import forgotten_file
from client.ingest.reasons import IngestReport, Reason
from client.ingest.run import ingest
from client.ingest.store import Store, read_index
from shared.audit import read as read_audit
from shared.checkpoint import FederationState, load_latest, save_round, seal_rounds
from shared.config import DataConfig, IngestConfig, IntensityConfig
from shared.errors import ConfigError, DataError, RefusedError
from shared.trust import certificates, keystore, vault
from shared.trust.sealed import CHUNK, TAG, opened, seal

TODAY = dt.date(2026, 11, 22)
KEY = bytes(range(32))
DATA = DataConfig(
    kind="store",
    ingest=IngestConfig(modalities=("CT",), intensity=IntensityConfig(rule="window", low=-1000, high=0)),
    masks=("organ",),
    diagnoses=(),
    image_size=(16, 16),
)
PATIENTS = ("MRN-7741902", "MRN-8850013")
HEADER = len(b"WRSEAL1\n") + 16


def write_patient(folder: Path, number: int) -> None:
    """Three CT slices, different in every voxel."""
    root = f"1.2.826.0.1.3680043.8.498.{number + 1}"
    for index in range(3):
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"{root}.1.{index + 1}"
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = f"{root}.1", f"{root}.7", f"{root}.8"
        ds.Modality, ds.ImageType, ds.InstanceNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], index + 1
        ds.PatientID, ds.PatientName = PATIENTS[number], "Quillfeather^Ottoline"
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 5 * index]
        ds.PixelSpacing, ds.SliceThickness, ds.Rows, ds.Columns = [2, 2], 5, 12, 10
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1000
        ds.PixelData = (np.arange(120, dtype=np.int16) + 130 * index + 400 * number).tobytes()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
            CTImageStorage,
            f"{root}.{index}",
        )
        ds.preamble = b"\0" * 128
        folder.mkdir(parents=True, exist_ok=True)
        ds.save_as(folder / f"{number}-{index}.dcm")


def ingested(site: SiteFolder, source: Path) -> IngestReport:
    secret = keystore.read_private(site.secret)
    return ingest(source, site.store, DATA, secret=secret, mask_codes={}, diagnosis_codes={})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in range(2):
        write_patient(tmp_path / "dicom", number)
    return tmp_path / "dicom"


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    now = dt.datetime.now(dt.UTC)
    (tmp_path / "ca.crt").write_bytes(certificates.create_authority("fed", now).certificate)
    folders.create(tmp_path / "north", "north", "127.0.0.1:8443", tmp_path / "ca.crt")
    arrays.forget_recent()
    return folders.read(tmp_path / "north")


def pixels(store: Path) -> dict[str, bytes]:
    """Pseudonym -> 48 bytes of that patient's stored image, 12 different values."""
    found = Store.open(store)
    return {one.patient: np.array(found.image(one.key)[0, 0, 1, :]).tobytes()[:40] for one in found.series}


def where(folder: Path, needle: bytes) -> list[str]:
    """Files that hold these bytes, or have them in their name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path.name for path in files if needle in path.read_bytes() or needle in str(path).encode()]


# ------------------------------------------------------------------------------------------- killed at every step


def killed_at_every_step(work: Callable[[Path], object], start: Path, scratch: Path) -> Iterator[Path]:
    """Copies of `start` as `work` left them when it was killed before its first, second ... change to the disk."""
    for step in range(1, 400):
        copy = scratch / f"killed-{step}" / start.name
        shutil.copytree(start, copy)
        process = multiprocessing.get_context("fork").Process(target=_killed, args=(work, copy, step))
        process.start()
        process.join()
        yield copy
        if process.exitcode == 0:
            assert step > 3, "nothing was killed"
            return
        assert process.exitcode == 137, process.exitcode
        shutil.rmtree(copy.parent)
    raise AssertionError("the work does not end")


def _killed(work: Callable[[Path], object], folder: Path, step: int) -> None:
    left = [step]

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            left[0] -= 1
            if not left[0]:
                os._exit(137)
            return real(*arguments, **options)

        return call

    for name in ("fsync", "replace", "unlink", "rename"):
        setattr(os, name, counted(getattr(os, name)))
    arrays.forget_recent()
    work(folder)
    os._exit(0)


def test_an_encryption_that_is_killed_leaves_a_store_that_reads_and_goes_on_to_the_end(
    site: SiteFolder, source: Path, tmp_path: Path
) -> None:
    ingested(site, source)
    before = pixels(site.store)
    work = lambda copy: encrypt(folders.read(copy), tmp_path / "store.key")  # noqa: E731
    for copy in killed_at_every_step(work, site.folder, tmp_path):
        left = folders.read(copy)
        assert pixels(left.store) == before
        for needle in before.values():
            assert all(name.endswith(".image.npy") for name in where(copy, needle))  # no new place for plain bytes
        work(copy)
        arrays.forget_recent()
        assert pixels(left.store) == before
        for needle in (*before.values(), *map(str.encode, before)):
            assert where(copy, needle) == []
        assert not list(left.store.rglob("*.part"))


def test_an_ingest_into_an_encrypted_store_leaves_no_plain_byte_wherever_it_is_killed(
    site: SiteFolder, source: Path, tmp_path: Path
) -> None:
    ingested(site, source)
    needles = pixels(site.store)
    shutil.rmtree(site.store)
    vault.create(site.folder, tmp_path / "store.key")
    for copy in killed_at_every_step(lambda copy: ingested(folders.read(copy), source), site.folder, tmp_path):
        for needle in (*needles.values(), *map(str.encode, (*needles, *PATIENTS)), b"Quillfeather"):
            assert where(copy, needle) == []
        ingested(folders.read(copy), source)
        arrays.forget_recent()
        assert pixels(copy / "store") == needles


def test_forgetting_that_is_killed_goes_on_until_nothing_of_the_patient_is_there(
    site: SiteFolder, source: Path, tmp_path: Path
) -> None:
    ingested(site, source)
    before = pixels(site.store)
    mine = _pseudonym(site, PATIENTS[0])
    shutil.copytree(source, site.inbox)
    drawn = site.store.with_name("store-synthetic") / "0123456789ab"
    drawn.mkdir(parents=True)
    (drawn / "images.npy").write_bytes(before[mine])
    work = lambda copy: forget(folders.read(copy), PATIENTS[0], None, TODAY, in_advance=False)  # noqa: E731
    for copy in killed_at_every_step(work, site.folder, tmp_path):
        work(copy)
        for needle in (before[mine], mine.encode(), PATIENTS[0].encode()):
            assert where(copy, needle) == []
        left = pixels(copy / "store")
        assert left == {name: value for name, value in before.items() if name != mine}
        assert where(copy / "inbox", PATIENTS[1].encode()) == ["1-0.dcm", "1-1.dcm", "1-2.dcm"]


def _pseudonym(site: SiteFolder, patient: str) -> str:
    from client.ingest.forgotten import pseudonym

    return pseudonym(keystore.read_private(site.secret), patient, "")


# ------------------------------------------------------------------------------------------- forgetting


def test_a_patient_who_was_forgotten_does_not_come_back_until_that_is_allowed(
    site: SiteFolder, source: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ingested(site, source)
    (tmp_path / "id").write_text(f"{PATIENTS[0]}\n")
    command = ["forget", str(site.folder), "--file", str(tmp_path / "id")]
    assert main([*command, "--yes"]) == 0
    said = capsys.readouterr()
    assert "Removed: 1 series (1 files)" in said.out
    assert PATIENTS[0] not in said.out + said.err
    entry = read_audit(site.folder / "audit.jsonl")[-1]
    assert (entry.event, entry.facts["series"]) == ("patient.forgotten", 1)
    assert where(site.folder, PATIENTS[0].encode()) == []
    assert where(site.folder, _pseudonym(site, PATIENTS[0]).encode()) == []

    again = ingested(site, source)
    assert again.count("skipped", Reason.FORGOTTEN) == 3
    assert _pseudonym(site, PATIENTS[0]) not in pixels(site.store)
    assert main([*command, "--allow-again"]) == 0
    ingested(site, source)
    assert _pseudonym(site, PATIENTS[0]) in pixels(site.store)


def test_an_id_that_nobody_has_changes_nothing(site: SiteFolder, source: Path) -> None:
    ingested(site, source)
    before = {path.name: path.read_bytes() for path in site.folder.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="nothing of this patient is here, and nothing was changed"):
        forget(site, "MRN-0", None, TODAY, in_advance=False)
    assert {path.name: path.read_bytes() for path in site.folder.rglob("*") if path.is_file()} == before


def test_the_patient_id_is_no_argument(site: SiteFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["forget", str(site.folder), PATIENTS[0]])
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_damaged_list_of_tombstones_stops_an_ingest(site: SiteFolder, source: Path) -> None:
    ingested(site, source)
    forget(site, PATIENTS[0], None, TODAY, in_advance=False)
    forgotten_file(site.store).write_text("{}")
    with pytest.raises(DataError, match="nobody can be told from those who were forgotten"):
        ingested(site, source)


# ------------------------------------------------------------------------------------------- the sealed file


def sealed(content: bytes, name: str = "store/a.npy") -> bytes:
    return b"".join(seal(KEY, name, memoryview(content)))


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_what_is_sealed_opens_to_the_same_bytes(size: int) -> None:
    content = os.urandom(size)
    assert opened(KEY, "store/a.npy", memoryview(sealed(content))) == content


def _chunks(data: bytes) -> list[bytes]:
    body = data[HEADER:]
    return [body[start : start + CHUNK + TAG] for start in range(0, len(body), CHUNK + TAG)]


CONTENT = os.urandom(2 * CHUNK + 100)
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a bit": lambda data: data[:HEADER] + bytes([data[HEADER] ^ 1]) + data[HEADER + 1 :],
    "the salt": lambda data: data[:10] + bytes([data[10] ^ 1]) + data[11:],
    "cut to nothing": lambda data: data[:HEADER],
    "cut within a chunk": lambda data: data[:-1],
    "cut at a chunk": lambda data: data[: HEADER + CHUNK + TAG],
    "first chunk gone": lambda data: data[:HEADER] + b"".join(_chunks(data)[1:]),
    "chunks swapped": lambda data: data[:HEADER] + b"".join(_chunks(data)[place] for place in (1, 0, 2)),
    "a chunk twice": lambda data: data[:HEADER] + b"".join(_chunks(data)[place] for place in (0, 0, 1, 2)),
    "a chunk of another file": lambda data: (
        data[:HEADER] + b"".join((*_chunks(sealed(CONTENT))[:1], *_chunks(data)[1:]))
    ),
    "no such file": lambda data: b"PLAIN" + data,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_sealed_file_that_was_changed_is_refused(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(DataError, match="cut, changed or swapped, or belongs to another key"):
        opened(KEY, "store/a.npy", memoryview(damage(sealed(CONTENT))))


def test_another_key_and_another_name_are_refused() -> None:
    for key, name in ((bytes(32), "store/a.npy"), (KEY, "store/b.npy")):
        with pytest.raises(DataError, match="cut, changed or swapped, or belongs to another key"):
            opened(key, name, memoryview(sealed(b"x")))


def test_two_arrays_of_a_store_that_were_swapped_are_refused(site: SiteFolder, source: Path, tmp_path: Path) -> None:
    vault.create(site.folder, tmp_path / "store.key")
    ingested(site, source)
    one, two = sorted((site.store / "series").glob("*.image.npy.sealed"))
    contents = one.read_bytes(), two.read_bytes()
    one.write_bytes(contents[1])
    two.write_bytes(contents[0])
    with pytest.raises(DataError, match="cut, changed or swapped, or belongs to another key"):
        pixels(site.store)


# ------------------------------------------------------------------------------------------- keys


@pytest.fixture
def fast_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault, "SCRYPT", {"n": 2**10, "r": 8, "p": 1})


def fresh(monkeypatch: pytest.MonkeyPatch, passphrase: str | None) -> None:
    """As a new program that has this passphrase."""
    vault._unlocked.cache_clear()
    arrays.forget_recent()
    if passphrase is None:
        monkeypatch.delenv(vault.PASSPHRASE, raising=False)
    else:
        monkeypatch.setenv(vault.PASSPHRASE, passphrase)


@pytest.mark.usefixtures("fast_scrypt")
def test_a_passphrase_opens_a_store_and_another_does_not(
    site: SiteFolder, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingested(site, source)
    before = pixels(site.store)
    fresh(monkeypatch, "correct horse battery")
    encrypt(site, None)
    fresh(monkeypatch, "correct horse battery")
    assert pixels(site.store) == before
    fresh(monkeypatch, "correct horse bakery")
    with pytest.raises(RefusedError, match="wrong passphrase"):
        pixels(site.store)
    fresh(monkeypatch, None)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    with pytest.raises(ConfigError, match="nobody is there to ask; set WARDROUND_PASSPHRASE"):
        pixels(site.store)


@pytest.mark.usefixtures("fast_scrypt")
def test_a_short_passphrase_is_refused_before_anything_is_written(
    site: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh(monkeypatch, "short")
    with pytest.raises(ConfigError, match="must have 12 characters or more"):
        encrypt(site, None)
    assert not (site.folder / vault.FILE).exists()


@pytest.mark.usefixtures("fast_scrypt")
def test_scrypt_parameters_that_would_fill_the_memory_are_refused(
    site: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh(monkeypatch, "correct horse battery")
    encrypt(site, None)
    values = json.loads((site.folder / vault.FILE).read_text())
    values["key"]["n"] = 2**30
    (site.folder / vault.FILE).write_text(json.dumps(values))
    fresh(monkeypatch, "correct horse battery")
    with pytest.raises(DataError, match="scrypt takes n up to 1048576"):
        vault.vault_of(site.store)


def test_a_key_file_of_another_folder_that_lies_open_or_is_away_is_refused(
    site: SiteFolder, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.create(site.folder, tmp_path / "store.key")
    ingested(site, source)
    keystore.create_secret(tmp_path / "other.key")
    for path, error, reason in (
        (tmp_path / "other.key", RefusedError, "wrong key file"),
        (tmp_path / "away.key", ConfigError, "is not there; mount it"),
    ):
        monkeypatch.setenv(vault.KEY_FILE, str(path))
        fresh(monkeypatch, None)
        with pytest.raises(error, match=reason):
            pixels(site.store)
    monkeypatch.delenv(vault.KEY_FILE)
    (tmp_path / "store.key").chmod(0o644)
    fresh(monkeypatch, None)
    with pytest.raises(RefusedError, match="must have mode 0600"):
        pixels(site.store)


def test_without_sealed_json_an_encrypted_store_is_not_taken_for_an_empty_one(
    site: SiteFolder, source: Path, tmp_path: Path
) -> None:
    vault.create(site.folder, tmp_path / "store.key")
    ingested(site, source)
    (site.folder / vault.FILE).unlink()
    with pytest.raises(DataError, match="encrypted and sealed.json is missing"):
        read_index(site.store)


# ------------------------------------------------------------------------------------------- checkpoints


def test_checkpoints_are_encrypted_and_read_back_bit_for_bit(tmp_path: Path) -> None:
    home = tmp_path / "coordinator" / "runs" / "tiny" / "checkpoints"
    weights = {"a": np.arange(9, dtype=np.float32).reshape(3, 3), "b": np.linspace(0, 1, 7, dtype=np.float32)}
    state = FederationState("tiny", "d" * 64, "e" * 64, 1, weights, {"m": weights})
    save_round(home, state, {"round": 1})
    needle = weights["b"].tobytes()
    assert len(where(home, needle)) == 2
    vault.create(tmp_path / "coordinator", tmp_path / "ca.key")
    assert seal_rounds(home) == 2
    save_round(home, FederationState("tiny", "d" * 64, "e" * 64, 2, weights, {"m": weights}), {"round": 2})
    assert where(home, needle) == []
    loaded = load_latest(home, "d" * 64)
    assert loaded is not None
    assert loaded.state.round == 2
    assert all(loaded.state.weights[name].tobytes() == values.tobytes() for name, values in weights.items())
    one, two = home / "round_00001", home / "round_00002"
    shutil.copy(one / "weights.safetensors.sealed", two / "weights.safetensors.sealed")
    with pytest.raises(DataError, match="cut, changed or swapped"):
        load_latest(home, "d" * 64)
