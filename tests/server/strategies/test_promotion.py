"""The federated gate against a loop over single values, its guarantee on random vectors, and what it leaves alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.strategies.promotion import Kind, promoted
from shared.types import Arrays

KINDS: Sequence[Kind] = ("global", "layer", "projected")
SHAPES = {"enhancer.a": (2, 3), "enhancer.b": (4,), "enhancer.c": (), "recogniser.d": (3,), "critic.e": (2,)}


def parts(seed: int, lean: float = 0.0) -> tuple[Arrays, Arrays]:
    """Total and added means; with `lean` below 0 the added part works against the main one."""
    rng = np.random.default_rng(seed)
    total = {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}
    added = {
        name: np.asarray(0.4 * rng.standard_normal(values.shape) + lean * values, np.float32)
        for name, values in total.items()
        if name.startswith("enhancer.")
    }
    return total, added


def naive(total: Arrays, added: Arrays, kind: str) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Value by value in Python's floats."""
    a = {name: [float(v) for v in added[name].reshape(-1)] for name in added}
    m = {name: [float(t) - v for t, v in zip(total[name].reshape(-1), a[name], strict=True)] for name in added}
    dots = {name: math.fsum(x * y for x, y in zip(a[name], m[name], strict=True)) for name in added}
    dot = math.fsum(dots.values())
    square_m = math.fsum(y * y for name in m for y in m[name])
    square_a = math.fsum(x * x for name in a for x in a[name])
    result = {name: [float(v) for v in values.reshape(-1)] for name, values in total.items()}
    opened = []
    for name in added:
        is_open = (dots[name] if kind == "layer" else dot) > 0
        opened.append(is_open)
        if kind == "projected":
            share = min(dot, 0) / square_m
            result[name] = [y + x - share * y for x, y in zip(a[name], m[name], strict=True)]
        else:
            result[name] = [y + x if is_open else y for x, y in zip(a[name], m[name], strict=True)]
    return result, {
        "open": sum(opened) / len(opened),
        "cosine": dot / math.sqrt(square_a * square_m),
        "added_share": math.sqrt(square_a / square_m),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_every_kind_is_its_formula(kind: Kind, seed: int) -> None:
    total, added = parts(seed)
    got, record = promoted(total, added, kind)
    values, numbers = naive(total, added, kind)
    assert list(got) == list(total)
    for name in total:
        assert got[name].dtype == np.float32
        assert got[name].shape == total[name].shape
        np.testing.assert_allclose(got[name].reshape(-1), values[name], rtol=1e-6, atol=1e-7)
    assert (record.open, record.cosine, record.added_share) == pytest.approx(tuple(numbers.values()))


@given(
    st.sampled_from(KINDS),
    st.integers(0, 2**32 - 1),
    st.floats(-3, 3),
    st.sampled_from([1e-18, 1e-6, 1.0, 1e12]),
)
def test_recognition_never_turns_the_federation_against_the_main_losses(
    kind: Kind, seed: int, lean: float, size: float
) -> None:
    """<Delta, M> >= |M|^2, over all of the enhancer and with `layer` in every array."""
    total, added = parts(seed, lean)
    total = {name: values * np.float32(size) for name, values in total.items()}
    added = {name: values * np.float32(size) for name, values in added.items()}
    got, _ = promoted(total, added, kind)
    main = {name: total[name].astype(np.float64) - added[name] for name in added}
    products = {name: float(np.sum(got[name] * main[name])) for name in main}
    squares = {name: float(np.sum(main[name] ** 2)) for name in main}
    lengths = {name: float(np.abs(got[name] * main[name]).sum()) for name in main}
    groups = [[name] for name in main] if kind == "layer" else [list(main)]
    for group in groups:
        rounding = 1e-6 * sum(lengths[name] + squares[name] for name in group)
        assert sum(products[name] for name in group) >= sum(squares[name] for name in group) - rounding


@pytest.mark.parametrize("kind", KINDS)
def test_an_open_gate_leaves_the_mean_to_the_bit(kind: Kind) -> None:
    total, _ = parts(1)
    added = {name: values / 3 for name, values in total.items() if name.startswith("enhancer.")}
    got, record = promoted(total, added, kind)
    assert all(got[name].tobytes() == total[name].tobytes() for name in total)
    assert record.open == 1
    assert record.cosine == pytest.approx(1)
    assert record.added_share == pytest.approx(0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_straight_against_the_main_part_is_closed_out(kind: Kind) -> None:
    """T = M + A with A = -M / 2: all three give M back."""
    total, _ = parts(2)
    added = {name: -values for name, values in total.items() if name.startswith("enhancer.")}
    got, record = promoted(total, added, kind)
    for name, values in total.items():
        np.testing.assert_allclose(got[name], 2 * values if name in added else values, rtol=1e-6)
    assert record.open == 0
    assert (record.cosine, record.added_share) == pytest.approx((-1, 0.5))


def test_projection_keeps_what_does_not_conflict() -> None:
    """M = (1, 0), A = (-1, 2): A without its part against M is (0, 2)."""
    total, added = {"enhancer.w": np.array([0, 2], np.float32)}, {"enhancer.w": np.array([-1, 2], np.float32)}
    np.testing.assert_allclose(promoted(total, added, "projected")[0]["enhancer.w"], [1, 2])
    np.testing.assert_allclose(promoted(total, added, "global")[0]["enhancer.w"], [1, 0])


def test_layers_open_one_by_one() -> None:
    """A agrees in one array and conflicts in the other, and on the whole agrees."""
    total = {"enhancer.a": np.array([3, 0], np.float32), "enhancer.b": np.array([0.5], np.float32)}
    added = {"enhancer.a": np.array([1, 0], np.float32), "enhancer.b": np.array([-0.5], np.float32)}
    got, record = promoted(total, added, "layer")
    np.testing.assert_array_equal(got["enhancer.a"], total["enhancer.a"])
    np.testing.assert_array_equal(got["enhancer.b"], [1.0])
    assert record.open == 0.5
    assert promoted(total, added, "global")[0]["enhancer.b"] == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_added_and_nothing_to_agree_with_are_closed_with_a_finite_record(kind: Kind) -> None:
    total, added = parts(3)
    zeros = {name: np.zeros_like(values) for name, values in added.items()}
    got, record = promoted(total, zeros, kind)
    assert all(got[name].tobytes() == total[name].tobytes() for name in total)
    assert (record.open, record.cosine, record.added_share) == (0, 0, 0)
    only_added, record = promoted({**total, **added}, added, kind)  # M = 0
    assert all(not only_added[name].any() for name in added)
    assert (record.open, record.cosine, record.added_share) == (0, 0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_networks_and_the_inputs_stay_as_they_are(kind: Kind) -> None:
    total, added = parts(4, lean=-2)
    before = {name: values.copy() for name, values in (total | {f"added {n}": v for n, v in added.items()}).items()}
    got, _ = promoted(total, added, kind)
    for name in ("recogniser.d", "critic.e"):
        assert got[name].tobytes() == before[name].tobytes()
    for name, values in total.items():
        assert values.tobytes() == before[name].tobytes()
    for name, values in added.items():
        assert values.tobytes() == before[f"added {name}"].tobytes()


def local_round(steps: int, rate: float = 0.1) -> tuple[Arrays, Arrays]:
    """Gradient descent on |x|^2 / 2 from (1, 0) while recognition always adds (0, 0.1), neutral to begin with."""
    x, total, added = np.array([1.0, 0.0]), np.zeros(2), np.zeros(2)
    for _ in range(steps):
        pushed = rate * np.array([0.0, 0.1])
        moved = -rate * x + pushed
        x, total, added = x + moved, total + moved, added + pushed
    return {"enhancer.w": total.astype(np.float32)}, {"enhancer.w": added.astype(np.float32)}


def test_the_main_part_answers_to_what_was_added_the_more_the_longer_the_round() -> None:
    """The stated limit: a parabola's own pull looks like a conflict, and M alone is more than the sites moved."""
    cosines = [promoted(*local_round(steps), "global")[1].cosine for steps in (1, 10, 40, 160)]
    assert cosines[0] == 0
    assert sorted(cosines, reverse=True) == cosines
    total, added = local_round(160)
    got, record = promoted(total, added, "global")
    assert record.open == 0
    assert np.linalg.norm(got["enhancer.w"]) > 1.5 * np.linalg.norm(total["enhancer.w"])
    # Before long <A, M> is all answer: M = M0 - A + what is left of it.
    assert record.cosine == pytest.approx(-record.added_share, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lean", [-2.0, -0.3, 0.3])
def test_orthogonal_closes_out_what_was_added_and_the_answer_to_it(seed: int, lean: float) -> None:
    total, added = parts(seed, lean)
    got, record = promoted(total, added, "orthogonal")
    delta, a, t = (
        np.concatenate([np.asarray(arrays[name], np.float64).reshape(-1) for name in added])
        for arrays in (got, added, total)
    )
    if record.open:
        assert all(got[name].tobytes() == total[name].tobytes() for name in total)
    else:
        assert delta @ a == pytest.approx(0, abs=1e-5)  # the federation does not move along A
        assert delta @ (t - a) >= -1e-6  # and not against M
        assert np.linalg.norm(delta) <= np.linalg.norm(t - a) + 1e-6


def test_orthogonal_takes_out_of_the_main_part_the_answer_that_global_lets_through() -> None:
    total, added = local_round(160)
    closed, record = promoted(total, added, "orthogonal")
    assert record.open == 0
    np.testing.assert_allclose(
        closed["enhancer.w"], [-1, 0], atol=1e-5
    )  # the parabola's own way, as without recognition
