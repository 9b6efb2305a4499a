"""A correction in the modality's unit in, stored values of the same kind out.

Stored values move by round(correction / slope): where that is 0 they stay bit for bit, whatever the bit depth, sign,
slope or photometric interpretation. What moves is held inside the range that BitsStored allows. Padding
(PixelPaddingValue, PS3.3 C.7.5.1.1.2) is no image and never moves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from client.enhance.decode import Decoded


def corrected(decoded: Decoded, correction_FHWC: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """Stored values (F, H, W, C) of the decoded type; one channel of correction serves all."""
    steps = correction_FHWC / decoded.slopes_F[:, None, None, None]
    if correction_FHWC.shape[-1] != decoded.stored_FHWC.shape[-1]:
        steps = steps.mean(-1, keepdims=True)
    steps = np.rint(np.clip(steps, -70_000, 70_000)).astype(np.int32)
    steps[padding(decoded)] = 0
    lowest, highest = stored_range(decoded.dataset)
    before = decoded.stored_FHWC.astype(np.int32)
    after = np.where(steps == 0, before, np.clip(before + steps, lowest, highest))
    return after.astype(decoded.stored_FHWC.dtype)


def stored_range(dataset: Dataset) -> tuple[int, int]:
    """Smallest and largest stored value by BitsStored and PixelRepresentation."""
    bits = int(dataset.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.get("PixelRepresentation") == 1 else (0, 2**bits - 1)


def padding(decoded: Decoded) -> npt.NDArray[np.bool_]:
    """Where the stored value is padding, (F, H, W, C)."""
    value = decoded.dataset.get("PixelPaddingValue")
    if not isinstance(value, int) or decoded.stored_FHWC.shape[-1] != 1:
        return np.zeros(decoded.stored_FHWC.shape, dtype=bool)
    limit = decoded.dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    inside: npt.NDArray[np.bool_] = (decoded.stored_FHWC >= low) & (decoded.stored_FHWC <= high)
    return inside
