"""One DICOM instance in; its frames in the modality's unit, float32 (F, H, W, C), out.

Decoding is pydicom's with the pylibjpeg, pyjpegls and gdcm plugins; YBR comes back as RGB. Then, in this order:
palette (PS3.3 C.7.6.3.1.6), modality LUT or rescale (C.11.1), dose grid scaling (C.8.8.3.4.1), MONOCHROME1 inverted.
The VOI LUT and windows are not applied: they are a reader's display choice, and the campaign's intensity rule takes
their place. Overlays are left out: they are drawn by people.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from client.ingest.reasons import Quarantined, Reason
from client.ingest.validate import check_limits, num_frames, reading, text

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""ITU-R BT.601, the weights of DICOM's own YBR_FULL (PS3.3 C.7.6.3.1.2)."""


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Decoded frames and the two ends of what their bit depth could have held, in the same unit."""

    values_FHWC: npt.NDArray[np.float32]
    lowest: float
    highest: float


def decode(dataset: Dataset) -> Frames:
    """Frames of an instance; Quarantined where there are none, too many, or none that any plugin can decode."""
    check_limits(dataset)
    if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise Quarantined(Reason.NO_PIXELS)
    with reading(Reason.UNDECODABLE):
        _quiet_gdcm()
        stored = dataset.pixel_array
        shape = (num_frames(dataset), int(dataset.Rows), int(dataset.Columns), -1)
        stored_FHWC = stored.reshape(shape)
        colour = text(dataset, "PhotometricInterpretation")
        if colour == "PALETTE COLOR":
            frames = _palette(stored_FHWC[..., 0], dataset)
        elif colour in ("MONOCHROME1", "MONOCHROME2"):
            frames = _monochrome(stored_FHWC, dataset, inverted=colour == "MONOCHROME1")
        elif stored_FHWC.shape[-1] == 3:
            frames = Frames(_float32(stored_FHWC), 0.0, float(2 ** int(dataset.BitsStored) - 1))
        else:
            raise Quarantined(Reason.UNSUPPORTED_COLOUR)
    if not np.isfinite(frames.values_FHWC).all():
        raise Quarantined(Reason.NOT_FINITE)
    return frames


def decode_segments(dataset: Dataset) -> npt.NDArray[Any]:
    """Stored values (F, H, W) of a segmentation: 0/1, a fraction, or segment numbers."""
    check_limits(dataset)
    with reading(Reason.UNDECODABLE):
        _quiet_gdcm()
        stored: npt.NDArray[Any] = dataset.pixel_array
        return stored.reshape(num_frames(dataset), int(dataset.Rows), int(dataset.Columns))


def to_channels(values_FHWC: npt.NDArray[np.float32], channels: int) -> npt.NDArray[np.float32]:
    """One channel from colour by luma, three from grey by repetition."""
    if values_FHWC.shape[-1] == channels:
        return values_FHWC
    if channels == 1:
        return (values_FHWC @ LUMA)[..., None]
    return np.repeat(values_FHWC, channels, axis=-1)


def _float32(stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    # astype also turns big-endian numbers into native ones, which torch insists on.
    return np.ascontiguousarray(stored.astype(np.float32))


def _palette(stored_FHW: npt.NDArray[Any], dataset: Dataset) -> Frames:
    coloured = np.stack([apply_color_lut(frame, dataset) for frame in stored_FHW])
    assert coloured.shape[-1] >= 3
    depth = 8 * coloured.dtype.itemsize
    return Frames(_float32(coloured[..., :3]), 0.0, float(2**depth - 1))


def _monochrome(stored_FHWC: npt.NDArray[Any], dataset: Dataset, *, inverted: bool) -> Frames:
    if stored_FHWC.shape[-1] != 1:
        raise Quarantined(Reason.UNSUPPORTED_COLOUR)
    lowest, highest = _stored_range(dataset)
    if dataset.get("ModalityLUTSequence"):
        values = _float32(apply_modality_lut(stored_FHWC, dataset))
        lowest, highest = 0.0, float(2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    else:
        slopes_F, intercepts_F = _rescale(dataset, len(stored_FHWC))
        values = _float32(stored_FHWC)
        values *= slopes_F[:, None, None, None]
        values += intercepts_F[:, None, None, None]
        ends = np.concatenate([slopes_F * lowest + intercepts_F, slopes_F * highest + intercepts_F])
        lowest, highest = float(ends.min()), float(ends.max())
    if inverted:
        # White is low: mirrored inside the range of the file. Without a bit depth, inside its own values.
        ends_sum = lowest + highest if np.isfinite(lowest + highest) else float(values.min() + values.max())
        values = np.float32(ends_sum) - values
    return Frames(values, lowest, highest)


def _stored_range(dataset: Dataset) -> tuple[float, float]:
    """Smallest and largest stored value by BitsStored and PixelRepresentation; infinite for floating point pixels."""
    if "PixelData" not in dataset:
        return -np.inf, np.inf
    bits, signed = int(dataset.BitsStored), int(dataset.get("PixelRepresentation") or 0) == 1
    if not 1 <= bits <= int(dataset.BitsAllocated) or int(dataset.get("HighBit", bits - 1)) != bits - 1:
        raise Quarantined(Reason.UNDECODABLE)
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)


def _rescale(dataset: Dataset, frames: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Slope and intercept per frame: the frame's functional group, the shared one, or the plain attributes."""
    if text(dataset, "DoseGridScaling"):
        slope = np.full(frames, float(dataset.DoseGridScaling), dtype=np.float32)
        return slope, np.zeros(frames, dtype=np.float32)
    shared = _transformation(_first(dataset.get("SharedFunctionalGroupsSequence"))) or dataset
    per_frame = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])[:frames]
    sources = [_transformation(group) or shared for group in per_frame] or [shared]
    sources += [sources[-1]] * (frames - len(sources))
    slopes = [float(source.RescaleSlope) if text(source, "RescaleSlope") else 1.0 for source in sources]
    intercepts = [float(source.RescaleIntercept) if text(source, "RescaleIntercept") else 0.0 for source in sources]
    return np.array(slopes, dtype=np.float32), np.array(intercepts, dtype=np.float32)


def _transformation(group: Dataset) -> Dataset | None:
    found = group.get("PixelValueTransformationSequence")
    return found[0] if found else None


def _first(sequence: Any) -> Dataset:
    return sequence[0] if sequence else Dataset()


def _quiet_gdcm() -> None:
    """gdcm writes to stderr from C++, with file content in the text."""
    import gdcm  # type: ignore[import-untyped]

    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()
    gdcm.Trace.DebugOff()
