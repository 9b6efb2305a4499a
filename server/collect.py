"""One reply at a time in, the weighted sum of the updates out: memory does not grow with the number of sites.

An update is checked whole before any of it is added, so that a refused one leaves the sum as it was:
(1) from the site that was asked   (2) for this round   (3) not seen before   (4) as many samples as the plan allows
(5) the names and shapes of the weights   (6) float32   (7) finite.

Sums are float64: with the 24-bit values of float32 the order of arrival disappears in the rounding of the mean. The
addition goes in blocks that stay in the processor's cache, for an array is larger than that and would travel to memory
three times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from shared.errors import DataError
from shared.types import Arrays
from shared.wire.arrays import decode_array
from shared.wire.messages import ReceivedUpdate

BLOCK = 131_072  # values: 0.5 MB of an update, 1 MB each of scratch and sum; smaller is slower, larger no faster


class WeightedSum:
    """The running sum of one round; the one value of the coordinator that is changed in place, for its size."""

    def __init__(self, weights: Arrays, *, round: int, max_samples: int) -> None:
        self.round = round
        self.max_samples = max_samples
        self.samples: dict[str, int] = {}
        self._total_weight = 0.0
        self._sums = {name: np.zeros(values.shape, np.float64) for name, values in weights.items()}
        self._scratch = np.empty(BLOCK, np.float64)

    def add(self, update: ReceivedUpdate, *, site: str, equal: bool = False) -> None:
        """Add `update` of `site`, by its samples or equally; DataError, and nothing added, when it is not in order."""
        arrays = self._checked(update, site)
        weight = 1.0 if equal else float(update.num_samples)
        for name, values in arrays.items():
            _add_scaled(self._sums[name], values, weight, self._scratch)
        self._total_weight += weight
        self.samples[site] = update.num_samples

    def mean(self) -> Arrays:
        """The weighted mean as float32. Gives back the memory of the sums as it goes: call it once, last."""
        assert self.samples, "a mean over no site"
        mean: Arrays = {}
        for name in list(self._sums):
            total = self._sums.pop(name)
            total /= self._total_weight
            mean[name] = total.astype(np.float32)
        return mean

    def _checked(self, update: ReceivedUpdate, site: str) -> Arrays:
        check_sender(update, site, self.round)  # (1) (2)
        if site in self.samples:  # (3)
            raise DataError(f"an update of round {self.round} was already received")
        if not 1 <= update.num_samples <= self.max_samples:  # (4)
            raise DataError(f"expected 1 to {self.max_samples} samples, got {update.num_samples}")
        _check_shapes({name: values.shape for name, values in self._sums.items()}, update.shapes)  # (5)
        arrays = {name: decode_array(name, update.arrays[name], values.shape) for name, values in self._sums.items()}
        for name, values in arrays.items():  # (6) by decode_array, (7)
            if not all(np.isfinite(block).all() for block in _blocks(values)):
                raise DataError(f"array {name!r} holds values that are not finite")
        return arrays


def check_sender(update: ReceivedUpdate, site: str, round: int) -> None:
    """DataError unless the update bears the name and the round that were asked for."""
    if update.site != site:
        raise DataError(f"expected a reply in the name of {site}, got one in the name of {update.site}")
    if update.round != round:
        raise DataError(f"expected an update of round {round}, got one of round {update.round}")


def _check_shapes(expected: Mapping[str, tuple[int, ...]], got: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        if name not in got:
            raise DataError(f"array {name!r} is missing")
        if got[name] != shape:
            raise DataError(f"array {name!r} must have shape {list(shape)}, got {list(got[name])}")
    if len(got) != len(expected):
        raise DataError(f"expected {len(expected)} arrays, got {len(got)}")


def _blocks(values: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
    flat = values.reshape(-1)
    return (flat[start : start + BLOCK] for start in range(0, flat.size, BLOCK))


def _add_scaled(
    total: npt.NDArray[np.float64], values: npt.NDArray[np.float32], weight: float, scratch: npt.NDArray[np.float64]
) -> None:
    """total += weight * values, in place and in float64."""
    flat_total = total.reshape(-1)  # a view: total is contiguous
    for i, block in enumerate(_blocks(values)):
        scaled = scratch[: block.size]
        np.copyto(scaled, block)
        scaled *= weight
        flat_total[i * BLOCK : i * BLOCK + block.size] += scaled
