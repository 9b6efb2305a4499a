"""The streamed sum is the weighted mean, in any order, and a refused update is not in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from server import collect
from server.collect import WeightedSum
from shared.errors import DataError
from shared.types import Arrays, Update
from shared.wire.arrays import Half, decode_half, encode_half
from shared.wire.messages import ReceivedUpdate, read_answer, update_record

SHAPES = {"enhancer.a": (3, 5), "recogniser.b": (7,), "recogniser.c": ()}


def arrays(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}


def received(
    site: str, values: Arrays, *, round: int = 2, num_samples: int = 10, added: Arrays | None = None
) -> ReceivedUpdate:
    update = read_answer(update_record(Update(site, round, num_samples, values, added=added or {})))
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
        (received("b", arrays(3), num_samples=0), "expected 1 to 100 samples, got 0"),
        (received("b", arrays(3), num_samples=101), "expected 1 to 100 samples, got 101"),
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
