"""The store is old or new, at every moment, whatever kills the ingest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.ingest import store as stores
from client.ingest.run import ingest
from client.ingest.store import Index, SeriesRecord, Store
from shared.config import DataConfig
from shared.errors import DataError

RECORD = SeriesRecord("0a" * 16, "p", "s", "CT", (2, 1, 3, 4), (5.0, 1.0, 1.0), True, 1, generation=1)


def new_store(folder: Path, data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    image = np.arange(24, dtype=np.float32).reshape(RECORD.shape) / 24
    mask = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 3
    with stores.locked(folder):
        stores.write_array(stores.array_path(folder, RECORD, "image"), image)
        stores.write_array(stores.array_path(folder, RECORD, "mask"), mask)
        rule = {"campaign": stores.campaign_rule(data), "labels": {}}
        stores.write_index(folder, Index(rule, "check", 1, {RECORD.key: RECORD}, {"id": "reason"}))
    return image, mask


def test_what_is_written_is_read_back_and_cannot_be_changed(tmp_path: Path, data: DataConfig) -> None:
    image, mask = new_store(tmp_path, data)
    store = Store.open(tmp_path)
    assert store.series == (RECORD,)
    assert store.rule_digest == stores.rule_digest(data)
    assert store.quarantine == {"id": "reason"}
    np.testing.assert_array_equal(store.image(RECORD.key), image)
    np.testing.assert_array_equal(store.mask(RECORD.key), mask)
    assert isinstance(store.image(RECORD.key), np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.image(RECORD.key)[0] = 1
    with pytest.raises(DataError, match="no series"):
        store.image("ff")


def test_the_digest_follows_the_rule_and_not_the_place(data: DataConfig) -> None:
    assert stores.rule_digest(replace(data, root="elsewhere")) == stores.rule_digest(data)
    assert stores.rule_digest(replace(data, channels=3)) != stores.rule_digest(data)
    assert stores.rule_digest(replace(data, masks=("lesion", "organ"))) != stores.rule_digest(data)


def _missing(folder: Path) -> None:
    (folder / "index.json").unlink()


def _flipped(folder: Path) -> None:
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text.replace('"diagnosis": 1', '"diagnosis": 0'))


def _cut(folder: Path) -> None:
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text[:-20])


def _not_text(folder: Path) -> None:
    (folder / "index.json").write_bytes(b"\xff\xfe\x00")


def _other_version(folder: Path) -> None:
    envelope = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**envelope, "version": 99}))


def _rewritten(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """A consistent index that this version would never write."""

    def rewrite(folder: Path) -> None:
        envelope = json.loads((folder / "index.json").read_text())
        change(envelope["body"])
        envelope["sha256"] = stores._digest(envelope["body"])
        (folder / "index.json").write_text(json.dumps(envelope))

    return rewrite


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_missing, "no store in the given folder"),
        (_flipped, "damaged"),
        (_cut, "damaged"),
        (_not_text, "cannot be read"),
        (_other_version, "version must be 1, got 99"),
        (_rewritten(lambda body: body["series"][0].update(key="../../../outside")), "damaged"),
        (_rewritten(lambda body: body["series"][0].update(surprise=1)), "damaged"),
        (_rewritten(lambda body: body["series"].clear()), "holds no series"),
    ],
)
def test_an_index_that_cannot_be_trusted_is_refused(
    tmp_path: Path, data: DataConfig, damage: Callable[[Path], None], reason: str
) -> None:
    new_store(tmp_path, data)
    damage(tmp_path)
    with pytest.raises(DataError, match=reason):
        Store.open(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY", b"not an array at all"])
def test_an_array_that_is_gone_or_damaged_is_refused(tmp_path: Path, data: DataConfig, content: bytes | None) -> None:
    new_store(tmp_path, data)
    path = stores.array_path(tmp_path, RECORD, "image")
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match="missing or damaged") as refusal:
        Store.open(tmp_path).image(RECORD.key)
    assert str(tmp_path) not in str(refusal.value)


def test_an_array_of_another_shape_or_kind_is_refused(tmp_path: Path, data: DataConfig) -> None:
    new_store(tmp_path, data)
    for array in (np.zeros((2, 1, 3, 5), np.float32), np.zeros((2, 1, 3, 4), np.float64)):
        stores.write_array(stores.array_path(tmp_path, RECORD, "image"), array)
        with pytest.raises(DataError, match="not the one its index names"):
            Store.open(tmp_path).image(RECORD.key)


def test_only_one_ingest_writes_at_a_time(tmp_path: Path, data: DataConfig) -> None:
    with stores.locked(tmp_path), pytest.raises(DataError, match="another ingest"), stores.locked(tmp_path):
        pass
    with stores.locked(tmp_path):
        pass


def test_a_store_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"), stores.locked(tmp_path / "file"):
        pass


def test_reading_a_store_imports_neither_pydicom_nor_torch() -> None:
    code = "import client.ingest.store, sys; print([m for m in ('pydicom', 'torch', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------------------ killed


class _Killed(BaseException):
    """Stands for the end of the process: nothing in the project catches it."""


WRITES = ("write_array", "write_index", "sync", "os.fsync", "Path.replace")


@pytest.mark.parametrize("write", WRITES)
def test_stopped_at_any_write_the_store_is_the_old_one(
    hospital: Any, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    codes: dict[str, Any] = {"mask_codes": {}, "diagnosis_codes": {}}
    source, store = tmp_path / "source", tmp_path / "store"
    hospital.write_series(source, 2)
    ingest(source, store, data, secret=hospital.secret, **codes)
    old = _content(store)
    hospital.write_series(source, 2, patient="2")
    hospital.write_series(source, 2, patient="3")
    stop_at, finished = 0, False
    while not finished:
        with monkeypatch.context() as patch:
            _stop(patch, write, stop_at)
            try:
                ingest(source, store, data, secret=hospital.secret, **codes)
                finished = True
            except _Killed:
                # Only the folder's last sync comes after the index has its name.
                assert _content(store) == old or (len(_content(store)) == 3 and write in ("sync", "os.fsync"))
        stop_at += 1
        assert stop_at < 40
    assert stop_at > 1, "the write was never reached"
    assert len(_content(store)) == 3
    named = {stores.array_path(store, record, "image").name for record in Store.open(store).series}
    ingest(source, store, data, secret=hospital.secret, **codes)
    assert {path.name for path in (store / "series").iterdir()} == named, "leftovers are swept"


def _stop(patch: pytest.MonkeyPatch, write: str, at: int) -> None:
    """The `at`-th call of the named function kills, counted from 0."""
    owner: Any = {"os.fsync": os, "Path.replace": Path}.get(write, stores)
    name = write.split(".")[-1]
    original, calls = getattr(owner, name), iter(range(1000))

    def dies(*arguments: Any) -> Any:
        if next(calls) == at:
            raise _Killed
        return original(*arguments)

    patch.setattr(owner, name, dies)


def _content(folder: Path) -> dict[str, float]:
    """Key -> sum of every readable voxel."""
    store = Store.open(folder)
    return {record.key: float(store.image(record.key).sum()) for record in store.series}


def test_killed_for_real_the_store_is_old_or_new(hospital: Any, data: DataConfig, tmp_path: Path) -> None:
    source, store = tmp_path / "source", tmp_path / "store"
    hospital.write_series(source, 2)
    ingest(source, store, data, secret=hospital.secret, mask_codes={}, diagnosis_codes={})
    old = _content(store)
    for patient in range(2, 40):
        hospital.write_series(source, 2, patient=str(patient))
    script = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from client.ingest import store as stores
        from client.ingest.run import ingest
        from shared.config import DataConfig, IngestConfig, IntensityConfig
        rule = IngestConfig(modalities=("CT",), intensity=IntensityConfig(rule="window", low=-1000, high=0))
        data = DataConfig(kind="store", ingest=rule, masks=("organ", "lesion"), diagnoses=("none", "tumour"),
                          image_size=(16, 16))
        write = stores.write_array
        def slow(path, array):
            write(path, array)
            time.sleep(0.02)
        stores.write_array = slow
        print("ready", flush=True)
        ingest(Path({str(source)!r}), Path({str(store)!r}), data, secret=bytes(range(32)), mask_codes={{}},
               diagnosis_codes={{}})
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list((store / "series").iterdir())) < 10 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(list((store / "series").iterdir())) >= 10, "it was killed in the middle of its writes"
    assert _content(store) == old
    report = ingest(source, store, data, secret=hospital.secret, mask_codes={}, diagnosis_codes={})
    assert (report.series_new, report.series_kept) == (38, 1)
    assert len(list((store / "series").iterdir())) == 39


def test_a_full_disk_is_one_line_and_leaves_the_old_store(
    hospital: Any, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, store = tmp_path / "source", tmp_path / "store"
    hospital.write_series(source, 2)

    def full(path: Path, array: np.ndarray) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(stores, "write_array", full)
    with pytest.raises(DataError, match="free disk space") as refusal:
        ingest(source, store, data, secret=hospital.secret, mask_codes={}, diagnosis_codes={})
    assert str(tmp_path) not in str(refusal.value)
    monkeypatch.undo()
    monkeypatch.setattr(stores, "write_index", full)
    with pytest.raises(DataError, match="free disk space"):
        ingest(source, store, data, secret=hospital.secret, mask_codes={}, diagnosis_codes={})
    assert not (store / "index.json").exists()


def test_the_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    script = f"""
import os, time
from pathlib import Path
from client.ingest import store
with store.locked(Path({str(tmp_path)!r})):
    print("locked", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"locked\n"
    with pytest.raises(DataError, match="another ingest"), stores.locked(tmp_path):
        pass
    process.kill()
    process.communicate()
    with stores.locked(tmp_path):
        pass
