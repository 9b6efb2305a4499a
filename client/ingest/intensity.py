"""Pixel values in the modality's unit in; the campaign's scale, where 0 is the low and 1 the high end, out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from client.ingest.reasons import Quarantined, Reason
from shared.config import IntensityConfig

MOST_VALUES = 1 << 24
"""Percentiles of larger volumes are taken over every k-th value, so that memory and time stay bounded."""


MOST_RANGE = 1e37
"""Between the two ends, in the modality's unit; float32 ends at 3e38."""


@dataclass(frozen=True, slots=True)
class Ends:
    """The two values that become 0 and 1."""

    low: float
    high: float


def ends(values: npt.NDArray[np.float32], config: IntensityConfig, lowest: float, highest: float) -> Ends:
    """Ends by the campaign's rule; `lowest` and `highest` are what the file's bit depth can hold.

    Quarantined for an image without contrast (percentile) or without a bit depth (range), and where the ends lie
    further apart than float32 can tell.
    """
    if config.rule == "window":
        return Ends(config.low, config.high)
    if config.rule == "range":
        if not np.isfinite(highest - lowest):
            raise Quarantined(Reason.NO_BIT_DEPTH)
        if not 0 < highest - lowest <= MOST_RANGE:
            raise Quarantined(Reason.NOT_FINITE if lowest < highest else Reason.CONSTANT)
        return Ends(lowest, highest)
    some = values.reshape(-1)[:: max(1, values.size // MOST_VALUES)]
    low, high = (float(end) for end in np.percentile(some, (config.low, config.high)))
    if not low < high:
        raise Quarantined(Reason.CONSTANT)
    if high - low > MOST_RANGE:
        raise Quarantined(Reason.NOT_FINITE)
    return Ends(low, high)


def scaled(values: npt.NDArray[np.float32], between: Ends, *, clip: bool) -> npt.NDArray[np.float32]:
    """(value - low) / (high - low), held inside [0, 1] if the campaign says so."""
    result = (values - np.float32(between.low)) / np.float32(between.high - between.low)
    if clip:
        np.clip(result, 0.0, 1.0, out=result)
    return result.astype(np.float32, copy=False)
