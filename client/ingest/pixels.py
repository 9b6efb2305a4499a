"""One DICOM instance in; its frames in the modality's unit, float32 (F, H, W, C), out.

Decoding is pydicom's with the pylibjpeg, pyjpegls and gdcm plugins, those in a process of their own
(client/ingest/decoder.py); YBR comes back as RGB. Then, in this order:
palette (PS3.3 C.7.6.3.1.6), modality LUT or rescale (C.11.1), dose grid scaling (C.8.8.3.4.1), MONOCHROME1 inverted.
The VOI LUT and windows are not applied: they are a reader's display choice, and the campaign's intensity rule takes
their place. Overlays are left out: they are drawn by people.
"""

from __future__ import annotations

import struct
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from client.ingest.decoder import decoded
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
    return decode_both(dataset)[0]


def decode_both(dataset: Dataset) -> tuple[Frames, npt.NDArray[Any]]:
    """Frames, and the stored values that they were made from, (F, H, W, C)."""
    check_limits(dataset)
    if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise Quarantined(Reason.NO_PIXELS)
    with reading(Reason.UNDECODABLE):
        stored = _stored(dataset)
        shape = (num_frames(dataset), int(dataset.Rows), int(dataset.Columns), -1)
        stored_FHWC = stored.reshape(shape)
        colour = text(dataset, "PhotometricInterpretation")
        grey = colour in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
        if stored_FHWC.shape[-1] != (1 if grey else 3):
            raise Quarantined(Reason.UNSUPPORTED_COLOUR)
        if colour == "PALETTE COLOR":
            frames = _palette(stored_FHWC[..., 0], dataset)
        elif grey:
            frames = _monochrome(stored_FHWC, dataset, inverted=colour == "MONOCHROME1")
        else:
            frames = Frames(_float32(stored_FHWC), 0.0, float(2 ** int(dataset.BitsStored) - 1))
    if not np.isfinite(frames.values_FHWC).all():
        raise Quarantined(Reason.NOT_FINITE)
    return frames, stored_FHWC


def decode_segments(dataset: Dataset) -> npt.NDArray[Any]:
    """Stored values (F, H, W) of a segmentation: 0/1, a fraction, or segment numbers."""
    check_limits(dataset)
    with reading(Reason.UNDECODABLE):
        return _stored(dataset).reshape(num_frames(dataset), int(dataset.Rows), int(dataset.Columns))


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
    tables = _native_tables(dataset)
    coloured = np.stack([apply_color_lut(frame, tables) for frame in stored_FHW])
    if coloured.shape[-1] < 3:  # pydicom stacks the tables that it could read
        raise Quarantined(Reason.UNDECODABLE)
    depth = min(8 * coloured.dtype.itemsize, int(dataset.RedPaletteColorLookupTableDescriptor[2]))
    return Frames(_float32(coloured[..., :3]), 0.0, float(2**depth - 1))


def _native_tables(dataset: Dataset) -> Dataset:
    """pydicom 3.0 reads the entries of a palette as little endian in big-endian files too; segmented ones are right."""
    if dataset.original_encoding[1] is not False:
        return dataset
    swapped = copy(dataset)
    for colour in ("Red", "Green", "Blue"):
        keyword = f"{colour}PaletteColorLookupTableData"
        if keyword in dataset:
            data: bytes = dataset[keyword].value
            entries = int(dataset[f"{colour}PaletteColorLookupTableDescriptor"].value[0]) or 2**16
            if len(data) == 2 * entries:
                native = np.frombuffer(data, ">u2").astype("<u2").tobytes()
                swapped[keyword] = DataElement(dataset[keyword].tag, "OW", native)
    return swapped


def _monochrome(stored_FHWC: npt.NDArray[Any], dataset: Dataset, *, inverted: bool) -> Frames:
    if stored_FHWC.shape[-1] != 1:
        raise Quarantined(Reason.UNSUPPORTED_COLOUR)
    lowest, highest = _stored_range(dataset)
    if dataset.get("ModalityLUTSequence"):
        values = _float32(apply_modality_lut(stored_FHWC, dataset))
        lowest, highest = 0.0, float(2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    else:
        slopes_F, intercepts_F = rescale(dataset, len(stored_FHWC))
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


def rescale(dataset: Dataset, frames: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
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


def _stored(dataset: Dataset) -> npt.NDArray[Any]:
    """Stored values by the first plugin that can decode them; no native decoder runs in this process."""
    if "PixelData" not in dataset or not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        stored: npt.NDArray[Any] = dataset.pixel_array
        return stored
    _check_codestreams(dataset)
    pixels: dict[str, Any] = {name: int(dataset[keyword].value) for name, keyword in _PIXEL_KEYWORDS.items()}
    pixels["number_of_frames"] = num_frames(dataset)
    pixels["pixel_representation"] = int(dataset.get("PixelRepresentation") or 0)
    planar = dataset.get("PlanarConfiguration")
    pixels["planar_configuration"] = None if planar is None else int(planar)
    tables = [dataset.get(keyword) for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    pixels["offsets"] = None if None in tables else [bytes(table).hex() for table in tables]
    pixels["photometric_interpretation"] = text(dataset, "PhotometricInterpretation")[:MOST_TEXT]
    pixels["syntax"] = str(dataset.file_meta.TransferSyntaxUID)[:MOST_TEXT]
    return decoded(pixels, dataset.PixelData)


_PIXEL_KEYWORDS = {
    "rows": "Rows",
    "columns": "Columns",
    "samples_per_pixel": "SamplesPerPixel",
    "bits_allocated": "BitsAllocated",
    "bits_stored": "BitsStored",
}
MOST_TEXT = 64


def _check_codestreams(dataset: Dataset) -> None:
    """A few bytes of JPEG can announce gigapixels, whatever the header says; decoders allocate what they announce."""
    announced = int(dataset.Rows) * int(dataset.Columns)
    for frame in generate_frames(dataset.PixelData, number_of_frames=num_frames(dataset)):
        if codestream_pixels(frame) > announced:
            raise Quarantined(Reason.UNDECODABLE)


def codestream_pixels(frame: bytes) -> int:
    """Height x width by the SIZ (JPEG 2000) or SOF (JPEG, JPEG-LS) marker; 0 where there is none, as for RLE."""
    siz = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if siz >= 0 and len(frame) >= siz + 24:
        right, bottom, left, top = struct.unpack(">4I", frame[siz + 8 : siz + 24])
        return int(max(0, right - left) * max(0, bottom - top))
    place = 2
    while frame[:2] == b"\xff\xd8" and place + 9 <= len(frame) and frame[place] == 0xFF:
        marker, length = frame[place + 1], int.from_bytes(frame[place + 2 : place + 4], "big")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            height, width = struct.unpack(">2H", frame[place + 5 : place + 9])
            return int(height * width)
        place += 1 if marker == 0xFF else 2 + length
    return 0
