"""The streamed sum is the weighted mean of every part, in any order, and a refused update is not in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server import collect
from server.collect import RobustSum, WeightedSum
from shared.config import StrategyConfig
from shared.errors import DataError
from shared.types import Arrays, Update
from shared.weights import PARTS, part_of
from shared.wire.arrays import Half, decode_half, encode_half
from shared.wire.messages import ReceivedUpdate, read_answer, update_record

SHAPES = {"enhancer.a": (3, 5), "recogniser.b": (7,), "recogniser.c": ()}


def arrays(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}


def received(
    site: str,
    values: Arrays,
    *,
    round: int = 2,
    num_samples: int = 10,
    added: Arrays | None = None,
    images: Mapping[str, int] | None = None,
) -> ReceivedUpdate:
    """Every image moved the encoder, which is all that the weights of the first half of this file have."""
    images = {"encoder": num_samples} if images is None else images
    told = Update(site, round, num_samples, values, added=added or {}, images=dict.fromkeys(PARTS, 0) | images)
    update = read_answer(update_record(told))
    assert isinstance(update, ReceivedUpdate)
    return update


def empty() -> WeightedSum:
    return WeightedSum(arrays(0), round=2, max_samples=100)


def test_the_mean_is_weighted_by_samples() -> None:
    total = empty()
    samples = {"a": 1, "b": 10, "c": 100}
    for seed, (site, count) in enumerate(samples.items()):
        total.add(received(site, arrays(seed), num_samples=count), site=site)
    mean = total.mean()
    for name in SHAPES:
        expected = sum(n * arrays(i)[name].astype(np.float64) for i, n in enumerate(samples.values())) / 111
        np.testing.assert_allclose(mean[name], expected, rtol=1e-6)
        assert mean[name].dtype == np.float32
        assert mean[name].shape == SHAPES[name]


def test_equal_weights_ignore_the_samples() -> None:
    total = empty()
    total.add(received("a", arrays(1), num_samples=1), site="a", equal=True)
    total.add(received("b", arrays(2), num_samples=99), site="b", equal=True)
    for name, values in total.mean().items():
        np.testing.assert_allclose(values, (arrays(1)[name] + arrays(2)[name]) / 2, rtol=1e-6)


def test_the_order_of_arrival_disappears_in_the_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where values of very different size meet, which float32 sums would tell apart."""
    sites = [f"site-{i}" for i in range(40)]
    updates = {s: {n: v * np.float32(10.0 ** (i % 7 - 3)) for n, v in arrays(i).items()} for i, s in enumerate(sites)}
    means = []
    for order in (sites, sites[::-1], sorted(sites)):
        total = empty()
        for site in order:
            total.add(received(site, updates[site]), site=site)
        means.append(total.mean())
    for name in SHAPES:
        assert means[0][name].tobytes() == means[1][name].tobytes() == means[2][name].tobytes()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def mean() -> Arrays:
        total = empty()
        for i in range(3):
            total.add(received(f"s{i}", arrays(i), num_samples=i + 1), site=f"s{i}")
        return total.mean()

    whole = mean()
    monkeypatch.setattr(collect, "BLOCK", 4)
    for name, values in mean().items():
        assert values.tobytes() == whole[name].tobytes()


def with_value(value: float) -> Arrays:
    values = arrays(3)
    values["recogniser.b"][-1] = value  # in the last array that is looked at but one
    return values


def without(name: str) -> Arrays:
    return {key: value for key, value in arrays(3).items() if key != name}


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (received("a", arrays(3)), "expected a reply in the name of b, got one in the name of a"),
        (received("b", arrays(3), round=1), "expected an update of round 2, got one of round 1"),
        (received("b", arrays(3), num_samples=101), "expected 0 to 100 samples, got 101"),
        (replace(received("b", arrays(3)), num_samples=-1), "expected 0 to 100 samples, got -1"),
        (received("b", arrays(3), images={"encoder": 101}), "expected 0 to 100 images for the encoder, got 101"),
        (replace(received("b", arrays(3)), images={"encoder": -1}), "expected 0 to 100 images for the encoder, got -1"),
        (replace(received("b", arrays(3)), images={}), "expected images counted for the parts encoder; got none"),
        (received("b", without("enhancer.a")), "array 'enhancer.a' is missing"),
        (received("b", {**arrays(3), "x": np.ones(1, np.float32)}), "expected 3 arrays, got 4"),
        (received("b", {**arrays(3), "enhancer.a": np.ones((5, 3), np.float32)}), r"must have shape \[3, 5\], got"),
        (received("b", with_value(np.nan)), "array 'recogniser.b' holds values that are not finite"),
        (received("b", with_value(-np.inf)), "array 'recogniser.b' holds values that are not finite"),
        (replace(received("b", arrays(3)), arrays=dict.fromkeys(SHAPES, b"\x93NUMPY")), "is not the bytes of"),
    ],
)
def test_a_refused_update_is_told_why_and_leaves_the_sum_as_it_was(update: ReceivedUpdate, reason: str) -> None:
    total, expected = empty(), empty()
    for sum_ in (total, expected):
        sum_.add(received("a", arrays(1)), site="a")
    with pytest.raises(DataError, match=reason):
        total.add(update, site="b")
    for sum_ in (total, expected):
        sum_.add(received("c", arrays(2)), site="c")
    assert total.samples == expected.samples == {"a": 10, "c": 10}
    after, untouched = total.mean(), expected.mean()
    for name in SHAPES:
        assert after[name].tobytes() == untouched[name].tobytes()


def test_a_site_counts_once() -> None:
    total, once = empty(), empty()
    for sum_ in (total, once):
        sum_.add(received("a", arrays(1)), site="a")
    with pytest.raises(DataError, match="of round 2 was already received"):
        total.add(received("a", arrays(2)), site="a")
    assert total.mean()["enhancer.a"].tobytes() == once.mean()["enhancer.a"].tobytes()


# ------------------------------------------------------------------------------------------------- part by part

PARTED = {
    "enhancer.a": (3, 5),
    "recogniser.down.0.weight": (2, 3),
    "recogniser.up.0.weight": (4,),
    "recogniser.mask_head.bias": (),
    "recogniser.diagnosis_head.weight": (2, 2),
    "critic.c": (3,),
    "prior.map_KHW": (2, 2, 2),
}
PARTS_HERE = ("encoder", "decoder", "diagnosis", "prior")
PRIOR = np.array([[[0.5, 0.75], [1, 0.25]], [[0.5, 0.25], [0, 0.75]]], np.float32)


def incoming() -> Arrays:
    return {name: np.zeros(shape, np.float32) for name, shape in PARTED.items()} | {"prior.map_KHW": PRIOR}


def parted(seed: int) -> Arrays:
    """A site's differences; its own map is one of probabilities that add up to 1."""
    rng = np.random.default_rng(seed)
    values = {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in PARTED.items()}
    first_HW = rng.random((2, 2), dtype=np.float32)
    return values | {"prior.map_KHW": np.stack([first_HW, 1 - first_HW]) - PRIOR}


def parting() -> WeightedSum:
    return WeightedSum(incoming(), round=2, max_samples=100)


def counted(**images: int) -> dict[str, int]:
    return {**dict.fromkeys(PARTS_HERE, 10), **images}


def plain_mean(sites: list[tuple[Arrays, int, dict[str, int]]], *, equal: bool) -> Arrays:
    """The twin: value by value, in a loop, in float64."""
    mean: Arrays = {}
    for name, shape in PARTED.items():
        total, weights = np.zeros(shape, np.float64), 0.0
        for values, samples, images in sites:
            part = part_of(name)
            count = samples if part is None else images[part]
            weight = (1 if count else 0) if equal else count
            total = total + weight * values[name].astype(np.float64)
            weights += weight
        mean[name] = np.asarray(total / weights if weights else np.zeros(shape), np.float32)
    return mean


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_every_part_has_the_mean_over_the_sites_that_trained_it(equal: bool, seed: int) -> None:
    """Random labels: about half of the counts are 0, and in some of these rounds nobody trained a part."""
    rng = np.random.default_rng(seed)
    sites = []
    for i in range(5 if seed else 2):
        held = {part: int(rng.integers(0, 2) * rng.integers(1, 101)) for part in PARTS_HERE}
        sites.append((parted(100 * seed + i), int(rng.integers(0, 101)), held))
    total = parting()
    for i, (values, samples, images) in enumerate(sites):
        total.add(received(f"s{i}", values, num_samples=samples, images=images), site=f"s{i}", equal=equal)
    assert total.images == {f"s{i}": images for i, (_, _, images) in enumerate(sites)}
    mean, expected = total.mean(), plain_mean(sites, equal=equal)
    assert list(mean) == list(PARTED)
    for name in PARTED:
        np.testing.assert_allclose(mean[name], expected[name], rtol=1e-6, atol=1e-30)
        assert (mean[name].dtype, mean[name].shape) == (np.float32, PARTED[name])


@pytest.mark.filterwarnings("error")
def test_a_part_that_nobody_trained_stays_as_it_is() -> None:
    total = parting()
    for i in range(3):
        images = counted(decoder=0, prior=0)
        total.add(received(f"s{i}", parted(i), images=images), site=f"s{i}", equal=i == 1)
    for name, values in total.mean().items():
        assert values.any() == (part_of(name) not in ("decoder", "prior")), name


def test_a_site_without_any_label_and_without_a_sample_is_no_reason_to_refuse_the_others() -> None:
    total, alone = parting(), parting()
    total.add(received("none", parted(1), num_samples=0, images=dict.fromkeys(PARTS_HERE, 0)), site="none")
    for sum_ in (total, alone):
        sum_.add(received("both", parted(2), images=counted()), site="both")
    assert total.samples == {"none": 0, "both": 10}
    after, expected = total.mean(), alone.mean()
    assert all(after[name].tobytes() == expected[name].tobytes() for name in PARTED)


def test_what_a_site_sends_for_a_part_that_it_did_not_train_is_not_looked_at() -> None:
    """Not even a mask map that is none."""
    quiet, loud = parting(), parting()
    wild = {name: values * (1 if part_of(name) is None else 1000) for name, values in parted(1).items()}
    for sum_, values in ((quiet, parted(1)), (loud, wild)):
        sum_.add(received("a", values, images=dict.fromkeys(PARTS_HERE, 0)), site="a")
        sum_.add(received("b", parted(2), images=counted()), site="b")
    after, expected = loud.mean(), quiet.mean()
    assert all(after[name].tobytes() == expected[name].tobytes() for name in PARTED)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 100), st.integers(0, 2**32 - 1)), min_size=1, max_size=6), st.booleans())
def test_with_all_counts_equal_to_the_samples_the_mean_is_that_of_the_rule_before_to_the_bit(
    sites: list[tuple[int, int]], equal: bool
) -> None:
    """The rule before: one weight for all arrays of a site, and one sum of weights."""
    total, weights = parting(), 0.0
    sums = {name: np.zeros(shape, np.float64) for name, shape in PARTED.items()}
    for i, (count, seed) in enumerate(sites):
        values, weight = parted(seed), 1.0 if equal else float(count)
        images = dict.fromkeys(PARTS_HERE, count)
        total.add(received(f"s{i}", values, num_samples=count, images=images), site=f"s{i}", equal=equal)
        weights += weight
        for name in sums:
            sums[name] += weight * values[name].astype(np.float64)
    for name, values in total.mean().items():
        assert values.tobytes() == (sums[name] / weights).astype(np.float32).tobytes(), name


def with_nan(name: str) -> Arrays:
    values = parted(3)
    values[name].reshape(-1)[-1] = np.nan
    return values


def with_map(map_KHW: np.ndarray) -> Arrays:
    return parted(3) | {"prior.map_KHW": (map_KHW - PRIOR).astype(np.float32)}


ZERO_DECODER = counted(decoder=0)
LACKING = {name: values for name, values in parted(3).items() if name != "recogniser.mask_head.bias"}


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (received("b", parted(3), images=counted(decoder=2**40)), "0 to 100 images for the decoder, got 1099511627776"),
        (
            replace(received("b", parted(3)), images={"encoder": 1, "diagnosis": 1, "prior": 1}),
            "got diagnosis, encoder, prior",
        ),
        (replace(received("b", parted(3)), images=counted(critic=1)), "got critic, decoder, diagnosis, encoder, prior"),
        (replace(received("b", parted(3)), images={}), "parts decoder, diagnosis, encoder, prior; got none"),
        (received("b", with_nan("recogniser.up.0.weight"), images=ZERO_DECODER), "up.0.weight' holds values that are"),
        (received("b", with_nan("prior.map_KHW"), images=counted(prior=0)), "map_KHW' holds values that are not fin"),
        (received("b", LACKING, images=ZERO_DECODER), "array 'recogniser.mask_head.bias' is missing"),
        (received("b", with_map(PRIOR * 0 + 1.01), images=counted()), "array 'prior.map_KHW' does not lead to prob"),
        (received("b", with_map(PRIOR * 0 - 0.01), images=counted()), "array 'prior.map_KHW' does not lead to prob"),
        (received("b", with_map(PRIOR - 3e38), images=counted(prior=1)), "array 'prior.map_KHW' does not lead to prob"),
        (
            received("b", with_map(PRIOR), round=1, images=counted()),
            "expected an update of round 2, got one of round 1",
        ),
        (received("a", parted(3), images=counted()), "expected a reply in the name of b, got one in the name of a"),
    ],
)
def test_a_lie_about_a_part_is_refused_and_leaves_every_sum_as_it_was(update: ReceivedUpdate, reason: str) -> None:
    total, expected = parting(), parting()
    for sum_ in (total, expected):
        sum_.add(received("a", parted(1), images=counted(decoder=0)), site="a")
    with pytest.raises(DataError, match=reason):
        total.add(update, site="b")
    for sum_ in (total, expected):
        sum_.add(received("c", parted(2), images=counted(diagnosis=3)), site="c")
    assert total.images == expected.images
    after, untouched = total.mean(), expected.mean()
    assert all(after[name].tobytes() == untouched[name].tobytes() for name in PARTED)


def test_a_replayed_update_is_refused_although_its_counts_are_in_order() -> None:
    total, once = parting(), parting()
    update = received("a", parted(1), images=counted())
    for sum_ in (total, once):
        sum_.add(update, site="a")
    with pytest.raises(DataError, match="an update of round 2 was already received"):
        total.add(update, site="a")
    after, expected = total.mean(), once.mean()
    assert all(after[name].tobytes() == expected[name].tobytes() for name in PARTED)


def test_rounding_at_the_ends_of_a_mean_mask_map_is_no_reason_to_refuse_it() -> None:
    total = parting()
    total.add(received("a", with_map(PRIOR.round() * 1.0005 - 0.0002), images=counted()), site="a")
    moved = PRIOR + total.mean()["prior.map_KHW"]
    np.testing.assert_allclose(moved, PRIOR.round(), atol=1e-3)


# -------------------------------------------------------------------------------------------- what recognition added


def added(seed: int) -> Arrays:
    rng = np.random.default_rng(1000 + seed)
    return {"enhancer.a": np.asarray(rng.standard_normal(SHAPES["enhancer.a"]) * 10.0 ** (seed % 9 - 6), np.float32)}


def promoting() -> WeightedSum:
    return WeightedSum(arrays(0), round=2, max_samples=100, promotes=True)


@pytest.mark.parametrize("equal", [False, True])
def test_both_streamed_sums_are_the_means_over_all_sites(equal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "BLOCK", 4)
    total = promoting()
    samples = [1 + 7 * i for i in range(12)]
    for i, count in enumerate(samples):
        total.add(received(f"s{i}", arrays(i), num_samples=count, added=added(i)), site=f"s{i}", equal=equal)
    weights = np.array([1.0] * 12 if equal else samples) / (12 if equal else sum(samples))
    apart, mean = total.added_mean(), total.mean()
    assert list(apart) == ["enhancer.a"]
    assert list(mean) == list(SHAPES)
    for name in SHAPES:
        expected = sum(w * arrays(i)[name].astype(np.float64) for i, w in enumerate(weights))
        np.testing.assert_allclose(mean[name], expected, rtol=1e-5)
    decoded = []
    for i in range(12):
        half = encode_half("enhancer.a", added(i)["enhancer.a"])
        decoded.append(half.scale * decode_half("enhancer.a", half, SHAPES["enhancer.a"]).astype(np.float64))
    expected = sum(w * values for w, values in zip(weights, decoded, strict=True))
    np.testing.assert_allclose(apart["enhancer.a"], expected, rtol=1e-6)
    exact = sum(w * added(i)["enhancer.a"].astype(np.float64) for i, w in enumerate(weights))
    bound = sum(w * np.abs(added(i)["enhancer.a"]).max() for i, w in enumerate(weights)) * 2**-11
    assert np.abs(apart["enhancer.a"] - exact).max() <= bound


def test_the_mean_is_the_same_bits_whether_a_part_of_it_comes_apart_or_not() -> None:
    plain, apart = empty(), promoting()
    for i in range(5):
        plain.add(received(f"s{i}", arrays(i)), site=f"s{i}")
        apart.add(received(f"s{i}", arrays(i), added=added(i)), site=f"s{i}")
    one, other = plain.mean(), apart.mean()
    assert all(one[name].tobytes() == other[name].tobytes() for name in SHAPES)


def lying(**halves: Half) -> ReceivedUpdate:
    return replace(received("b", arrays(3)), added={name.replace("__", "."): half for name, half in halves.items()})


GOOD = encode_half("enhancer.a", added(3)["enhancer.a"])
LARGE = Half(1.0, encode_half("x", np.ones((1000, 1000), np.float32)).data)


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (received("b", arrays(3)), "lacks what recognition added, which strategy.promotion asks for"),
        (lying(recogniser__b=GOOD), "what recognition added to 'enhancer.a' is missing"),
        (lying(enhancer__a=GOOD, recogniser__b=GOOD), "arrays that are not the enhancer's"),
        (lying(enhancer__a=LARGE), r"is not the bytes of a float16 array of shape \[3, 5\]"),
        (lying(enhancer__a=Half(GOOD.scale, GOOD.data[:-1])), "is not the bytes of a float16 array"),
        (lying(enhancer__a=Half(GOOD.scale, GOOD.data[:-2] + b"\x00\x7c")), "not finite, or beyond its scale"),
        (lying(enhancer__a=Half(GOOD.scale, GOOD.data[:-2] + b"\x01\xfe")), "not finite, or beyond its scale"),
        (lying(enhancer__a=Half(-1.0, GOOD.data)), "the scale of array 'enhancer.a' must be a number from 0"),
        (lying(enhancer__a=Half(1e300, GOOD.data)), "the scale of array 'enhancer.a' must be a number from 0"),
    ],
)
def test_a_lie_about_what_was_added_is_refused_and_leaves_both_sums_as_they_were(
    update: ReceivedUpdate, reason: str
) -> None:
    total, expected = promoting(), promoting()
    for sum_ in (total, expected):
        sum_.add(received("a", arrays(1), added=added(1)), site="a")
    with pytest.raises(DataError, match=reason):
        total.add(update, site="b")
    assert total.samples == {"a": 10}
    assert total.added_mean()["enhancer.a"].tobytes() == expected.added_mean()["enhancer.a"].tobytes()
    after, untouched = total.mean(), expected.mean()
    assert all(after[name].tobytes() == untouched[name].tobytes() for name in SHAPES)


def test_what_was_not_asked_for_is_refused() -> None:
    with pytest.raises(DataError, match="which strategy.promotion=none does not ask for"):
        empty().add(received("b", arrays(3), added=added(3)), site="b")


# ---------------------------------------------------------------------------------- what updates look like, and bounds


def robust(kind: str, malicious: int, **more: Any) -> RobustSum:
    strategy = StrategyConfig(kind="fedavg", robust=kind, malicious=malicious, **more)  # type: ignore[arg-type]
    return RobustSum(arrays(0), strategy=strategy, round=2, max_samples=100)


def norm_of(values: Arrays) -> float:
    return float(np.sqrt(sum(np.square(v, dtype=np.float64).sum() for v in values.values())))


def test_norms_and_cosines_to_the_others_are_those_of_the_whole_updates() -> None:
    total = empty()
    updates = {site: arrays(seed) for seed, site in enumerate("abc", start=1)}
    updates["c"] = {name: -3 * values for name, values in updates["a"].items()}
    for site, values in updates.items():
        total.add(received(site, values), site=site)
    seen = total.record()["sites_updates"]
    flat = {
        site: np.concatenate([v.ravel() for v in values.values()]).astype(float) for site, values in updates.items()
    }
    for site, values in updates.items():
        others = sum(flat[other] for other in flat if other != site)
        cosine = flat[site] @ others / np.linalg.norm(flat[site]) / np.linalg.norm(others)
        assert seen[site]["norm"] == pytest.approx(norm_of(values), rel=1e-5)
        assert seen[site]["cosine"] == pytest.approx(cosine, abs=1e-5)
    assert seen["c"]["cosine"] < 0


def test_cosines_of_large_updates_come_from_values_at_even_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "SAMPLE", 1000)
    rng = np.random.default_rng(0)
    weights: Arrays = {"enhancer.a": np.zeros((301, 100), np.float32), "recogniser.b": np.zeros(7, np.float32)}
    common = {name: rng.standard_normal(values.shape).astype(np.float32) for name, values in weights.items()}
    total = WeightedSum(weights, round=2, max_samples=100)
    for site in "abcd":
        own = {n: v + rng.standard_normal(v.shape).astype(np.float32) for n, v in common.items()}
        total.add(received(site, own), site=site)
    seen = total.record()["sites_updates"]
    expected = 1 / np.sqrt(2) / np.sqrt(1 + 1 / 3)  # signal and noise of equal length; the others' noise is averaged
    assert all(site["cosine"] == pytest.approx(expected, abs=0.05) for site in seen.values())


def test_an_update_beyond_the_norm_bound_is_refused_and_adds_nothing() -> None:
    values = arrays(1)
    length = norm_of(values)
    total = WeightedSum(arrays(0), round=2, max_samples=100, norm_bound=length * (1 - 1e-3))
    with pytest.raises(DataError, match=r"expected an update of L2 norm .* \(strategy.norm_bound\), got"):
        total.add(received("a", values), site="a")
    assert total.samples == total.norms == {}
    within = {name: value * np.float32(0.99) for name, value in values.items()}
    total.add(received("a", within), site="a")
    np.testing.assert_allclose(total.mean()["enhancer.a"], within["enhancer.a"], rtol=1e-6)


def test_a_bound_is_kept_where_squares_overflow_float32() -> None:
    huge = {name: np.full(shape, 1e30, np.float32) for name, shape in SHAPES.items()}
    total = WeightedSum(arrays(0), round=2, max_samples=100, norm_bound=1.0)
    with pytest.raises(DataError, match=r"got 4.796e\+30"):
        total.add(received("a", huge), site="a")


def test_robust_aggregation_sees_every_checked_update_and_tells_what_it_did() -> None:
    total = robust("median", 1)
    for seed, site in enumerate("abc"):
        total.add(received(site, arrays(seed)), site=site)
    lie = {name: 1000 * values for name, values in arrays(9).items()}
    total.add(received("d", lie), site="d")
    total.add(received("e", arrays(7)), site="e")
    mean = total.mean()
    for name in SHAPES:
        stacked = np.stack([*(arrays(seed)[name] for seed in range(3)), lie[name], arrays(7)[name]])
        np.testing.assert_allclose(mean[name], np.median(stacked, axis=0), rtol=1e-6)
    told = total.record()
    assert told["robust"]["kind"] == "median"
    assert told["sites_updates"]["d"]["norm"] > 100


def test_a_site_that_drew_nothing_is_not_asked_for_its_opinion() -> None:
    total = robust("multi_krum", 1)
    for seed, site in enumerate("abcde"):
        total.add(received(site, arrays(seed)), site=site)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    total.add(received("idle", zeros, num_samples=0), site="idle")
    total.mean()
    told = total.record()["robust"]
    assert "idle" not in (*told["chosen"], *told["dropped"])


def test_a_refused_update_is_not_kept_for_the_robust_mean() -> None:
    total = robust("median", 1, norm_bound=1000.0)
    for seed, site in enumerate("abc"):
        total.add(received(site, arrays(seed)), site=site)
    with pytest.raises(DataError, match="norm_bound"):
        total.add(received("d", {name: 1e4 * values for name, values in arrays(3).items()}), site="d")
    for name, values in total.mean().items():
        np.testing.assert_allclose(values, np.median([arrays(seed)[name] for seed in range(3)], axis=0), rtol=1e-6)
