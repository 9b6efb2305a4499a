"""What noise costs: epsilon of (noise multiplier, sampling rate, steps, delta), and the least noise for an epsilon.

Two units. Patient: the Gaussian mechanism on a Poisson sample of a site's training patients; neighbours differ by one
patient that is there or not. Site: the plain Gaussian (a sampling rate of 1); neighbours differ by one site's update
that is there or not. The noise multiplier is the standard deviation of the noise over the most that one unit adds.

Renyi differential privacy (Mironov 2017, https://arxiv.org/abs/1702.07476; of the sampled Gaussian: Mironov, Talwar,
Zhang 2019, https://arxiv.org/abs/1908.10530) by dp-accounting, turned into (epsilon, delta) as Canonne, Kamath,
Steinke 2020 do (https://arxiv.org/abs/2004.00010). It is an upper bound, a tenth or so above the least. Why not the
tighter privacy loss distributions: a site fits the noise of its next round to what it has spent, and bounds that hold
for such a sequence are proven for Renyi orders (Feldman, Zrnic 2021, https://arxiv.org/abs/2008.11193).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

LARGEST_MULTIPLIER = 1e5
"""Beyond it nothing is learnt; what would need more noise counts as spent."""
PRECISION = 1e-3
"""Relative, of a noise multiplier that is looked for; always on the side of more noise."""


ORDERS = (1.25, 1.5, 1.75, 2, 2.25, 2.5, 2.75, 3, 3.5, 4, 4.5, 5, 5.5, *range(6, 33), *range(34, 65, 2),
          *range(72, 129, 8), 160, 192, 256, 384, 512, 1024)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Steps:
    """So many Gaussian mechanisms in a row, each on a Poisson sample."""

    multiplier: float
    """Standard deviation of the noise over the norm that one unit is clipped to."""
    rate: float
    """Probability that a unit is in a step; 1: every unit is in every step."""
    steps: int

    def __post_init__(self) -> None:
        assert self.multiplier > 0, self.multiplier
        assert 0 < self.rate <= 1, self.rate
        assert self.steps >= 0, self.steps


def epsilon(spent: Sequence[Steps], delta: float) -> float:
    """Of all of `spent` together, one after another, at `delta`; 0 of nothing."""
    parts = [part for part in spent if part.steps]
    if not parts:
        return 0.0
    from dp_accounting import rdp

    # Orders by orders: the curves of mechanisms in a row add up.
    total = [0.0] * len(ORDERS)
    for part in parts:
        curve = _curve(part.multiplier, part.rate)
        total = [summed + part.steps * one for summed, one in zip(total, curve, strict=True)]
    found, _ = rdp.compute_epsilon(ORDERS, total, delta)
    return float(found)


def least_multiplier(
    target: float, delta: float, *, rate: float, steps: int, spent: Sequence[Steps] = ()
) -> float | None:
    """The least noise multiplier with which `steps` more steps after `spent` stay within epsilon `target`; None where
    none up to LARGEST_MULTIPLIER does. The answer itself always keeps `target`."""

    def keeps(multiplier: float) -> bool:
        return epsilon([*spent, Steps(multiplier, rate, steps)], delta) <= target

    if not keeps(LARGEST_MULTIPLIER):
        return None
    low, high = 0.0, 1.0
    while not keeps(high):
        low, high = high, min(2 * high, LARGEST_MULTIPLIER)
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return high


def rounds_within(target: float, delta: float, one_round: Steps, most: int) -> int:
    """How many rounds of these steps stay within epsilon `target`, at most `most`."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        kept = epsilon([replace(one_round, steps=middle * one_round.steps)], delta) <= target
        low, high = (middle, high) if kept else (low, middle - 1)
    return low


@lru_cache(maxsize=256)
def _curve(multiplier: float, rate: float) -> tuple[float, ...]:
    """Renyi divergence of one step at each of ORDERS."""
    with _quiet():
        import dp_accounting
        from dp_accounting import rdp

        accountant = rdp.RdpAccountant(ORDERS, dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
        gaussian = dp_accounting.GaussianDpEvent(multiplier)
        accountant.compose(gaussian if rate == 1 else dp_accounting.PoissonSampledDpEvent(rate, gaussian))
    return tuple(map(float, accountant.rdp))


@contextmanager
def _quiet() -> Iterator[None]:
    """An order whose series does not converge is left out, which is safe, and the library says so. If no program has
    set up logging it would set it up itself, and all that others log would come to the terminal."""
    handlers, library = list(logging.root.handlers), logging.getLogger("absl")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.handlers[:] = handlers
        library.setLevel(level)
