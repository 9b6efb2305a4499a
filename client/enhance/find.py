"""A file or a folder in; stacks of slices that a release can enhance, and how many series it cannot, by reason, out.

Slices are put together as the ingest does it (client/ingest/series.py), under pseudonyms of a key that is drawn here
and forgotten: what is enhanced keeps its identity, because it is the hospital's own copy; none is needed to find it.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID

from client.enhance.reasons import NotEnhanced, Why, as_refusal
from client.ingest.reasons import Reason
from client.ingest.series import Instance, Stack, instance_of, stacks_of
from client.ingest.sources import SourceFile, walk
from client.ingest.validate import check_limits, num_frames, read_header, reading, silent, sop_instance, text
from shared.config import DataConfig
from shared.errors import ConfigError, DataError

Progress = Callable[[str, int, int], None]
"""(stage, done, total)"""

MANUFACTURER = "Wardround"
"""What marks an image as enhanced by this program, in its contributing equipment."""
# Images whose pixels are measurements on a grid (PS3.4 B.5): what they mean survives an enhancement.
_STORAGE = "1.2.840.10008.5.1.4.1.1."
SOP_CLASSES = {
    _STORAGE + end
    for end in (
        *("1", "1.1", "1.1.1", "1.2", "1.2.1"),  # CR, DX, mammography; for presentation and for processing
        *("2", "2.1", "2.2", "4", "4.1", "4.4"),  # CT, MR: classic, enhanced, legacy converted enhanced
        *("128", "20", "12.1", "6.1", "3.1", "77.1.4"),  # PET, NM, XA, ultrasound, photographs
    )
}


@dataclass(frozen=True, slots=True)
class Found:
    stacks: tuple[Stack, ...]
    refused: Counter[str]
    """Reason -> series (files, for what is in no series)."""


def find(source: Path, out: Path, data: DataConfig, on_progress: Progress) -> Found:
    """Read every header; raises ConfigError for a source that is not there, DataError for one without a file."""
    files = _files(source, out)
    secret = secrets.token_bytes(32)
    instances: list[Instance] = []
    refused: dict[tuple[str, str], None] = {}
    seen: set[str] = set()
    for done, file in enumerate(files, 1):
        series = str(file.path)
        try:
            with as_refusal():
                dataset = read_header(file)
                series = text(dataset, "SeriesInstanceUID") or series
                with reading(Reason.MALFORMED):
                    check(dataset, data)
                instance = instance_of(dataset, file, sop_instance(dataset), secret)
            if instance.identity in seen:
                series = str(file.path)  # files, not series: the series is enhanced
                raise NotEnhanced(Why.COPY)
            instances.append(instance)
            seen.add(instance.identity)
        except NotEnhanced as refusal:
            refused[refusal.reason, series] = None
        on_progress("read headers", done, len(files))
    return Found(stacks_of(instances, secret), Counter(reason for reason, _ in refused))


def _files(source: Path, out: Path) -> tuple[SourceFile, ...]:
    if source.is_file():
        return (SourceFile(source, source.stat().st_size, not source.is_symlink()),)
    if not source.is_dir():
        raise ConfigError("the study to enhance does not exist; give a DICOM file or the folder that holds the study")
    root, target = source.resolve(), out.resolve()
    if target == root or root in target.parents or target in root.parents:
        raise ConfigError("the out folder and the study must lie apart; choose an out folder outside the study's")
    try:
        return walk(source, out)
    except DataError:
        raise DataError(
            "the study's folder holds no file that can be read; give the folder with the DICOM files"
        ) from None


def check(dataset: Dataset, data: DataConfig) -> None:
    """(1) an image of the release's modality (2) of a class that is supported (3) within limits (4) whose values can be
    written back (5) not enhanced already; NotEnhanced, Quarantined or Skipped otherwise."""
    # (1)
    if dataset.get("Rows") is None or dataset.get("Columns") is None:
        raise NotEnhanced(Reason.NO_IMAGE)
    modality = text(dataset, "Modality").upper()
    if modality not in data.ingest.modalities:
        raise NotEnhanced(Why.MODALITY if modality else Reason.NO_MODALITY)
    # (2)
    # Its own, not that of the file meta information: what refers to the source is made of it.
    if text(dataset, "SOPClassUID") not in SOP_CLASSES:
        raise NotEnhanced(Why.SOP_CLASS)
    if not all(text(dataset, f"{level}InstanceUID") for level in ("SOP", "Series", "Study")):
        raise NotEnhanced(Why.NO_IDENTITY)
    with silent():
        if not UID(text(dataset, "SOPInstanceUID")).is_valid:  # derived images have to refer to it
            raise NotEnhanced(Why.BAD_IDENTITY)
    if "LOCALIZER" in [str(word).upper() for word in dataset.get("ImageType") or ()]:
        raise NotEnhanced(Reason.LOCALISER)
    # (3)
    check_limits(dataset)
    # (4)
    _check_values(dataset, data)
    # (5)
    makers = [text(item, "Manufacturer") for item in dataset.get("ContributingEquipmentSequence") or ()]
    if MANUFACTURER in makers:
        raise NotEnhanced(Why.ENHANCED)


def _check_values(dataset: Dataset, data: DataConfig) -> None:
    photometric = text(dataset, "PhotometricInterpretation")
    if int(dataset.get("SamplesPerPixel") or 1) > 1:
        if num_frames(dataset) > 1 and is_lossy(dataset):
            raise NotEnhanced(Why.LOSSY_COLOUR)
        if data.channels == 1:
            raise NotEnhanced(Why.COLOUR)
    elif photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise NotEnhanced(Reason.UNSUPPORTED_COLOUR)
    if dataset.get("ModalityLUTSequence"):
        raise NotEnhanced(Why.LOOKUP)
    if dataset.get("BitsAllocated") not in (8, 16):
        raise NotEnhanced(Why.BITS)


LOSSY_SYNTAXES = {
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
    "1.2.840.10008.1.2.4.91": "ISO_15444_1",
    "1.2.840.10008.1.2.4.203": "ISO_15444_15",
}
"""Transfer syntax -> Lossy Image Compression Method (PS3.3 C.7.6.1.1.5.1)."""


def is_lossy(dataset: Dataset) -> bool:
    """Whether the pixels went through a lossy compression once, or are in one."""
    meta = getattr(dataset, "file_meta", None) or Dataset()
    return text(dataset, "LossyImageCompression") == "01" or UID(text(meta, "TransferSyntaxUID")) in LOSSY_SYNTAXES
