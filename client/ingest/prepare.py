"""One stack in; its image, mask and de-identified header as the store keeps them, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from client.ingest.deidentify import deidentify
from client.ingest.geometry import FramePlanes, Grid, reorder, resample, resampled_grid, stack_grid
from client.ingest.geometry import nearest as nearest_on
from client.ingest.intensity import Ends, ends, scaled
from client.ingest.labels import LabelCodes, Segmentation, mask_on
from client.ingest.pixels import Frames, decode, to_channels
from client.ingest.reasons import Quarantined, Reason
from client.ingest.series import Instance, Stack
from client.ingest.validate import read_whole, reading, text
from shared.config import DataConfig

MAX_STACK_VALUES = 1 << 29
"""Values of one stored series; 2 GB as float32."""

# What a data sheet and a report per scanner need; nothing else of a header is stored.
HEADER_KEYWORDS = (
    "Modality",
    "Manufacturer",
    "ManufacturerModelName",
    "BodyPartExamined",
    "PatientSex",
    "PatientAge",
    "StudyDate",
    "StationName",
    "DeviceSerialNumber",
    "KVP",
    "Exposure",
    "XRayTubeCurrent",
    "ConvolutionKernel",
    "MagneticFieldStrength",
    "ScanningSequence",
    "RepetitionTime",
    "EchoTime",
    "InversionTime",
    "FlipAngle",
    "SliceThickness",
    "SpacingBetweenSlices",
    "PixelSpacing",
    "BitsStored",
    "PhotometricInterpretation",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "LongitudinalTemporalInformationModified",
)
FREE_TEXT = ("Manufacturer", "ManufacturerModelName", "BodyPartExamined", "ConvolutionKernel")
SHORTEST_IDENTIFIER = 3
MAX_HEADER_TEXT = 128


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A series ready to be stored."""

    image_DCHW: npt.NDArray[np.float32]
    mask_DHW: npt.NDArray[np.uint8] | None
    spacing_mm: tuple[float, float, float]
    header: Mapping[str, str]
    ends: Ends
    instances: tuple[Instance, ...]
    """Those whose pixels are in it."""
    refused: Mapping[str, Reason]
    """Identity of an instance or a label that could not be used -> why."""


def prepare(
    stack: Stack,
    segmentations: Sequence[Segmentation],
    data: DataConfig,
    codes: LabelCodes,
    secret: bytes,
    *,
    between: Ends | None = None,
) -> Prepared:
    """Decode, put on the campaign's grid and scale, label and de-identify one stack.

    `between`: scale of the clean partner, which a degraded partner takes over so that the two stay comparable.
    Raises Quarantined where the stack as a whole cannot be used; single instances that cannot are left out of it.
    """
    frames, height, width = stack.num_frames, *stack.first.shape[1:]
    if frames * height * width * data.channels > MAX_STACK_VALUES:
        raise Quarantined(Reason.TOO_MANY_PIXELS)
    decoded, header, refused = _decoded(stack, data, secret)
    usable = tuple(instance for instance in stack.instances if instance.identity not in refused)
    values_DHWC, planes = _sorted_frames(usable, [item.values_FHWC for item in decoded])
    acquired = stack_grid(planes, (values_DHWC.shape[0], height, width))
    lowest, highest = min(item.lowest for item in decoded), max(item.highest for item in decoded)
    between = between or ends(values_DHWC, data.ingest.intensity, lowest, highest)

    ordered_DHWC, grid = reorder(values_DHWC, acquired)
    target = resampled_grid(grid, data.ingest.spacing_mm)
    channels = [resample(ordered_DHWC[..., channel], grid, target) for channel in range(data.channels)]
    image = scaled(np.stack(channels, axis=1), between, clip=data.ingest.intensity.clip)

    surviving = replace(stack, instances=usable)
    mask_DHW, misfits = _mask(surviving, segmentations, acquired, codes, secret)
    if mask_DHW is not None:
        mask_DHW = _on_target(reorder(mask_DHW, acquired)[0], grid, target)
    return Prepared(image, mask_DHW, target.spacing_mm, header, between, usable, {**refused, **misfits})


def _decoded(
    stack: Stack, data: DataConfig, secret: bytes
) -> tuple[list[Frames], Mapping[str, str], dict[str, Reason]]:
    """Frames of every instance that decodes, the header of the first, and why others do not."""
    frames: list[Frames] = []
    header: Mapping[str, str] = {}
    refused: dict[str, Reason] = {}
    for instance in stack.instances:
        try:
            dataset, item = _decoded_instance(instance)
            header = header or header_of(dataset, data, secret)
        except Quarantined as refusal:
            refused[instance.identity] = refusal.reason
            continue
        values = np.ascontiguousarray(to_channels(item.values_FHWC, data.channels))
        frames.append(replace(item, values_FHWC=values))
    if not frames:
        raise Quarantined(next(iter(refused.values())))
    return frames, header, refused


def _decoded_instance(instance: Instance) -> tuple[Dataset, Frames]:
    """The first of an instance's copies that decodes to what its header announced."""
    reason = Reason.UNDECODABLE
    for source in (instance.source, *instance.copies):
        try:
            dataset = read_whole(source)
            frames = decode(dataset)
        except Quarantined as refusal:
            reason = refusal.reason
            continue
        if frames.values_FHWC.shape[:3] == instance.shape:
            return dataset, frames
    raise Quarantined(reason)


def _sorted_frames(
    instances: tuple[Instance, ...], values: list[npt.NDArray[np.float32]]
) -> tuple[npt.NDArray[np.float32], FramePlanes]:
    """All frames in the order of their depth, with their planes; the file's order where they have no place."""
    first = instances[0].planes
    joined = values[0] if len(values) == 1 else np.concatenate(values)
    if not first.placed:
        return joined, first
    planes = replace(first, positions_F3=np.concatenate([instance.planes.positions_F3 for instance in instances]))
    depths = planes.depths_mm
    order = np.argsort(depths, kind="stable")
    if any(abs(depths[b] - depths[a]) < 1e-3 for a, b in pairwise(order)):
        # Frames of a multi-frame image that share a place (cine, echoes): a series of pictures, not a volume.
        return joined, replace(first, positions_F3=np.zeros((0, 3)))
    if (order == np.arange(len(order))).all():
        return joined, planes
    return joined[order], replace(planes, positions_F3=planes.positions_F3[order])


def _mask(
    stack: Stack, segmentations: Sequence[Segmentation], grid: Grid, codes: LabelCodes, secret: bytes
) -> tuple[npt.NDArray[np.uint8] | None, dict[str, Reason]]:
    mask: npt.NDArray[np.uint8] | None = None
    refused: dict[str, Reason] = {}
    for segmentation in segmentations:
        try:
            found = mask_on(segmentation, stack, grid, codes, secret)
        except Quarantined as refusal:
            refused[segmentation.identity] = refusal.reason
            continue
        mask = found if mask is None else np.maximum(mask, found)
    return mask, refused


def _on_target(mask_DHW: npt.NDArray[np.uint8], grid: Grid, target: Grid) -> npt.NDArray[np.uint8]:
    if grid.shape == target.shape and grid.spacing_mm == target.spacing_mm:
        return np.ascontiguousarray(mask_DHW)
    if grid.affine is not None and target.affine is not None:
        return nearest_on(mask_DHW, grid, target)
    factors = [new / old if old else 1.0 for new, old in zip(target.spacing_mm, grid.spacing_mm, strict=True)]
    plain = replace(grid, affine=np.eye(4))
    return nearest_on(mask_DHW, plain, replace(target, affine=np.diag([*factors, 1.0])))


# ------------------------------------------------------------------------------------------------------------ header


def header_of(dataset: Dataset, data: DataConfig, secret: bytes) -> dict[str, str]:
    """HEADER_KEYWORDS of the de-identified header; free text that repeats something removed is left out too."""
    with reading(Reason.MALFORMED):
        pixels = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
        plain = Dataset({tag: element for tag, element in dataset.items() if element.keyword not in pixels})
        cleaned, actions = deidentify(plain, data.ingest.deidentify, secret)
        codes = [item.CodeValue for item in cleaned.DeidentificationMethodCodeSequence]
        removed = {text(plain, action.keyword).casefold() for action in actions if action.keyword != "unknown"}
        found = {keyword: text(cleaned, keyword)[:MAX_HEADER_TEXT] for keyword in HEADER_KEYWORDS}
    found["DeidentificationMethodCodes"] = " ".join(codes)
    removed = {value for value in removed if len(value) >= SHORTEST_IDENTIFIER}
    return {
        keyword: value
        for keyword, value in found.items()
        if value and not (keyword in FREE_TEXT and _repeats(value, removed))
    }


def _repeats(value: str, removed: set[str]) -> bool:
    folded = value.casefold()
    parts = {part for item in removed for part in item.replace("^", " ").split() if len(part) > SHORTEST_IDENTIFIER}
    return any(item in folded for item in removed | parts)
