"""Figures by seed in, their mean and the paired difference with its interval out.

Seeds differ by more than objectives do (another network to start from, other patients in the test), so two objectives
are only compared on the seeds that both have, by the mean of the differences. The interval is Student's t over seeds:
it speaks of the spread between seeds, takes the differences as normal and independent, and with two or three seeds it
is wide. One seed has no interval, and none is invented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

CONFIDENCE = 0.95
BySeed = Mapping[int, float]
Verdict = Literal["above", "below", "open", "one seed"]


@dataclass(frozen=True, slots=True)
class Difference:
    """Ours minus the other, over the seeds that both have."""

    by_seed: Mapping[int, float]
    mean: float
    low: float | None
    """Lower end of the interval; None for one seed."""
    high: float | None

    @property
    def verdict(self) -> Verdict:
        """On which side of 0 the whole interval lies; `open` where it holds 0."""
        if self.low is None or self.high is None:
            return "one seed"
        if self.low > 0:
            return "above"
        return "below" if self.high < 0 else "open"


def mean(values: BySeed) -> float:
    return mean_of(list(values.values()))


def mean_of(values: Sequence[float]) -> float:
    return float(np.mean(values))


def paired(ours: BySeed, other: BySeed, confidence: float = CONFIDENCE) -> Difference | None:
    """The difference on the seeds that both have; None where there is no such seed."""
    by_seed = {seed: ours[seed] - other[seed] for seed in sorted(ours) if seed in other}
    return of_differences(by_seed, confidence) if by_seed else None


def of_differences(by_seed: BySeed, confidence: float = CONFIDENCE) -> Difference:
    """Mean and two-sided interval of at least one difference."""
    values = np.array(list(by_seed.values()), dtype=np.float64)
    middle = float(values.mean())
    if len(values) == 1:
        return Difference(dict(by_seed), middle, None, None)
    half = _quantile(0.5 + confidence / 2, len(values) - 1) * float(values.std(ddof=1)) / len(values) ** 0.5
    return Difference(dict(by_seed), middle, middle - half, middle + half)


@lru_cache
def _quantile(probability: float, degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf(probability, degrees))
