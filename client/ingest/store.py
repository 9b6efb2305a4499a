"""A site's de-identified store: a folder in, memory-mapped arrays and series records out.

    index.json                        the only file that a reader trusts; replaced last and atomically
    series/<key>-<generation>.image.npy   float32 (D, C, H, W) on the campaign's scale
    series/<key>-<generation>.mask.npy    uint8 (D, H, W), campaign codes, 0 background
    .lock                             held by the ingest that runs

In an encrypted site folder (shared/trust/vault.py) every file but the lock is `<name>.sealed` instead.

Array files never change: an ingest writes new names, and only its last step, the index, makes them part of the store.
Killed before that step, the store is the old one; files that no index names are swept by the next ingest.
Why plain .npy files and JSON: training re-reads a store many times without pydicom or torch, and numpy maps a .npy
file without copying. Cost: one file handle per series, and no compression.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from client.ingest.arrays import read_array, read_content, sealed_path, write_content
from client.ingest.arrays import write_array as write_array  # what ingest writes with
from shared.config import DataConfig
from shared.errors import DataError
from shared.files import sync
from shared.locks import exclusive

VERSION = 1
INDEX = "index.json"
ARRAYS = "series"
LOCK = ".lock"

Role = Literal["image", "degraded"]


@dataclass(frozen=True, slots=True)
class SeriesRecord:
    """One stored series; every name in it is a keyed pseudonym."""

    key: str
    patient: str
    study: str
    modality: str
    shape: tuple[int, int, int, int]
    """D, C, H, W."""
    spacing_mm: tuple[float, float, float]
    """Slice, row, column; 0 where the file did not tell."""
    has_mask: bool
    diagnosis: int
    """Campaign code, -1 unknown."""
    role: Role = "image"
    pair: str | None = None
    """On a clean series: key of its own degraded partner, on the same grid."""
    ends: tuple[float, float] = (0.0, 1.0)
    """Values in the modality's unit that became 0 and 1."""
    mean_intensity: float = 0.0
    num_instances: int = 1
    generation: int = 0
    content: str = ""
    """Keyed digest of the instances that the image was made of."""
    labels: str = ""
    """Keyed digest of the labels, the diagnosis and the pairing."""
    header: Mapping[str, str] = field(default_factory=dict)
    """What the de-identification profile leaves and a data sheet needs, by DICOM keyword."""


@dataclass(frozen=True, slots=True)
class Index:
    """The content of index.json: what the store agreed on, and what it holds."""

    rule: Mapping[str, Any]
    secret_check: str
    """Keyed constant: an ingest with another site secret would give every patient a second pseudonym."""
    generation: int = 0
    series: Mapping[str, SeriesRecord] = field(default_factory=dict)
    quarantine: Mapping[str, str] = field(default_factory=dict)
    """Keyed id of a file -> reason."""


@dataclass(frozen=True, slots=True)
class Store:
    """A store opened for reading; it keeps to the index that it was opened with."""

    folder: Path
    series: tuple[SeriesRecord, ...]
    rule: Mapping[str, Any]
    rule_digest: str
    """Of the campaign's part of the rule: equal to `rule_digest(campaign.data)` where the two agree."""
    quarantine: Mapping[str, str]

    @staticmethod
    def open(folder: Path) -> Store:
        """DataError where the folder holds no store, an empty one or a damaged one."""
        index = read_index(folder)
        if index is None:
            raise DataError("no store in the given folder; make one with `wardround-site ingest`")
        if not index.series:
            raise DataError("the store holds no series; ingest a folder with images of the campaign's modalities")
        records = tuple(index.series[key] for key in sorted(index.series))
        return Store(folder, records, index.rule, _digest(index.rule["campaign"]), index.quarantine)

    def record(self, key: str) -> SeriesRecord:
        place = bisect_left(self.series, key, key=lambda record: record.key)
        if place < len(self.series) and self.series[place].key == key:
            return self.series[place]
        raise DataError(f"the store holds no series {key[:16]!r}; open the store again")

    def image(self, key: str) -> npt.NDArray[np.float32]:
        """Read-only map, float32 (D, C, H, W), 0 low and 1 high end of the campaign's scale."""
        record = self.record(key)
        return cast(npt.NDArray[np.float32], _map(array_path(self.folder, record, "image"), "<f4", record.shape))

    def mask(self, key: str) -> npt.NDArray[np.uint8] | None:
        """Read-only map, uint8 (D, H, W) of campaign codes, or None for a series without labels."""
        record = self.record(key)
        if not record.has_mask:
            return None
        depth, _, height, width = record.shape
        shape = (depth, height, width)
        return cast(npt.NDArray[np.uint8], _map(array_path(self.folder, record, "mask"), "|u1", shape))


def campaign_rule(data: DataConfig) -> dict[str, Any]:
    """What all sites must have done alike to their images, as plain JSON values."""
    return {
        "ingest": cast(dict[str, Any], json.loads(json.dumps(asdict(data.ingest)))),
        "channels": data.channels,
        "masks": list(data.masks),
        "diagnoses": list(data.diagnoses),
    }


def rule_digest(data: DataConfig) -> str:
    """SHA-256 of the campaign's rule; a store made by another rule has another digest."""
    return _digest(campaign_rule(data))


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def array_path(folder: Path, record: SeriesRecord, kind: Literal["image", "mask"]) -> Path:
    return folder / ARRAYS / f"{record.key}-{record.generation}.{kind}.npy"


def _map(path: Path, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    try:
        array = read_array(path)
    except (OSError, ValueError, EOFError):
        raise DataError("an array file of the store is missing or damaged; ingest the source folder again") from None
    if array.dtype.str != dtype or array.shape != shape:
        raise DataError("an array file of the store is not the one its index names; ingest the source folder again")
    return array


# ------------------------------------------------------------------------------------------------------------- index


def read_index(folder: Path) -> Index | None:
    """The index, or None where there is none yet; DataError on anything that this version did not write."""
    try:
        text = str(read_content(folder / INDEX), "utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise DataError("the store's index cannot be read; check the folder's permissions") from None
    try:
        envelope = json.loads(text)
        version, digest, body = envelope["version"], envelope["sha256"], envelope["body"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError("the store's index is damaged; remove the store and ingest the source folder again") from None
    if version != VERSION:
        raise DataError(f"the store's version must be {VERSION}, got {str(version)[:20]}; ingest into a new folder")
    if digest != _digest(body):
        raise DataError("the store's index is damaged; remove the store and ingest the source folder again")
    try:
        series = {values["key"]: _record(values) for values in body["series"]}
        return Index(body["rule"], body["secret_check"], body["generation"], series, body["quarantine"])
    except (KeyError, TypeError, ValueError):
        raise DataError("the store's index is damaged; remove the store and ingest the source folder again") from None


def _record(values: Mapping[str, Any]) -> SeriesRecord:
    bytes.fromhex(values["key"])  # a part of a file name: hexadecimal digits and nothing else
    lists_to_tuples = {name: tuple(values[name]) for name in ("shape", "spacing_mm", "ends")}
    return SeriesRecord(**{**values, **lists_to_tuples})


def write_index(folder: Path, index: Index) -> None:
    """Make `index` the store's content: the one step that a reader can see."""
    body = {
        "rule": index.rule,
        "secret_check": index.secret_check,
        "generation": index.generation,
        "series": [asdict(index.series[key]) for key in sorted(index.series)],
        "quarantine": dict(sorted(index.quarantine.items())),
    }
    body = json.loads(json.dumps(body))
    envelope = {"version": VERSION, "sha256": _digest(body), "body": body}
    sync(folder / ARRAYS)
    write_content(folder / INDEX, json.dumps(envelope, indent=1).encode())
    sync(folder)


def index_file(folder: Path) -> Path | None:
    """The file that the index is in, plain or encrypted; None where there is no store yet."""
    forms = (sealed_path(folder / INDEX), folder / INDEX)
    return next((form for form in forms if form.exists()), None)


def sweep(folder: Path, index: Index) -> int:
    """Remove files of ingests that never finished, and of series that were replaced; returns how many."""
    named = {array_path(folder, record, "image").name for record in index.series.values()}
    named |= {array_path(folder, record, "mask").name for record in index.series.values() if record.has_mask}
    files = {path.name for path in (folder / ARRAYS).iterdir()}
    named |= {sealed_path(Path(name)).name for name in named}
    twice = {name for name in files if sealed_path(Path(name)).name in files}  # a kill while it was encrypted
    leftovers = [folder / ARRAYS / name for name in files if name not in named or name in twice]
    for path in leftovers:
        path.unlink()
    return len(leftovers)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the store's folders and hold its lock."""
    unwritable = "the store folder cannot be written; check its permissions and the disk"
    try:
        (folder / ARRAYS).mkdir(parents=True, exist_ok=True)
    except OSError:
        raise DataError(unwritable) from None
    busy = "another ingest is writing this store; wait until it ends, or use another store"
    with exclusive(folder / LOCK, busy=busy, unwritable=unwritable):
        yield
