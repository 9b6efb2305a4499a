"""The bench measures what it says, on small arrays."""

from __future__ import annotations

import numpy as np

from shared.wire.flower import to_record
from simulation.bench import aggregate
from simulation.bench.aggregate import SHAPES, add_ours, add_plainly, empty_sum, measure_peak, measure_time, replies

SMALL = {"a.weight": (5, 7), "b.bias": (3,)}


def test_it_has_25_million_values() -> None:
    assert abs(sum(int(np.prod(shape)) for shape in SHAPES.values()) / 25e6 - 1) < 0.01


def test_ours_and_the_rival_compute_the_same_mean() -> None:
    total, sums = empty_sum(SMALL, 4), {name: np.zeros(shape, np.float32) for name, shape in SMALL.items()}
    for i, content in enumerate(replies(4, SMALL)):
        add_ours(total, content, i)
        add_plainly(sums, content, 100 + i)
    mean = total.mean()
    for name in SMALL:
        np.testing.assert_allclose(mean[name], sums[name] / (100 + 101 + 102 + 103), rtol=1e-5)


def test_replies_differ_and_are_made_one_by_one() -> None:
    first, second = replies(2, SMALL)
    assert to_record(first).arrays["a.weight"] != to_record(second).arrays["a.weight"]


def test_both_measures_give_their_figures() -> None:
    assert measure_peak(2, SMALL)["peak_mb"] > 10
    assert all(seconds > 0 for seconds in measure_time(2, SMALL).values())


def test_a_case_holds_only_if_time_flatness_and_size_do() -> None:
    times = {"ours": 1.2, "rival": 1.0, "hash": 0.5}
    peaks = {10: 500.0, 50: 510.0}
    case = aggregate._case(50, times, peaks)
    assert case["holds"]
    assert case["memory_ratio"] == 1.02
    assert not aggregate._case(50, {**times, "ours": 1.4}, peaks)["holds"]
    assert not aggregate._case(50, times, {10: 400.0, 50: 500.0})["holds"]
    assert not aggregate._case(50, times, {10: 690.0, 50: 690.0})["holds"]
