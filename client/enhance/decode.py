"""One instance in; its stored values, and the line that takes them to the modality's unit, out.

Decoding and the order of things are the ingest's (client/ingest/pixels.py). Stored values are kept as they are, so
that what an enhancer does not change is written back bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from client.enhance.reasons import NotEnhanced, as_refusal
from client.ingest.intensity import MOST_VALUES, Ends, ends
from client.ingest.pixels import decode_both, rescale, to_channels
from client.ingest.reasons import Quarantined, Reason
from client.ingest.series import Instance, Stack
from client.ingest.validate import read_whole, text
from shared.config import DataConfig

KEPT_BYTES = 256 << 20
"""Stored values of a series that are kept between its two readings; a larger one is decoded twice."""


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """An instance whose pixels are out of its dataset."""

    dataset: Dataset
    stored_FHWC: npt.NDArray[Any]
    slopes_F: npt.NDArray[np.float32]
    """Unit per stored value; the sign is turned for MONOCHROME1, where white is low."""
    offsets_F: npt.NDArray[np.float32]
    lowest: float
    highest: float
    """What the bit depth can hold, in the unit."""
    encoded_bytes: int
    """Length of PixelData as it came."""

    def values_FHWC(self) -> npt.NDArray[np.float32]:
        """In the modality's unit, light structures high."""
        values = self.stored_FHWC.astype(np.float32)
        values *= self.slopes_F[:, None, None, None]
        values += self.offsets_F[:, None, None, None]
        return values


def decoded(instance: Instance) -> Decoded:
    """Raises NotEnhanced where the pixels cannot be read, or are not what the header announced."""
    with as_refusal():
        dataset = read_whole(instance.source)
        frames, stored_FHWC = decode_both(dataset)
        if stored_FHWC.shape[:3] != instance.shape or stored_FHWC.shape != frames.values_FHWC.shape:
            raise Quarantined(Reason.UNDECODABLE)
        slopes_F, offsets_F = _line(dataset, len(stored_FHWC), frames.lowest + frames.highest)
    if not slopes_F.all():
        raise NotEnhanced(Reason.MALFORMED)
    header = Dataset({element.tag: element for element in dataset if element.keyword != "PixelData"})
    header.file_meta = dataset.file_meta
    header.set_original_encoding(*dataset.original_encoding, dataset.original_character_set)
    return Decoded(header, stored_FHWC, slopes_F, offsets_F, frames.lowest, frames.highest, len(dataset.PixelData))


def _line(dataset: Dataset, frames: int, ends_sum: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Slope and intercept of each frame; colour has none."""
    if int(dataset.get("SamplesPerPixel") or 1) > 1:
        return np.ones(frames, np.float32), np.zeros(frames, np.float32)
    slopes_F, intercepts_F = rescale(dataset, frames)
    if text(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        return -slopes_F, np.float32(ends_sum) - intercepts_F
    return slopes_F, intercepts_F


def ends_of(stack: Stack, data: DataConfig) -> tuple[Ends, tuple[Decoded, ...]]:
    """The two values that become 0 and 1, by the campaign's rule over the whole stack; what was decoded for it, where
    that is not too much to keep.

    A window needs no pixel. Percentiles are those of the ingest: of every k-th value where there are too many.
    """
    rule = data.ingest.intensity
    if rule.rule == "window":
        return Ends(rule.low, rule.high), ()
    kept: list[Decoded] = []
    some: list[npt.NDArray[np.float32]] = []
    bounds: list[tuple[float, float]] = []
    frames, height, width = stack.num_frames, *stack.first.shape[1:]
    every, start = max(1, frames * height * width * data.channels // MOST_VALUES), 0
    for instance in stack.instances:
        each = decoded(instance)
        bounds.append((each.lowest, each.highest))
        if rule.rule == "percentile":
            flat = to_channels(each.values_FHWC(), data.channels).reshape(-1)
            some.append(flat[-start % every :: every].copy())
            start += flat.size
        kept.append(each)
        if sum(item.stored_FHWC.nbytes for item in kept) > KEPT_BYTES:
            kept = []
    values = np.concatenate(some) if some else np.zeros(0, np.float32)
    with as_refusal():
        between = ends(values, rule, min(low for low, _ in bounds), max(high for _, high in bounds))
    return between, tuple(kept) if len(kept) == len(stack.instances) else ()


def all_decoded(stack: Stack, kept: tuple[Decoded, ...]) -> Iterator[Decoded]:
    """Every instance in the stack's order."""
    yield from kept or map(decoded, stack.instances)
