"""One hostile file in; what the ingest and the enhancement made of it, or how they failed, out.

The file goes alone (a segmentation: beside its images) through the whole ingest, from the walk to the store, and again
through what `wardround-site enhance` reads and writes of it without a network. A file fails them by an exception that
is not a counted reason, by words of its own in anything that they say or store, or by a trace outside of the given
folders.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from client.enhance.decode import all_decoded, ends_of
from client.enhance.derived import Series, derived, new_uid, save
from client.enhance.find import find
from client.enhance.grid import layout_of
from client.enhance.reasons import NotEnhanced, as_refusal
from client.enhance.release import InUse
from client.ingest.reasons import Reason
from client.ingest.run import ingest
from client.ingest.series import Stack
from client.ingest.validate import reading, text
from shared.config import DataConfig, IngestConfig, IntensityConfig
from shared.errors import DataError
from simulation.fuzz import Finding, where
from simulation.fuzz.mutate import mutated
from simulation.fuzz.seeds import CANARY, CANARY_DATE, CANARY_ROOT, companions, dicom_seeds

SEGMENTATION = b"1.2.840.10008.5.1.4.1.1.66."
SECRET = bytes(range(32))
WORDS = tuple(word.encode() for word in (CANARY, CANARY_DATE, CANARY_ROOT))
MODALITIES = ("CT", "MR", "CR", "DX", "US", "OT", "NM", "RTDOSE", "XA", "PT")
OPEN = frozenset({"Manufacturer", "ManufacturerModelName", "BodyPartExamined", "ConvolutionKernel"})
"""Header texts that PS3.15 keeps: a word that a mutation carries into one of them is at its place."""
NOW = dt.datetime(2026, 11, 22, 10, 11, 12, tzinfo=dt.UTC)


def target() -> tuple[Callable[[np.random.Generator], tuple[str, bytes]], Callable[[bytes], str]]:
    """(a maker of inputs, the readers)."""
    seeds = dicom_seeds()
    return lambda rng: mutated(seeds, rng), read


def read(content: bytes) -> str:
    """Outcome and reason of the ingest and of the enhancement; Finding where either failed."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        for name in ("source", "tmp", "cwd"):
            (root / name).mkdir()
        (root / "source" / f"{CANARY}.dcm").write_bytes(content)
        if SEGMENTATION in content:
            for number, image in enumerate(_companions()):
                (root / "source" / f"{CANARY}-{number}.dcm").write_bytes(image)
        with _Watched(root) as watched:
            first = watched.call(lambda: _ingested(root, content))
            # One in six: it reads the file as often again.
            second = watched.call(lambda: _enhanced(root, content)) if zlib.crc32(content) % 6 == 0 else "not enhanced"
        _check_traces(root, content)
        return f"{first} | {second}"
    finally:
        shutil.rmtree(root, ignore_errors=True)


@cache
def _companions() -> tuple[bytes, ...]:
    return companions()


def config(content: bytes) -> DataConfig:
    """Two campaigns, by the length of the input: one resamples and windows, the other does neither."""
    resamples = len(content) % 3 == 0
    intensity = IntensityConfig(rule="window", low=-1000, high=1000)
    if not resamples:
        intensity = IntensityConfig(rule="range" if len(content) % 2 else "percentile", low=0, high=100)
    spacing = (1.0, 1.0, 1.0) if resamples else None
    rule = IngestConfig(modalities=MODALITIES, intensity=intensity, spacing_mm=spacing)
    return DataConfig(kind="store", ingest=rule, masks=("organ", "lesion"), diagnoses=("a", "b"), image_size=(16, 16))


# ------------------------------------------------------------------------------------------------------------ readers


def _ingested(root: Path, content: bytes) -> str:
    data = config(content)
    report = ingest(root / "source", root / "store", data, secret=SECRET, mask_codes={}, diagnosis_codes={})
    rows, files = report.table(), len(list((root / "source").iterdir()))
    if report.files != files or any(reason not in set(Reason) for _, reason, _ in rows):
        raise Finding("miscounted", f"{report.files} of {files} files")
    for path in (root / "store").rglob("*.image.npy"):
        values = np.load(path, allow_pickle=False)
        if not np.isfinite(values).all():
            raise Finding("not finite", "a stored image")
    return "; ".join(f"{outcome}: {reason}" for outcome, reason, _ in rows)


def _enhanced(root: Path, content: bytes) -> str:
    """Everything of client/enhance/series.py but the network: an untrained enhancer would change nothing."""
    data = config(content)
    found = find(root / "source", root / "out", data, lambda *_: None)
    reasons = [*found.refused]
    for stack in found.stacks:
        try:
            _written_back(root, stack, data)
            reasons.append("written back")
        except NotEnhanced as refusal:
            reasons.append(refusal.reason)
    return "; ".join(reasons)


def _written_back(root: Path, stack: Stack, data: DataConfig) -> None:
    layout_of(stack, data)
    _, kept = ends_of(stack, data)
    release = cast(InUse, SimpleNamespace(words="release tiny v1", name="tiny", version=1))
    path = root / "out.dcm"
    try:
        for one in all_decoded(stack, kept):
            one.values_FHWC()
            with as_refusal():
                with reading(Reason.MALFORMED):
                    number = 9000 + int(one.dataset.get("SeriesNumber") or 0) % 1000
                    series = Series(new_uid(), number, {text(one.dataset, "SOPInstanceUID"): new_uid()}, NOW)
                    ds = derived(one, one.stored_FHWC, series, release)
                save(ds, path)
    finally:
        path.unlink(missing_ok=True)  # as enhance_study removes the folder of a series that failed


# ------------------------------------------------------------------------------------------------------------ oracles


class _Watched:
    """Inside, stdout, stderr and all loggers go to one place, which must not hold a canary afterwards."""

    def __init__(self, root: Path) -> None:
        self.root, self.said = root, ""

    def __enter__(self) -> _Watched:
        self.before = (os.dup(1), os.dup(2), os.getcwd(), os.environ.get("TMPDIR"))
        log = os.open(self.root / "said", os.O_RDWR | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        os.chdir(self.root / "cwd")
        tempfile.tempdir = str(self.root / "tmp")
        self.handler = logging.FileHandler(self.root / "said")
        logging.getLogger().addHandler(self.handler)
        logging.getLogger().setLevel(logging.DEBUG)
        return self

    def call(self, reader: Callable[[], str]) -> str:
        try:
            return reader()
        except DataError as error:  # of a folder or a disk, in our words
            if any(word in str(error).encode() for word in WORDS):
                raise Finding("leak", "a DataError holds a canary") from None
            return f"DataError: {error}"
        except Finding:
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise Finding("exception", where(error)) from None

    def __exit__(self, *failure: Any) -> None:
        logging.getLogger().removeHandler(self.handler)
        self.handler.close()
        out, err, folder, temporary = self.before
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        os.chdir(folder)
        tempfile.tempdir = temporary
        if failure[0] is None:
            said = (self.root / "said").read_bytes()
            if any(word in said for word in WORDS):
                raise Finding("leak", "a canary on stdout, stderr or in a log")
            if said:
                raise Finding("noise", said[:200].decode("latin-1"))


def _check_traces(root: Path, content: bytes) -> None:
    """The source is as it was, nothing lies outside of the store, and the store holds no canary."""
    names = {path.name for path in root.iterdir()}
    left = [*(root / "tmp").iterdir(), *(root / "cwd").iterdir()]
    if left or names - {"source", "store", "said", "tmp", "cwd"}:
        raise Finding("trace", f"{len(left)} files left outside of the store")
    if (root / "source" / f"{CANARY}.dcm").read_bytes() != content:
        raise Finding("trace", "the source was changed")
    index = root / "store" / "index.json"
    if not index.exists():
        return
    body = json.loads(index.read_bytes())
    for record in (
        body["body"]["series"].values() if isinstance(body["body"]["series"], dict) else body["body"]["series"]
    ):
        for keyword in OPEN & record["header"].keys():
            del record["header"][keyword]
    said = json.dumps(body).encode() + " ".join(path.name for path in (root / "store").rglob("*")).encode()
    if any(word in said for word in WORDS):
        raise Finding("leak", "the store's index holds a canary")
