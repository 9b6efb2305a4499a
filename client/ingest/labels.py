"""DICOM SEG and a table of diagnoses in; masks in campaign codes on the image's grid, and diagnosis codes, out.

Labels are matched to images by the identifiers of the files, keyed the moment they are read. A site's own segment
numbers and words become the campaign's codes here, by the two maps that the store records.
Where segments overlap, the higher campaign code wins (a lesion inside an organ).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from client.ingest.geometry import FramePlanes, Grid, frame_planes, nearest
from client.ingest.keys import keyed_id
from client.ingest.pixels import decode_segments
from client.ingest.reasons import Quarantined, Reason
from client.ingest.series import Stack, keyed, lookup_key
from client.ingest.sources import SourceFile, open_file
from client.ingest.validate import read_whole, reading, text
from shared.config import DataConfig
from shared.errors import ConfigError

MAX_TABLE_BYTES = 64 << 20
MAX_LABEL_SLICES, MAX_LABEL_VALUES = 1 << 14, 1 << 30
"""Of a segmentation whose frames are put where they belong, with the gaps between them; 1 GB."""

Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class LabelCodes:
    """A site's codes -> the campaign's; recorded in the store."""

    masks: Mapping[int, int]
    """Segment number at the site -> campaign code (1 ...)."""
    diagnoses: Mapping[str, int]
    """Word at the site, folded -> campaign code (0 ...)."""


@dataclass(frozen=True, slots=True)
class Segmentation:
    """One SEG file, by its header."""

    source: SourceFile
    identity: str
    series: frozenset[str]
    """Keyed UIDs of the series and instances it was drawn on."""
    instances: frozenset[str]


@dataclass(frozen=True, slots=True)
class Diagnoses:
    """Keyed patient ID -> campaign code, and how many rows could not be used."""

    codes: Mapping[str, int]
    unknown: int


def label_codes(data: DataConfig, mask_codes: Mapping[str, int], diagnosis_codes: Mapping[str, str]) -> LabelCodes:
    """Check a site's maps against the campaign; ConfigError names the first thing that does not fit."""
    for name in mask_codes:
        if name not in data.masks:
            raise ConfigError(f"mask_codes names {name!r}, which the campaign has not; known: {', '.join(data.masks)}")
    numbers = [int(number) for number in mask_codes.values()]
    if len(set(numbers)) < len(numbers) or any(number < 1 for number in numbers):
        raise ConfigError(f"mask_codes must give each mask its own segment number from 1 on, got {sorted(numbers)}")
    for name in diagnosis_codes.values():
        if name not in data.diagnoses:
            known = ", ".join(data.diagnoses)
            raise ConfigError(f"diagnosis_codes leads to {name!r}, which the campaign has not; known: {known}")
    own_masks = mask_codes or {name: code for code, name in enumerate(data.masks, 1)}
    own_words = diagnosis_codes or {name: name for name in data.diagnoses}
    return LabelCodes(
        {int(number): data.masks.index(name) + 1 for name, number in own_masks.items()},
        {_folded(word): data.diagnoses.index(name) for word, name in own_words.items()},
    )


def _folded(word: str) -> str:
    return " ".join(word.casefold().split())


# --------------------------------------------------------------------------------------------------------- diagnoses


def read_table(source: SourceFile, codes: LabelCodes, secret: bytes) -> Diagnoses | None:
    """A CSV with columns PatientID and diagnosis; None for any other file. Quarantined where it cannot be read.

    A patient with two different diagnoses gets none: which one is right is not ours to guess.
    """
    if source.num_bytes > MAX_TABLE_BYTES:
        raise Quarantined(Reason.TOO_LARGE)
    with open_file(source.path) as file, reading(Reason.BAD_TABLE):
        content = file.read(MAX_TABLE_BYTES)
        try:
            decoded = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            decoded = content.decode("latin-1")
        return _parse(decoded, codes, secret)


def _parse(decoded: str, codes: LabelCodes, secret: bytes) -> Diagnoses | None:
    header = decoded.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    try:
        rows = csv.reader(io.StringIO(decoded, newline=""), delimiter=delimiter, strict=True)
        names = [name.strip().casefold() for name in next(rows, [])]
        if not {"patientid", "diagnosis"} <= set(names):
            return None
        patient, diagnosis = names.index("patientid"), names.index("diagnosis")
        found: dict[str, int] = {}
        refused: set[str] = set()
        unknown = 0
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            key = lookup_key(row[patient].strip(), secret)
            code = codes.diagnoses.get(_folded(row[diagnosis]))
            if code is None or found.get(key, code) != code:
                unknown += 1
                if code is not None:
                    refused.add(key)
            else:
                found[key] = code
    except csv.Error:
        raise Quarantined(Reason.BAD_TABLE) from None
    return Diagnoses({key: code for key, code in found.items() if key not in refused}, unknown)


# ------------------------------------------------------------------------------------------------------ segmentations


def segmentation_of(dataset: Dataset, source: SourceFile, identity: str, secret: bytes) -> Segmentation:
    """What a SEG was drawn on: its referenced series (PS3.3 C.12.1.1.2) and instances."""
    with reading(Reason.MALFORMED):
        series, instances = set(), set()
        for item in dataset.get("ReferencedSeriesSequence") or []:
            series.add(keyed(item, "SeriesInstanceUID", secret))
            for reference in item.get("ReferencedInstanceSequence") or []:
                instances.add(keyed(reference, "ReferencedSOPInstanceUID", secret))
        for reference in _source_images(dataset):
            instances.add(keyed(reference, "ReferencedSOPInstanceUID", secret))
        return Segmentation(source, identity, frozenset(series - {""}), frozenset(instances - {""}))


def _source_images(dataset: Dataset) -> Iterator[Dataset]:
    groups = [*(dataset.get("SharedFunctionalGroupsSequence") or [])]
    groups += [*(dataset.get("PerFrameFunctionalGroupsSequence") or [])]
    for group in groups:
        for derivation in group.get("DerivationImageSequence") or []:
            yield from derivation.get("SourceImageSequence") or []
    yield from dataset.get("SourceImageSequence") or []


def belongs(segmentation: Segmentation, stack: Stack) -> bool:
    """Whether the SEG was drawn on this stack: by instance where it says so, by series otherwise."""
    if segmentation.instances:
        return any(instance.identity in segmentation.instances for instance in stack.instances)
    return stack.first.series in segmentation.series


def mask_on(segmentation: Segmentation, stack: Stack, grid: Grid, codes: LabelCodes, secret: bytes) -> Mask:
    """Mask (D, H, W) in campaign codes on the stack's own grid (before reordering and resampling).

    Quarantined where no segment is one of the campaign's, or none can be placed on the image.
    """
    dataset = read_whole(segmentation.source)
    values_FHW = decode_segments(dataset)
    with reading(Reason.MALFORMED):
        coded_FHW = _coded(values_FHW, dataset, codes)
        planes = frame_planes(dataset, len(values_FHW))
        same_frame = keyed(dataset, "FrameOfReferenceUID", secret) in ("", stack.first.frame_of_reference)
        if planes.placed and grid.affine is not None and same_frame:
            mask = _by_position(coded_FHW, planes, grid)
        else:
            mask = _by_instance(coded_FHW, dataset, stack, grid, secret)
    if coded_FHW.any() and not mask.any():
        raise Quarantined(Reason.MISFIT_LABEL)
    return mask


def _coded(values_FHW: npt.NDArray[Any], dataset: Dataset, codes: LabelCodes) -> Mask:
    """Each frame in campaign codes; segments that the campaign has not become background."""
    kind = text(dataset, "SegmentationType").upper()
    known = {int(item.SegmentNumber) for item in dataset.get("SegmentSequence") or []}
    if not known & codes.masks.keys():
        raise Quarantined(Reason.UNMAPPED_LABEL)
    coded = np.zeros(values_FHW.shape, dtype=np.uint8)
    if kind == "LABELMAP":
        for number, code in codes.masks.items():
            coded[values_FHW == number] = code
        return coded
    half = float(dataset.get("MaximumFractionalValue") or 1) / 2 if kind == "FRACTIONAL" else 0.5
    for frame, number in enumerate(_segment_numbers(dataset, len(values_FHW))):
        coded[frame] = (values_FHW[frame] >= half) * np.uint8(codes.masks.get(number, 0))
    return coded


def _segment_numbers(dataset: Dataset, frames: int) -> list[int]:
    shared = [*(dataset.get("SharedFunctionalGroupsSequence") or [])]
    per_frame = [*(dataset.get("PerFrameFunctionalGroupsSequence") or [])]
    numbers = []
    for frame in range(frames):
        groups = per_frame[frame : frame + 1] + shared
        found = [group.SegmentIdentificationSequence for group in groups if group.get("SegmentIdentificationSequence")]
        numbers.append(int(found[0][0].ReferencedSegmentNumber))
    return numbers


def _by_position(coded_FHW: Mask, planes: FramePlanes, grid: Grid) -> Mask:
    """Stack the frames at their depths, then sample at the image's voxel centres."""
    depths = planes.depths_mm
    gaps = np.diff(np.unique(np.round(depths, 3)))
    step = float(gaps.min()) if len(gaps) else planes.thickness_mm or grid.spacing_mm[0] or 1.0
    places = np.round((depths - depths.min()) / step).astype(int)
    size = int(places.max()) + 1
    if size > MAX_LABEL_SLICES or size * coded_FHW[0].size > MAX_LABEL_VALUES:
        raise Quarantined(Reason.MISFIT_LABEL)
    volume = np.zeros((size, *coded_FHW.shape[1:]), dtype=np.uint8)
    for frame, place in enumerate(places):
        np.maximum(volume[place], coded_FHW[frame], out=volume[place])
    first, last = int(np.argmin(depths)), int(np.argmax(depths))
    affine = np.eye(4)
    travelled = planes.positions_F3[last] - planes.positions_F3[first]
    affine[:3, 0] = travelled / (size - 1) if size > 1 else planes.normal * step
    affine[:3, 1] = planes.column_direction * planes.spacing_hw[0]
    affine[:3, 2] = planes.row_direction * planes.spacing_hw[1]
    affine[:3, 3] = planes.positions_F3[first]
    height, width = coded_FHW.shape[1:]
    return nearest(volume, Grid((size, height, width), (step, *planes.spacing_hw), affine), grid)


def _by_instance(coded_FHW: Mask, dataset: Dataset, stack: Stack, grid: Grid, secret: bytes) -> Mask:
    """Frames onto the slices they name as their source; for images without a patient's geometry."""
    if coded_FHW.shape[1:] != grid.shape[1:]:
        raise Quarantined(Reason.MISFIT_LABEL)
    starts, slices = {}, 0
    for instance in stack.instances:
        starts[instance.identity] = slices
        slices += instance.shape[0]
    mask = np.zeros(grid.shape, dtype=np.uint8)
    per_frame = [*(dataset.get("PerFrameFunctionalGroupsSequence") or [])]
    for frame, coded_HW in enumerate(coded_FHW):
        references = [*_source_images(_only(per_frame[frame]) if frame < len(per_frame) else dataset)]
        for reference in references or [*_source_images(dataset)]:
            start = starts.get(keyed(reference, "ReferencedSOPInstanceUID", secret))
            if start is not None:
                place = start + _referenced_frame(reference)
                np.maximum(mask[place], coded_HW, out=mask[place])
    return mask


def _only(group: Dataset) -> Dataset:
    alone = Dataset()
    alone.PerFrameFunctionalGroupsSequence = [group]
    return alone


def _referenced_frame(reference: Dataset) -> int:
    number = reference.get("ReferencedFrameNumber")
    return int(number) - 1 if number not in (None, "") else 0


def label_digest(segmentations: list[Segmentation], diagnosis: int, pairing: str, secret: bytes) -> str:
    """Keyed digest of all that is said about a series; "" where nothing is. Equal: nothing new came in."""
    if not segmentations and diagnosis < 0 and not pairing:
        return ""
    return keyed_id(secret, "labels", str(diagnosis), pairing, *sorted(item.identity for item in segmentations))
