"""Paired differences: scipy's own interval as the oracle, and no interval from one seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from server.study.statistics import mean, of_differences, paired


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_interval_is_that_of_the_paired_t_test(count: int, confidence: float) -> None:
    rng = np.random.default_rng(count)
    ours, other = rng.normal(25, 3, count), rng.normal(24, 3, count)
    found = paired(dict(enumerate(ours)), dict(enumerate(other)), confidence)
    expected = stats.ttest_rel(ours, other).confidence_interval(confidence)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(np.mean(ours - other))


def test_verdict_agrees_with_the_p_value_of_the_paired_test() -> None:
    rng = np.random.default_rng(0)
    verdicts = set()
    for _ in range(200):
        ours, other = rng.normal(1.5, 1, 3), rng.normal(0, 1, 3)
        found = paired(dict(enumerate(ours)), dict(enumerate(other)))
        assert found is not None
        test = stats.ttest_rel(ours, other)
        expected = "open" if test.pvalue > 0.05 else "above" if test.statistic > 0 else "below"
        assert found.verdict == expected
        verdicts.add(expected)
    assert {"open", "above"} <= verdicts


def test_only_seeds_that_both_have_are_compared() -> None:
    found = paired({0: 1.0, 1: 2.0, 7: 100.0}, {0: 0.5, 1: 1.0, 3: -100.0})
    assert found is not None
    assert found.by_seed == {0: 0.5, 1: 1.0}
    assert found.mean == 0.75
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_one_seed_has_a_difference_and_no_interval() -> None:
    found = paired({4: 2.0}, {4: 1.5})
    assert found is not None
    assert (found.mean, found.low, found.high, found.verdict) == (0.5, None, None, "one seed")


def test_equal_differences_have_an_interval_of_no_width() -> None:
    found = of_differences({0: 0.25, 1: 0.25, 2: 0.25})
    assert (found.low, found.high, found.verdict) == (0.25, 0.25, "above")


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    draws = rng.normal(0.3, 2.0, (2000, 4))
    found = [of_differences(dict(enumerate(map(float, each)))) for each in draws]
    covered = np.mean(
        [each.low <= 0.3 <= each.high for each in found if each.low is not None and each.high is not None]
    )
    assert abs(covered - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)


def test_mean_is_over_seeds() -> None:
    assert mean({3: 1.0, 5: 2.0}) == 1.5
