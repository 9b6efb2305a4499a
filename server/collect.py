"""One reply at a time in, the weighted sum of the updates out: memory does not grow with the number of sites.

An update is checked whole before any of it is added, so that a refused one leaves the sum as it was:
(1) from the site that was asked   (2) for this round   (3) not seen before   (4) no more samples than the plan allows,
and as many images or fewer for each part that the weights have and for no other   (5) the names and shapes of the
weights   (6) float32   (7) finite   (8) a mean mask map that is one   (9) what recognition added, for every array of
the enhancer, where the campaign promotes, and nowhere else   (10) float16 within [-1, 1] and a finite scale   (11) no
longer than the campaign's norm bound.

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

Under strategy.robust the updates themselves are kept until the round is over: their median, or the choice among them,
needs all of them at once, in memory that grows with the sites.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np
import numpy.typing as npt

from server.strategies.robust import aggregate
from shared.config import CampaignConfig, StrategyConfig
from shared.errors import DataError
from shared.masking import most_samples
from shared.types import Arrays, Offered, Revealed
from shared.weights import ENHANCER, part_of, parts_of
from shared.wire.arrays import Float16, Float32, decode_array, decode_half
from shared.wire.messages import ReceivedUpdate

BLOCK = 131_072  # values: 0.5 MB of an update, 1 MB each of scratch and sum; smaller is slower, larger no faster
SLACK = 1e-3
"""How far outside of [0, 1] rounding may leave a mean mask probability."""
BOUND_SLACK = 1e-4
"""How far beyond the norm bound, relatively, rounding may leave an update that its site cut to it."""
SAMPLE = 65_536
"""Values of an update that the cosines of the record are taken from."""


class WeightedSum:
    """The running sum of one round; the one value of the coordinator that is changed in place, for its size."""

    def __init__(
        self,
        weights: Arrays,
        *,
        round: int,
        max_samples: int,
        promotes: bool = False,
        norm_bound: float | None = None,
    ) -> None:
        self.round = round
        self.max_samples = max_samples
        self.norm_bound = norm_bound
        self.samples: dict[str, int] = {}
        self.images: dict[str, Mapping[str, int]] = {}
        """By site: images that moved each part."""
        self.norms: dict[str, float] = {}
        """By site: the L2 norm of what it learned."""
        self._sample = _Sample(weights)
        self._part = {name: part_of(name) for name in weights}
        self._total_weight: dict[str | None, float] = dict.fromkeys((None, *parts_of(weights)), 0.0)
        self._priors = {name: values for name, values in weights.items() if self._part[name] == "prior"}
        self._shapes = {name: values.shape for name, values in weights.items()}
        self._sums = self._empty()
        enhancer = (name for name in weights if promotes and name.startswith(ENHANCER))
        self._added_sums = {name: np.zeros(weights[name].shape, np.float64) for name in enhancer}
        self._scratch = np.empty(BLOCK, np.float64)

    def _empty(self) -> dict[str, npt.NDArray[np.float64]]:
        return {name: np.zeros(shape, np.float64) for name, shape in self._shapes.items()}

    def add(self, update: ReceivedUpdate, *, site: str, equal: bool = False) -> None:
        """Add `update` of `site`, by its counts or equally; DataError, and nothing added, when it is not in order."""
        arrays, added, length = self._checked(update, site)
        counts = {part: update.images[part] if part else update.num_samples for part in self._total_weight}
        weights = {part: float(count > 0 if equal else count) for part, count in counts.items()}
        self._enter(site, arrays, weights)
        for name, halves in added.items():
            _add_scaled(self._added_sums[name], halves, weights[None] * update.added[name].scale, self._scratch)
        for part, weight in weights.items():
            self._total_weight[part] += weight
        self.samples[site] = update.num_samples
        self.images[site] = dict(update.images)
        self.norms[site] = length
        self._sample.take(site, arrays)

    def _enter(self, site: str, arrays: Arrays, weights: Mapping[str | None, float]) -> None:
        for name, values in arrays.items():
            if weight := weights[self._part[name]]:
                _add_scaled(self._sums[name], values, weight, self._scratch)

    def mean(self) -> Arrays:
        """The weighted mean as float32. Gives back the memory of the sums as it goes: call it once, last."""
        return self._mean(self._sums)

    def added_mean(self) -> Arrays:
        """The weighted mean of what recognition added to the enhancer; once, last, like `mean`."""
        return self._mean(self._added_sums)

    def record(self) -> dict[str, Any]:
        """By site: how long its update is, and where it points: the cosine to the mean of the others'."""
        cosines = self._sample.cosines()
        seen = {site: {"norm": _rounded(length), "cosine": cosines[site]} for site, length in self.norms.items()}
        return {"sites_updates": dict(sorted(seen.items()))}

    def _mean(self, sums: dict[str, npt.NDArray[np.float64]]) -> Arrays:
        assert self.samples, "a mean over no site"
        mean: Arrays = {}
        for name in list(sums):
            total = sums.pop(name)
            total /= self._total_weight[self._part[name]] or 1.0
            mean[name] = total.astype(np.float32)
        return mean

    def _checked(self, update: ReceivedUpdate, site: str) -> tuple[Arrays, dict[str, Float16], float]:
        check_sender(update, site, self.round)  # (1) (2)
        if site in self.samples:  # (3)
            raise DataError(f"an update of round {self.round} was already received")
        check_counts(update, self._total_weight.keys() - {None}, self.max_samples)  # (4)
        check_shapes(self._shapes, update.shapes)  # (5)
        arrays = {name: decode_array(name, update.arrays[name], shape) for name, shape in self._shapes.items()}
        square = 0.0
        for name, values in arrays.items():  # (6) by decode_array, (7)
            of_array = _finite_square(name, values)
            square += of_array if self._part[name] != "prior" else 0.0
        for name, prior in self._priors.items():  # (8)
            check_prior(name, prior + arrays[name], update.images["prior"])
        _check_added(self._added_sums.keys(), update.added.keys())  # (9)
        halves = {  # (10)
            name: decode_half(name, update.added[name], total.shape) for name, total in self._added_sums.items()
        }
        length = float(square**0.5)
        if self.norm_bound is not None and length > self.norm_bound * (1 + BOUND_SLACK):  # (11)
            raise DataError(
                f"expected an update of L2 norm {self.norm_bound:g} or less (strategy.norm_bound), got {length:.4g}"
            )
        return arrays, halves, length


class RobustSum(WeightedSum):
    """The updates of one round, kept apart until `mean`, which is what server/strategies/robust.py makes of them."""

    def __init__(self, weights: Arrays, *, strategy: StrategyConfig, round: int, max_samples: int) -> None:
        super().__init__(weights, round=round, max_samples=max_samples, norm_bound=strategy.norm_bound)
        self._strategy = strategy
        self._kept: dict[str, Arrays] = {}
        self._robust: Mapping[str, Any] = {}

    def _empty(self) -> dict[str, npt.NDArray[np.float64]]:
        return {}

    def _enter(self, site: str, arrays: Arrays, weights: Mapping[str | None, float]) -> None:
        if weights[None]:
            self._kept[site] = arrays

    def mean(self) -> Arrays:
        kind = self._strategy.robust
        assert kind != "none"
        images = {site: self.images[site] for site in self._kept}
        mean, self._robust = aggregate(self._kept, kind, self._strategy.malicious, images=images)
        self._kept = {}
        return mean

    def record(self) -> dict[str, Any]:
        return {**super().record(), "robust": dict(self._robust)}


def total_of(weights: Arrays, round: int, campaign: CampaignConfig) -> WeightedSum:
    """What the visible updates of a round are collected in."""
    strategy, max_samples = campaign.strategy, most_samples(campaign)
    if strategy.robust != "none":
        return RobustSum(weights, strategy=strategy, round=round, max_samples=max_samples)
    promotes = strategy.promotion != "none"
    return WeightedSum(weights, round=round, max_samples=max_samples, promotes=promotes, norm_bound=strategy.norm_bound)


class _Sample:
    """Some values of every update at the same places, at even distances over all that is learnt (of a small network
    all): what the cosines between sites are taken from."""

    def __init__(self, weights: Arrays) -> None:
        sizes = {name: values.size for name, values in weights.items() if part_of(name) != "prior"}
        step = max(1, -(-sum(sizes.values()) // SAMPLE))
        starts = np.cumsum([0, *sizes.values()])[:-1]
        self._places = {name: slice(int(-start % step), None, step) for name, start in zip(sizes, starts, strict=True)}
        self._taken: dict[str, Float32] = {}

    def take(self, site: str, arrays: Arrays) -> None:
        values = [arrays[name].reshape(-1)[places] for name, places in self._places.items()]
        self._taken[site] = np.concatenate([np.zeros(0, np.float32), *values])

    def cosines(self) -> dict[str, float]:
        """To the mean of the other sites; 0 where either is 0."""
        total = sum((values.astype(np.float64) for values in self._taken.values()), start=np.float64(0.0))
        found = {}
        for site, values in self._taken.items():
            own = values.astype(np.float64)
            others = total - own
            lengths = float(np.linalg.norm(own) * np.linalg.norm(others))
            found[site] = _rounded(float(np.dot(own, others)) / lengths) if lengths > 0 else 0.0
        return found


def _rounded(value: float) -> float:
    """Six significant digits: what a record needs."""
    return float(f"{value:.6g}")


def check_counts(update: ReceivedUpdate, parts: Set[str | None], max_samples: int) -> None:
    """DataError unless an update counts no more than the plan allows, and images for just these parts."""
    if not 0 <= update.num_samples <= max_samples:
        raise DataError(f"expected 0 to {max_samples} samples, got {update.num_samples}")
    if update.images.keys() != parts:
        wanted, got = (", ".join(sorted(map(str, given))) or "none" for given in (parts, update.images))
        raise DataError(f"expected images counted for the parts {wanted}; got {got}")
    for part, count in update.images.items():
        if not 0 <= count <= max_samples:
            raise DataError(f"expected 0 to {max_samples} images for the {part}, got {count}")


def check_sender(update: ReceivedUpdate | Offered | Revealed, site: str, round: int) -> None:
    """DataError unless the update bears the name and the round that were asked for."""
    if update.site != site:
        raise DataError(f"expected a reply in the name of {site}, got one in the name of {update.site}")
    if update.round != round:
        raise DataError(f"expected an update of round {round}, got one of round {update.round}")


def check_shapes(expected: Mapping[str, tuple[int, ...]], got: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        if name not in got:
            raise DataError(f"array {name!r} is missing")
        if got[name] != shape:
            raise DataError(f"array {name!r} must have shape {list(shape)}, got {list(got[name])}")
    if len(got) != len(expected):
        raise DataError(f"expected {len(expected)} arrays, got {len(got)}")


def check_prior(name: str, map_KHW: Float32, count: int) -> None:
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


def _finite_square(name: str, values: Float32) -> float:
    """The sum of squares; DataError where a value is not finite.

    A product of a block with itself is finite only if all of it is, and is had faster than that is looked up.
    """
    total = 0.0
    for block in _blocks(values):
        with np.errstate(over="ignore", invalid="ignore"):
            square = float(np.dot(block, block))
        if not np.isfinite(square):
            if not np.isfinite(block).all():
                raise DataError(f"array {name!r} holds values that are not finite")
            square = float(np.square(block, dtype=np.float64).sum())
        total += square
    return total


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
