"""One reply at a time in, the weighted sum of the updates out: memory does not grow with the number of sites.

An update is checked whole before any of it is added, so that a refused one leaves the sum as it was:
(1) from the site that was asked   (2) for this round   (3) not seen before   (4) no more samples than the plan allows,
and as many images or fewer for each part that the weights have and for no other   (5) the names and shapes of the
weights   (6) float32   (7) finite   (8) a mean mask map that is one   (9) what recognition added, for every array of
the enhancer, where the campaign promotes, and nowhere else   (10) float16 within [-1, 1] and a finite scale.

Sites hold different labels, so each part of the recogniser (shared.weights.part_of) has a mean of its own, over the
sites that trained it and by the images that moved it there: a decoder that a site without masks sends back as it came
would only dilute what the others learned. What belongs to no part, the enhancer and the critic, is weighted by samples.
With equal weights every site counts 1 in the parts that it trained, 0 in the others. A site that counts 0 for a part
still brings its arrays, so that all updates look alike; they are checked (5) to (7) and enter nothing. The mean of a
part that nobody trained is 0. A count is believed up to what the plan allows: a site that lies about its labels weighs
at most as much as one with a label on every image that it draws.

Sums are float64: with the 24-bit values of float32 the order of arrival disappears in the rounding of the mean. The
addition goes in blocks that stay in the processor's cache, for an array is larger than that and would travel to memory
three times. What recognition added is a second sum of the same kind, over the enhancer's arrays only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

import numpy as np
import numpy.typing as npt

from shared.errors import DataError
from shared.types import Arrays
from shared.weights import ENHANCER, part_of, parts_of
from shared.wire.arrays import Float16, Float32, decode_array, decode_half
from shared.wire.messages import ReceivedUpdate

BLOCK = 131_072  # values: 0.5 MB of an update, 1 MB each of scratch and sum; smaller is slower, larger no faster
SLACK = 1e-3
"""How far outside of [0, 1] rounding may leave a mean mask probability."""


class WeightedSum:
    """The running sum of one round; the one value of the coordinator that is changed in place, for its size."""

    def __init__(self, weights: Arrays, *, round: int, max_samples: int, promotes: bool = False) -> None:
        self.round = round
        self.max_samples = max_samples
        self.samples: dict[str, int] = {}
        self.images: dict[str, Mapping[str, int]] = {}
        """By site: images that moved each part."""
        self._part = {name: part_of(name) for name in weights}
        self._total_weight: dict[str | None, float] = dict.fromkeys((None, *parts_of(weights)), 0.0)
        self._priors = {name: values for name, values in weights.items() if self._part[name] == "prior"}
        self._sums = {name: np.zeros(values.shape, np.float64) for name, values in weights.items()}
        enhancer = (name for name in weights if promotes and name.startswith(ENHANCER))
        self._added_sums = {name: np.zeros_like(self._sums[name]) for name in enhancer}
        self._scratch = np.empty(BLOCK, np.float64)

    def add(self, update: ReceivedUpdate, *, site: str, equal: bool = False) -> None:
        """Add `update` of `site`, by its counts or equally; DataError, and nothing added, when it is not in order."""
        arrays, added = self._checked(update, site)
        counts = {part: update.images[part] if part else update.num_samples for part in self._total_weight}
        weights = {part: float(count > 0 if equal else count) for part, count in counts.items()}
        for name, values in arrays.items():
            if weight := weights[self._part[name]]:
                _add_scaled(self._sums[name], values, weight, self._scratch)
        for name, halves in added.items():
            _add_scaled(self._added_sums[name], halves, weights[None] * update.added[name].scale, self._scratch)
        for part, weight in weights.items():
            self._total_weight[part] += weight
        self.samples[site] = update.num_samples
        self.images[site] = dict(update.images)

    def mean(self) -> Arrays:
        """The weighted mean as float32. Gives back the memory of the sums as it goes: call it once, last."""
        return self._mean(self._sums)

    def added_mean(self) -> Arrays:
        """The weighted mean of what recognition added to the enhancer; once, last, like `mean`."""
        return self._mean(self._added_sums)

    def _mean(self, sums: dict[str, npt.NDArray[np.float64]]) -> Arrays:
        assert self.samples, "a mean over no site"
        mean: Arrays = {}
        for name in list(sums):
            total = sums.pop(name)
            total /= self._total_weight[self._part[name]] or 1.0
            mean[name] = total.astype(np.float32)
        return mean

    def _checked(self, update: ReceivedUpdate, site: str) -> tuple[Arrays, dict[str, Float16]]:
        check_sender(update, site, self.round)  # (1) (2)
        if site in self.samples:  # (3)
            raise DataError(f"an update of round {self.round} was already received")
        self._check_counts(update)  # (4)
        _check_shapes({name: values.shape for name, values in self._sums.items()}, update.shapes)  # (5)
        arrays = {name: decode_array(name, update.arrays[name], values.shape) for name, values in self._sums.items()}
        for name, values in arrays.items():  # (6) by decode_array, (7)
            if not all(np.isfinite(block).all() for block in _blocks(values)):
                raise DataError(f"array {name!r} holds values that are not finite")
        for name, prior in self._priors.items():  # (8)
            _check_prior(name, prior + arrays[name], update.images["prior"])
        _check_added(self._added_sums.keys(), update.added.keys())  # (9)
        halves = {  # (10)
            name: decode_half(name, update.added[name], total.shape) for name, total in self._added_sums.items()
        }
        return arrays, halves

    def _check_counts(self, update: ReceivedUpdate) -> None:
        if not 0 <= update.num_samples <= self.max_samples:
            raise DataError(f"expected 0 to {self.max_samples} samples, got {update.num_samples}")
        expected = set(self._total_weight) - {None}
        if update.images.keys() != expected:
            wanted, got = (", ".join(sorted(map(str, parts))) or "none" for parts in (expected, update.images))
            raise DataError(f"expected images counted for the parts {wanted}; got {got}")
        for part, count in update.images.items():
            if not 0 <= count <= self.max_samples:
                raise DataError(f"expected 0 to {self.max_samples} images for the {part}, got {count}")


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


def _check_prior(name: str, map_KHW: Float32, count: int) -> None:
    """The map at the site, which is the one that came plus the difference; of a site without masks nothing is read."""
    if count and not (map_KHW.min(initial=0) >= -SLACK and map_KHW.max(initial=0) <= 1 + SLACK):
        raise DataError(f"array {name!r} does not lead to probabilities: expected a mean mask map within [0, 1]")


def _check_added(expected: Set[str], got: Set[str]) -> None:
    if got and not expected:
        raise DataError(
            "the update brings apart what recognition added, which strategy.promotion=none does not ask for"
        )
    if expected and not got:
        raise DataError("the update lacks what recognition added, which strategy.promotion asks for")
    for name in sorted(expected - got):
        raise DataError(f"what recognition added to {name!r} is missing")
    if got != expected:
        raise DataError("the update brings what was added to arrays that are not the enhancer's")


def _blocks(values: Float32 | Float16) -> Iterator[Float32 | Float16]:
    flat = values.reshape(-1)
    return (flat[start : start + BLOCK] for start in range(0, flat.size, BLOCK))


def _add_scaled(
    total: npt.NDArray[np.float64], values: Float32 | Float16, weight: float, scratch: npt.NDArray[np.float64]
) -> None:
    """total += weight * values, in place and in float64."""
    flat_total = total.reshape(-1)  # a view: total is contiguous
    for i, block in enumerate(_blocks(values)):
        scaled = scratch[: block.size]
        np.copyto(scaled, block)
        scaled *= weight
        flat_total[i * BLOCK : i * BLOCK + block.size] += scaled
