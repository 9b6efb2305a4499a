"""Values per image in, moments out; moments of several sites pool exactly, because sums add."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from shared.types import Metrics, Moments

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_ONE_PER_TEST = ("auc", "f1")


def one_per_test(metric: str) -> bool:
    """Whether a metric (`auc`, `f1`, `f1.<diagnosis>`) is one value of a whole test, which moments cannot pool."""
    return metric.split(".")[0] in _ONE_PER_TEST


def moments(values: npt.ArrayLike) -> Moments:
    """Count, sum, sum of squares and quantiles of the finite values; NaN means "not defined for this image"."""
    all_values = np.asarray(values, dtype=np.float64).ravel()
    finite = all_values[np.isfinite(all_values)]
    if not finite.size:
        return Moments(0, 0.0, 0.0)
    points = tuple(float(point) for point in np.quantile(finite, QUANTILES))
    return Moments(int(finite.size), float(finite.sum()), float(np.square(finite).sum()), points)


def pool(metrics: Iterable[Metrics]) -> Metrics:
    """Moments over the images of all sites together; quantiles do not pool and are left out."""
    pooled: dict[str, Moments] = {}
    for site in metrics:
        for key, of_site in site.items():
            so_far = pooled.get(key, Moments(0, 0.0, 0.0))
            pooled[key] = Moments(
                so_far.count + of_site.count, so_far.total + of_site.total, so_far.total_sq + of_site.total_sq
            )
    return pooled
