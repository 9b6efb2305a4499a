"""Rounding to integers modulo 2^40 and back: laws, bounds, and sums that must not wrap around."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError, DataError
from shared.secagg.fixed_point import (
    BITS,
    BLOCK,
    LARGEST,
    add_packed,
    grid_for,
    mean,
    pack,
    quantise,
    unpack,
)

GRID = grid_for(4.0, 1000)
MODULO = 2**BITS


def arrays(**values: object) -> dict[str, np.ndarray]:
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=20),
    st.integers(1, 1000),
    st.sampled_from([0.5, 4.0, 1000.0]),
)
def test_one_site_alone_comes_back_within_half_a_step(values: list[float], weight: int, scale: float) -> None:
    grid = grid_for(4.0 * scale, 1000)
    held = arrays(a=np.asarray(values) * scale)
    back = mean(quantise(held, {"a": weight}, grid), {"a": held["a"].shape}, {"a": weight}, grid)["a"]
    rounding = np.spacing(np.abs(held["a"]))
    assert (np.abs(back.astype(np.float64) - held["a"]) <= grid.step / 2 * (1 + 1e-6) + rounding).all()


def test_integers_are_those_of_exact_arithmetic() -> None:
    values, weight = [0.0, 1.0, -1.0, 4.0, -4.0, 0.3], 3
    got = quantise(arrays(a=values), {"a": weight}, GRID)
    wanted = [weight * round(float(np.float32(value)) / GRID.step) % MODULO for value in values]
    assert got.tolist() == wanted
    assert got.dtype == np.uint64


def test_arrays_follow_one_another_in_their_order_each_by_its_weight() -> None:
    grid = grid_for(4.0, 10)
    held = {"b": np.full((2, 2), 1.0, np.float32), "a": np.full(3, -1.0, np.float32), "c": np.full((), 2, np.float32)}
    one = round(1.0 / grid.step)
    vector = quantise(held, {"b": 2, "a": 5, "c": 0}, grid)
    assert vector.tolist() == [2 * one] * 4 + [-5 * one % MODULO] * 3 + [0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 4.001, -4.001])
@pytest.mark.parametrize("where", [0, BLOCK, BLOCK + 3])
def test_a_value_beyond_the_range_is_told_by_array_and_never_by_value(bad: float, where: int) -> None:
    held = arrays(fine=[1.0], wrong=np.zeros(BLOCK + 5))
    held["wrong"][where] = bad
    with pytest.raises(DataError, match="array 'wrong'.*secagg.range=4") as caught:
        quantise(held, {"fine": 1, "wrong": 1}, GRID)
    assert "4.001" not in str(caught.value)


@pytest.mark.parametrize("values", [(9.5, -14.25, 3.0), (-1e6, 1e6, 0.5), (4.0, 4.0, 4.0), (4.0, 4.0, 5.0)])
def test_shares_that_wrap_around_add_up_to_what_their_sum_wraps_to(values: tuple[float, ...]) -> None:
    """By exact integers; the sum itself comes back where it lies within three times the range."""
    grid = grid_for(4.0, 3)
    vectors = [quantise(arrays(a=[value]), {"a": 1}, grid, wraps=True) for value in values]
    total = sum(vectors, start=np.zeros(1, np.uint64)) % np.uint64(MODULO)
    assert int(total[0]) == sum(round(value / grid.step) for value in values) % MODULO
    back = 3 * float(mean(total, {"a": (1,)}, {"a": 3}, grid)["a"][0])
    assert (back == pytest.approx(sum(values), rel=1e-6)) == (abs(sum(values)) <= 12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_no_integer_is_refused_where_shares_wrap_around(bad: float) -> None:
    with pytest.raises(DataError, match="array 'a'"):
        quantise(arrays(a=[bad]), {"a": 1}, GRID, wraps=True)


@pytest.mark.parametrize("weight", [-1, 1001])
def test_a_weight_that_the_grid_was_not_made_for_is_told(weight: int) -> None:
    with pytest.raises(DataError, match="weight of array 'a'"):
        quantise(arrays(a=[1.0]), {"a": weight}, GRID)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sum_does_not_wrap_around(sign: int) -> None:
    """All sites at the range, with all of the total weight."""
    for total_weight in (1, 3, 1000, 40_000, 2**28):
        grid = grid_for(4.0, total_weight)
        held = arrays(a=[sign * 4.0])
        split = [total_weight // 3, total_weight - total_weight // 3]
        total = sum(int(quantise(held, {"a": weight}, grid)[0]) for weight in split) % MODULO
        back = mean(np.array([total], np.uint64), {"a": (1,)}, {"a": total_weight}, grid)["a"]
        assert abs(float(back[0]) - sign * 4.0) <= grid.step
        assert grid.levels * total_weight <= LARGEST


def test_a_grid_too_coarse_is_refused_when_it_is_made() -> None:
    grid_for(4.0, LARGEST >> 10)
    for range_, weight in ((4.0, (LARGEST >> 10) + 1), (4.0, 0)):
        with pytest.raises(ConfigError, match="total weight"):
            grid_for(range_, weight)
    for range_ in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=r"secagg\.range"):
            grid_for(range_, 1)


def test_packing_takes_five_bytes_a_value_low_halves_first() -> None:
    vector = np.array([0x0102030405, 0xFFFFFFFFFF], np.uint64)
    assert pack(vector).hex() == "05040302" + "ffffffff" + "01" + "ff"
    assert unpack(pack(vector), 2).tolist() == vector.tolist()


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 3])
def test_packing_is_undone(count: int) -> None:
    vector = np.random.default_rng(0).integers(0, MODULO, count, dtype=np.uint64)
    data = pack(vector)
    assert len(data) == 5 * count
    np.testing.assert_array_equal(unpack(data, count), vector)


def test_packed_vectors_add_in_place_modulo_2_to_the_40() -> None:
    rng = np.random.default_rng(0)
    vectors = [rng.integers(0, MODULO, BLOCK + 9, dtype=np.uint64) for _ in range(300)]
    total = np.zeros(BLOCK + 9, np.uint64)
    for vector in vectors:
        add_packed(total, pack(vector))
    wanted = np.sum(np.stack(vectors[:300]) & np.uint64(MODULO - 1), axis=0, dtype=np.uint64) % np.uint64(MODULO)
    np.testing.assert_array_equal(total, wanted)


@pytest.mark.parametrize("length", [0, 14, 16])
def test_bytes_of_another_length_are_refused_and_nothing_is_added(length: int) -> None:
    total = np.arange(3, dtype=np.uint64)
    with pytest.raises(DataError, match="expected a masked update of 15 bytes"):
        add_packed(total, b"\1" * length)
    assert total.tolist() == [0, 1, 2]


def test_an_array_that_nobody_trained_has_mean_0() -> None:
    got = mean(np.array([5, 7], np.uint64), {"a": (1,), "b": (1, 1)}, {"a": 0, "b": 1}, GRID)
    assert got["a"].tolist() == [0.0]
    assert got["b"].shape == (1, 1)
    assert got["b"].dtype == np.float32
    assert got["b"][0, 0] == np.float32(7 * GRID.step)


def test_a_total_weight_beyond_the_grid_is_refused_because_the_sum_may_have_wrapped() -> None:
    with pytest.raises(DataError, match="total weight"):
        mean(np.zeros(1, np.uint64), {"a": (1,)}, {"a": 1001}, GRID)
