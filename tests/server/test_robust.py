"""Robust aggregation against Flower's own, small cases by hand, and what a liar may do to it."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.strategies.robust import Kind, aggregate, krum_scores, median, trimmed_mean
from shared.errors import DataError
from shared.types import Arrays

KINDS: tuple[Kind, ...] = get_args(Kind)
ENHANCER, DECODER, DIAGNOSIS = "enhancer.w", "recogniser.up.w", "recogniser.diagnosis_head.w"


def f32(values: Any) -> npt.NDArray[np.float32]:
    return np.asarray(values, np.float32)


def updates_of(sites: int, seed: int = 0) -> dict[str, Arrays]:
    rng = np.random.default_rng(seed)
    return {
        f"site{i}": {
            ENHANCER: rng.normal(size=(3, 4)).astype(np.float32),
            "recogniser.down.w": rng.normal(size=5).astype(np.float32),
        }
        for i in range(sites)
    }


def flat(arrays: Arrays) -> npt.NDArray[np.float32]:
    return np.concatenate([values.reshape(-1) for values in arrays.values()])


@pytest.mark.parametrize(("sites", "malicious"), [(7, 2), (10, 3), (11, 1)])
def test_all_four_agree_with_flowers(sites: int, malicious: int) -> None:
    from flwr.common import ArrayRecord, MetricRecord, RecordDict
    from flwr.server.strategy.aggregate import aggregate_krum, aggregate_median, aggregate_trimmed_avg
    from flwr.serverapp.strategy.multikrum import select_multikrum

    updates = updates_of(sites)
    results = [(list(update.values()), 1) for update in updates.values()]
    contents = [
        RecordDict({"arrays": ArrayRecord(list(update.values())), "metrics": MetricRecord({"i": i})})
        for i, update in enumerate(updates.values())
    ]
    expected: dict[Kind, Any] = {
        "median": aggregate_median(results),
        "trimmed_mean": aggregate_trimmed_avg(results, (malicious + 0.5) / sites),  # int(share * n) is what is cut
        "krum": aggregate_krum(results, malicious, 0),
        "multi_krum": aggregate_krum(results, malicious, sites - malicious),
    }
    for kind, arrays in expected.items():
        ours, record = aggregate(updates, kind, malicious)
        for values, theirs in zip(ours.values(), arrays, strict=True):
            np.testing.assert_allclose(values, theirs, atol=1e-6)
        if "krum" in kind:
            kept = select_multikrum(contents, malicious, len(record["chosen"]))
            assert sorted(f"site{content['metrics']['i']}" for content in kept) == record["chosen"]


def test_the_median_of_an_even_number_lies_between_the_two_in_the_middle() -> None:
    assert median(f32([[1], [2], [4], [100]]))[0] == 3


def test_the_trimmed_mean_leaves_out_as_many_at_either_end() -> None:
    assert trimmed_mean(f32([[-50], [1], [2], [6], [900]]), 1)[0] == 3
    assert trimmed_mean(f32([[1], [2], [6]]), 0)[0] == 3


def test_krums_scores_are_the_sums_over_the_nearest() -> None:
    points = np.array([0.0, 1.0, 3.0, 4.0, 50.0])  # n = 5, f = 1: the two nearest others
    scores = krum_scores(np.square(points[:, None] - points[None]), 1)
    np.testing.assert_array_equal(scores, [1 + 9, 1 + 4, 4 + 1, 1 + 9, 46**2 + 47**2])


def test_krum_takes_the_centre_and_multi_krum_drops_the_far_one() -> None:
    updates = {f"s{i}": {ENHANCER: f32([x])} for i, x in enumerate([0, 1, 2.5, 4, 50])}
    result, record = aggregate(updates, "krum", 1)
    assert record["chosen"] == ["s1"]
    assert result[ENHANCER][0] == 1
    result, record = aggregate(updates, "multi_krum", 1)
    assert record["dropped"] == ["s4"]
    assert result[ENHANCER][0] == f32(7.5 / 4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_arrival_does_not_matter_and_nothing_is_changed(kind: Kind) -> None:
    updates = updates_of(9)
    before = {site: {name: values.copy() for name, values in update.items()} for site, update in updates.items()}
    result, record = aggregate(updates, kind, 2)
    turned, record_turned = aggregate(dict(reversed(updates.items())), kind, 2)
    assert list(result) == list(turned)
    assert record == record_turned
    for name in result:
        np.testing.assert_array_equal(result[name], turned[name])
        assert all((updates[site][name] == before[site][name]).all() for site in updates)


@settings(max_examples=60, deadline=None)
@given(
    malicious=st.integers(1, 3),
    lies=st.lists(st.sampled_from([-1e30, -1e4, -1.0, 0.0, 0.5, 3.0, 1e30]), min_size=3, max_size=3),
    seed=st.integers(0, 1000),
)
def test_as_many_liars_as_are_told_never_move_it_out_of_the_honest_range(
    malicious: int, lies: list[float], seed: int
) -> None:
    updates = updates_of(2 * malicious + 3, seed)
    honest = np.stack([flat(updates[site]) for site in list(updates)[malicious:]])
    for site, lie in zip(list(updates)[:malicious], lies, strict=False):
        updates[site] = {name: np.full_like(values, lie) for name, values in updates[site].items()}
    for kind in KINDS[:2]:
        moved = flat(aggregate(updates, kind, malicious)[0])
        assert (moved >= honest.min(axis=0) - 1e-6).all()
        assert (moved <= honest.max(axis=0) + 1e-6).all()
    # Krum: the chosen is as near to an honest one as the honest ones are to the others at most (n - f - 2 - f >= 1).
    chosen = flat(aggregate(updates, "krum", malicious)[0]).astype(np.float64)
    spread = max(float(np.linalg.norm(a - b)) for a in honest for b in honest)
    count = len(updates) - malicious - 2
    assert min(float(np.linalg.norm(chosen - one)) for one in honest) <= spread * count**0.5 + 1e-3


def test_one_liar_more_than_told_breaks_the_trimmed_mean_and_one_is_enough_for_the_plain_one() -> None:
    updates = {f"s{i}": {ENHANCER: f32([0])} for i in range(5)}
    updates["s0"] = {ENHANCER: f32([1e6])}
    assert np.mean([update[ENHANCER][0] for update in updates.values()]) > 1e5
    assert aggregate(updates, "trimmed_mean", 1)[0][ENHANCER][0] == 0
    updates["s1"] = {ENHANCER: f32([1e6])}
    assert aggregate(updates, "trimmed_mean", 1)[0][ENHANCER][0] > 1e5


def parts(sites: int) -> dict[str, Arrays]:
    return {f"s{i}": {name: f32([i + 1]) for name in (ENHANCER, DECODER, DIAGNOSIS, "prior.map")} for i in range(sites)}


def test_a_part_goes_over_the_sites_that_trained_it() -> None:
    images = {f"s{i}": {"decoder": int(i < 3), "diagnosis": 5 * (i == 4), "prior": 1} for i in range(5)}
    result, record = aggregate(parts(5), "median", 1, images=images)
    assert result[ENHANCER][0] == 3
    assert result[DECODER][0] == 2
    assert result["prior.map"][0] == 3
    assert result[DIAGNOSIS][0] == 0, "one site trained it: it might be the liar"
    assert record["unmoved"] == ["diagnosis"]


def test_krum_averages_a_part_over_the_chosen_that_trained_it() -> None:
    updates = parts(5)
    updates["s4"][ENHANCER][:] = 1e6
    images = {f"s{i}": {"decoder": int(i < 2), "diagnosis": int(i == 4), "prior": 1} for i in range(5)}
    result, record = aggregate(updates, "multi_krum", 1, images=images)
    assert record["dropped"] == ["s4"]
    assert record["unmoved"] == ["diagnosis"]
    assert result[DECODER][0] == 1.5
    assert result[ENHANCER][0] == 2.5
    assert result[DIAGNOSIS][0] == 0


def test_the_mean_mask_map_is_no_distance() -> None:
    updates = {f"s{i}": {ENHANCER: f32([i]), "prior.map": f32([1e6 * (i == 2)])} for i in range(5)}
    assert aggregate(updates, "krum", 1)[1]["chosen"] == ["s1"]  # 2 lies in the centre as well; the first name wins


def test_the_record_tells_how_far_each_site_is_from_the_result() -> None:
    updates = {name: {ENHANCER: f32(xy)} for name, xy in {"a": [3, 4], "b": [6, 8], "c": [-3, -4]}.items()}
    _, record = aggregate(updates, "median", 1)
    assert record["distances"] == {"a": pytest.approx(0), "b": pytest.approx(5), "c": pytest.approx(10)}


@pytest.mark.parametrize(("kind", "fewest"), [("median", 7), ("trimmed_mean", 7), ("krum", 9), ("multi_krum", 9)])
def test_too_few_updates_are_refused_with_the_number_that_it_takes(kind: Kind, fewest: int) -> None:
    aggregate(updates_of(fewest), kind, 3)
    with pytest.raises(DataError, match=f"needs {fewest} updates, got {fewest - 1}"):
        aggregate(updates_of(fewest - 1), kind, 3)
