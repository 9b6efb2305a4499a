"""Each gate against a slower twin in plain Python, and the guarantee that its docstring states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.train import gates, gradprom
from shared.config import ObjectiveConfig

GATES = ("global", "layer", "weighted", "projected", "confident")
BLOCKS = (3, 1, 4)
SURE, UNSURE = (0.3, 0.2, 0.25, 0.3), (0.9, -0.9, 0.4, -0.2)
ROUNDING = 1e-5


def objective(gate: str, **changes: Any) -> ObjectiveConfig:
    return ObjectiveConfig(kind="gradprom", gate=gate, **changes)  # type: ignore[arg-type]


def dot(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


def twin(gate: str, g: list[float], v: list[float], cosines: Sequence[float]) -> tuple[list[float], float]:
    """What passes and the share that is open, written from the docstring; one number after the other."""
    if gate == "layer":
        passed, opened, at = [], [], 0
        for size in BLOCKS:
            part, is_open = twin("global", g[at : at + size], v[at : at + size], cosines)
            passed, opened, at = passed + part, [*opened, is_open], at + size
        return passed, sum(opened) / len(opened)
    nothing = [0.0] * len(g)
    if not all(math.isfinite(value) for value in v):
        return nothing, 0.0
    agreement = dot(g, v)
    if gate == "projected":
        if agreement >= 0 or not any(g):
            return v, float(agreement > 0)
        return [b - agreement / dot(g, g) * a for a, b in zip(g, v, strict=True)], 0.0
    if agreement <= 0:
        return nothing, 0.0
    if gate == "weighted":
        cosine = agreement / math.sqrt(dot(g, g)) / math.sqrt(dot(v, v))
        return [cosine * value for value in v], 1.0
    if gate == "confident":
        mean = sum(cosines) / len(cosines)
        error = math.sqrt(sum((c - mean) ** 2 for c in cosines) / (len(cosines) - 1) / len(cosines))
        if mean - 1.6377 * error <= 0:  # the 90 % quantile of Student's t with 3 degrees of freedom, from a table
            return nothing, 0.0
    return v, 1.0


def near_zero(g: list[float], v: list[float]) -> bool:
    """A dot product that rounding alone may turn round."""
    return abs(dot(g, v)) <= ROUNDING * math.sqrt(dot(g, g) * dot(v, v))


numbers = st.floats(-100, 100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
vectors = st.lists(numbers, min_size=sum(BLOCKS), max_size=sum(BLOCKS))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    """g and v: of any direction, conflicting, agreeing, orthogonal, v of 0, or of another magnitude altogether."""
    g, v = draw(vectors), draw(vectors)
    kind = draw(st.sampled_from(["any", "against", "along", "orthogonal", "zero"]))
    if kind in ("against", "along"):
        v = [(-a if kind == "against" else a) + 0.1 * b for a, b in zip(g, v, strict=True)]
    elif kind == "orthogonal" and any(g):
        share = dot(g, v) / dot(g, g)
        v = [b - share * a for a, b in zip(g, v, strict=True)]
    elif kind == "zero":
        v = [0.0] * len(v)
    scale = draw(st.sampled_from([1e-6, 1.0, 1e6]))
    return g, torch.tensor([scale * value for value in v]).tolist()


@pytest.mark.parametrize("gate", GATES)
@settings(deadline=None, derandomize=True)
@given(pair=pairs(), cosines=st.sampled_from([SURE, UNSURE]))
def test_every_gate_passes_what_its_slower_twin_passes(
    gate: str, pair: tuple[list[float], list[float]], cosines: tuple[float, ...]
) -> None:
    g, v = pair
    found = gates.passed(torch.tensor(g), torch.tensor(v), objective(gate), BLOCKS, torch.tensor(cosines))
    expected, is_open = twin(gate, g, v, cosines)
    parts = [(0, len(g))] if gate != "layer" else [(0, 3), (3, 4), (4, 8)]
    for first, last in parts:
        if not near_zero(g[first:last], v[first:last]) or not any(v[first:last]):
            size = 1e-30 + math.sqrt(dot(v, v))
            torch.testing.assert_close(
                found.v_D[first:last], torch.tensor(expected[first:last]), rtol=1e-5, atol=1e-5 * size
            )
    if not any(near_zero(g[first:last], v[first:last]) for first, last in parts):
        assert float(found.open) == pytest.approx(is_open)


def steered(gate: str, g: Tensor, v: Tensor, **changes: Any) -> gradprom.Direction:
    return gradprom.direction(g, [v], objective(gate, **changes), BLOCKS, torch.tensor([SURE]))


@pytest.mark.parametrize("gate", GATES)
@settings(deadline=None, derandomize=True)
@given(
    pair=pairs(),
    weight=st.sampled_from([0.03, 1.0, 30.0]),
    relative=st.booleans(),
    cap=st.sampled_from([None, 0.5]),
)
def test_no_gate_opposes_the_main_gradient(
    gate: str, pair: tuple[list[float], list[float]], weight: float, relative: bool, cap: float | None
) -> None:
    """<d, g> >= |g|^2, for layer in every block, up to the rounding of what was added."""
    g, v = (torch.tensor(values) for values in pair)
    step = steered(gate, g, v, task_weight=weight, relative=relative, norm_cap=cap)
    d64, g64, added64 = (tensor.double() for tensor in (step.d_D, g, step.added_D))
    for d_part, g_part in zip(*(torch.split(tensor, list(BLOCKS)) for tensor in (d64, g64)), strict=True):
        if gate == "layer":
            slack = ROUNDING * float(g64.norm() * (g64.norm() + added64.norm()))
            assert float(d_part @ g_part) >= float(g_part @ g_part) - slack
    slack = ROUNDING * float(g64.norm() * (g64.norm() + added64.norm()))
    assert float(d64 @ g64) >= float(g64 @ g64) - slack
    if cap is not None:
        assert float(d64.norm()) <= (1 + cap) * float(g64.norm()) * (1 + ROUNDING)
        if gate == "layer":
            assert float(added64.norm()) <= cap * float(g64.norm()) * (1 + ROUNDING)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -math.inf])
def test_nothing_passes_of_a_gradient_that_is_zero_or_not_finite(gate: str, value: float, relative: bool) -> None:
    """One value is enough, whatever g is there; d is g to the bit. A layer's gate closes its own block."""
    g = torch.randn(sum(BLOCKS), generator=torch.Generator().manual_seed(0))
    for at in range(len(g)):
        v = g.clone() if value else torch.zeros_like(g)
        v[at] = value
        step = steered(gate, g, v, task_weight=5.0, relative=relative)
        assert bool(torch.isfinite(step.d_D).all())
        blocks = torch.repeat_interleave(torch.arange(len(BLOCKS)), torch.tensor(BLOCKS))
        within = blocks == blocks[at] if gate == "layer" and value else torch.ones_like(g, dtype=torch.bool)
        assert torch.equal(step.d_D[within], g[within])
        assert torch.equal(step.added_D[within], torch.zeros_like(g)[within])
        assert float(step.gate_open) == pytest.approx(2 / 3 if gate == "layer" and value else 0.0)


@pytest.mark.parametrize("gate", ["global", "layer", "weighted", "confident"])
def test_a_gradient_against_it_in_every_block_leaves_g_to_the_bit(gate: str) -> None:
    g = torch.randn(sum(BLOCKS), generator=torch.Generator().manual_seed(1))
    for size in (1e-30, 1.0, 1e30):
        step = steered(gate, g, -size * g, task_weight=5.0)
        assert torch.equal(step.d_D, g)
        assert float(step.gate_open) == 0


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e18, 1e30, 3e37])
@pytest.mark.parametrize("gate", GATES)
def test_magnitudes_at_the_ends_of_float32_break_no_guarantee(gate: str, size: float) -> None:
    g = torch.randn(sum(BLOCKS), generator=torch.Generator().manual_seed(2))
    for seed in range(20):
        v = size * torch.randn(sum(BLOCKS), generator=torch.Generator().manual_seed(seed))
        step = steered(gate, g, v, task_weight=1.0, relative=True)
        assert bool(torch.isfinite(step.d_D).all())
        assert float(step.d_D.double() @ g.double()) >= float(g.double() @ g.double()) * (1 - ROUNDING)
        assert float(step.added_D.norm()) <= float(g.norm()) * (1 + ROUNDING)


@pytest.mark.parametrize("gate", GATES)
def test_a_main_gradient_of_zero_lets_a_capped_step_stand_still(gate: str) -> None:
    v = torch.randn(sum(BLOCKS), generator=torch.Generator().manual_seed(3))
    step = steered(gate, torch.zeros_like(v), v, relative=False, norm_cap=2.0)
    assert torch.equal(step.d_D, torch.zeros_like(v))


def test_what_conflicts_is_removed_and_the_rest_stays() -> None:
    """Yu et al.'s picture: along g and across it; what goes across is all that is left."""
    g, v = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    found = gates.projected(g, v)
    torch.testing.assert_close(found.v_D, torch.tensor([0.0, 1.0]))
    assert float(found.open) == 0
    assert torch.equal(gates.projected(g, -v).v_D, -v)


def test_a_gate_per_layer_decides_each_layer_alone() -> None:
    g = torch.tensor([1.0, 1.0, 1.0, 1.0])
    v = torch.tensor([5.0, -1.0, -5.0, 1.0])
    found = gates.layerwise(g, v, [2, 2])
    assert found.v_D.tolist() == [5.0, -1.0, 0.0, 0.0]
    assert float(found.open) == 0.5


@pytest.mark.parametrize("kappa", [0.1, 1.0, 3.0])
def test_the_cap_shortens_and_does_not_turn(kappa: float) -> None:
    g, added = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 10.0])
    cut = gates.capped(added, g, kappa)
    assert float(cut.norm()) == pytest.approx(min(10.0, kappa * 5))
    assert float(torch.cosine_similarity(cut, added, dim=0)) == pytest.approx(1.0)
    assert gates.capped(added, g, None) is added


# Student's t: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2, upper critical values.
TABLE = {(0.90, 3): 1.638, (0.95, 3): 2.353, (0.99, 3): 4.541, (0.90, 9): 1.383, (0.95, 9): 1.833, (0.975, 1): 12.706}


@pytest.mark.parametrize(("confidence", "degrees"), TABLE)
def test_the_lower_bound_stands_on_the_published_quantile(confidence: float, degrees: int) -> None:
    cosines = torch.linspace(-0.5, 0.7, degrees + 1, dtype=torch.float64)
    error = float(cosines.std() / math.sqrt(degrees + 1))
    found = (float(cosines.mean()) - float(gates.lower_bound(cosines, confidence))) / error
    assert found == pytest.approx(TABLE[confidence, degrees], abs=6e-4)


@settings(deadline=None, derandomize=True)
@given(cosines=st.lists(st.floats(-1, 1), min_size=2, max_size=12), confidence=st.sampled_from([0.5, 0.8, 0.9, 0.99]))
def test_the_lower_bound_is_that_of_scipys_t_test(cosines: list[float], confidence: float) -> None:
    from scipy.stats import ttest_1samp

    if max(cosines) - min(cosines) < 1e-3:
        return
    expected = ttest_1samp(cosines, 0, alternative="greater").confidence_interval(confidence).low
    found = gates.lower_bound(torch.tensor(cosines, dtype=torch.float64), confidence)
    assert float(found) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_where_nothing_agrees_the_confident_gate_opens_as_rarely_as_it_says(confidence: float, count: int) -> None:
    """Independent normal cosines of mean 0: above 0 with probability 1 - confidence, four standard errors allowed."""
    rng = torch.Generator().manual_seed(count)
    runs = 4000
    drawn = 0.2 * torch.randn(runs, count, generator=rng)
    opened = sum(float(gates.lower_bound(cosines, confidence)) > 0 for cosines in drawn) / runs
    wanted = 1 - confidence
    assert opened == pytest.approx(wanted, abs=4 * math.sqrt(wanted * confidence / runs))


def test_one_micro_batch_that_is_not_finite_closes_the_confident_gate() -> None:
    assert not bool(gates.lower_bound(torch.tensor([0.9, 0.9, math.nan, 0.9]), 0.9) > 0)


def two_tasks() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(4)
    g = torch.randn(sum(BLOCKS), generator=rng)
    helps = g + 0.3 * torch.randn(sum(BLOCKS), generator=rng)
    return g, helps, -20 * g + torch.randn(sum(BLOCKS), generator=rng)


def test_a_conflicting_task_closes_only_its_own_gate() -> None:
    g, helps, conflicts = two_tasks()
    for relative in (True, False):
        rule = objective("global", task_weight=0.4, relative=relative)
        step = gradprom.direction(g, [helps, conflicts], rule, BLOCKS)
        weight = 0.4 / 2 * float(g.norm() / helps.norm()) if relative else 0.4
        torch.testing.assert_close(step.d_D, g + weight * helps)
        assert float(step.gate_open) == 0.5
        together = gradprom.direction(g, [helps + conflicts], rule, BLOCKS)
        assert torch.equal(together.d_D, g)


@pytest.mark.parametrize("gate", GATES)
def test_several_tasks_add_the_sum_of_what_each_passes(gate: str) -> None:
    g, *tasks = two_tasks()
    cosines = torch.tensor([SURE, UNSURE])
    step = gradprom.direction(g, tasks, objective(gate, task_weight=0.7), BLOCKS, cosines)
    expected = torch.tensor(g.tolist(), dtype=torch.float64)
    for v, row in zip(tasks, cosines.tolist(), strict=True):
        passed, _ = twin(gate, g.tolist(), v.tolist(), row)
        expected += 0.7 / 2 * float(g.norm() / v.norm()) * torch.tensor(passed, dtype=torch.float64)
    torch.testing.assert_close(step.d_D.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 5])
@settings(deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_tasks_with_a_relative_lambda_share_it(count: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    g = torch.randn(sum(BLOCKS), generator=rng)
    tasks = [10.0**power * torch.randn(sum(BLOCKS), generator=rng) for power in range(count)]
    for rule in (objective("global", task_weight=0.8), ObjectiveConfig(kind="joint", task_weight=0.8)):
        step = gradprom.direction(g, tasks, rule, BLOCKS)
        assert float(step.added_D.norm()) <= 0.8 * float(g.norm()) * (1 + ROUNDING)
