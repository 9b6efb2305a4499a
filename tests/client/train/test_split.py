"""Split: the two parts of one movement add up to Adam's own, and each is what a loop over single weights says it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from client.train.optimiser import BETAS, EPSILON, SGD, AdamW, Split

SHAPES = [(3, 2, 3, 3), (5,), ()]
SIZE = 3 * 2 * 3 * 3 + 5 + 1


def parameters() -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=rng)) for shape in SHAPES]


def flat(tensors: list[nn.Parameter]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def set_gradient(tensors: list[nn.Parameter], gradient_D: Tensor) -> None:
    parts = gradient_D.split([parameter.numel() for parameter in tensors])
    for parameter, part in zip(tensors, parts, strict=True):
        parameter.grad = part.view(parameter.shape)


def random_steps(count: int, closed: float = 0.0) -> list[tuple[float, Tensor, Tensor]]:
    """Rate, d and what was added to it; a share of the steps is closed, and in the others some weights are."""
    rng = torch.Generator().manual_seed(2)
    steps = []
    for step in range(count):
        g_D, added_D = torch.randn(SIZE, generator=rng), 0.5 * torch.randn(SIZE, generator=rng)
        if closed:
            is_open = float(torch.rand((), generator=rng)) >= closed
            added_D = added_D * is_open * (torch.rand(SIZE, generator=rng) < 0.8)
        steps.append((0.01 / (1 + step / 50), g_D + added_D, added_D))
    return steps


def split(mine: list[nn.Parameter], *, rests: bool, decay: float = 0.0, adaptive: bool = True) -> Split:
    return Split(mine, learning_rate=0.1, weight_decay=decay, adaptive=adaptive, rests=rests)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_both_parts_together_are_adam_on_their_sum(decay: float) -> None:
    mine, reference = parameters(), parameters()
    own, other = split(mine, rests=False, decay=decay), AdamW(reference, learning_rate=0.1, weight_decay=decay)
    for rate, d_D, added_D in random_steps(300):
        own.learning_rate = other.learning_rate = rate
        before_D, started_D = flat(mine), flat(reference)
        own.step(d_D, added_D)
        set_gradient(reference, d_D)
        other.step()
        torch.testing.assert_close(flat(mine) - before_D, flat(reference) - started_D, rtol=0, atol=1e-6)
    torch.testing.assert_close(flat(mine), flat(reference), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("rests", [False, True])
def test_the_parts_are_those_of_a_loop_over_single_weights(rests: bool) -> None:
    """In Python's floats: a momentum for each part, one preconditioner for both, a rest per weight."""
    mine = parameters()
    start_D, own = flat(mine), split(mine, rests=rests)
    steps = random_steps(60, closed=0.4)
    for rate, d_D, added_D in steps:
        own.learning_rate = rate
        own.step(d_D, added_D)
    moved_D = flat(mine) - start_D
    for weight in range(0, SIZE, 7):
        main, added = naive_parts([(rate, float(d_D[weight]), float(a_D[weight])) for rate, d_D, a_D in steps], rests)
        assert float(own.added_change_D[weight]) == pytest.approx(added, rel=1e-4, abs=2e-6)
        assert float(moved_D[weight] - own.added_change_D[weight]) == pytest.approx(main, rel=1e-4, abs=4e-6)


def naive_parts(steps: list[tuple[float, float, float]], rests: bool) -> tuple[float, float]:
    main_momentum = added_momentum = square = main_moved = added_moved = 0.0
    for step, (rate, d, added) in enumerate(steps, start=1):
        main_momentum = BETAS[0] * main_momentum + (1 - BETAS[0]) * (d - added)
        square = BETAS[1] * square + (1 - BETAS[1]) * d * d
        root = (square / (1 - BETAS[1] ** step)) ** 0.5 + EPSILON
        main_moved -= rate * main_momentum / (1 - BETAS[0] ** step) / root
        if added or not rests:
            added_momentum = BETAS[0] * added_momentum + (1 - BETAS[0]) * added
            added_moved -= rate * added_momentum / (1 - BETAS[0] ** step) / root
    return main_moved, added_moved


def test_a_resting_part_neither_moves_nor_fades_while_nothing_is_added() -> None:
    mine, plain = parameters(), parameters()
    own, other = split(mine, rests=True), split(plain, rests=False)
    rng = torch.Generator().manual_seed(3)
    g_D, added_D = torch.randn(SIZE, generator=rng), torch.randn(SIZE, generator=rng)
    for optimiser in (own, other):
        for _ in range(5):
            optimiser.step(g_D + added_D, added_D)
    change_D, momentum_D, carried_D = own.added_change_D.clone(), own._added_D.clone(), other.added_change_D.clone()
    torch.testing.assert_close(change_D, carried_D)
    for _ in range(30):
        before_D = flat(mine)
        own.step(g_D, torch.zeros(SIZE))
        other.step(g_D, torch.zeros(SIZE))
        assert ((flat(mine) - before_D) * g_D <= 0).all()  # g's part alone is what moves
    assert torch.equal(own.added_change_D, change_D)
    assert torch.equal(own._added_D, momentum_D)
    # A single state carries what was let through on behind the closed gate.
    assert float((other.added_change_D - carried_D).norm()) > 0.5 * float(carried_D.norm())


def test_without_adam_the_parts_are_the_gradients_own() -> None:
    """Halves and powers of two, so that nothing is rounded: equal to SGD, and to the added part, to the bit."""
    mine, reference = ([nn.Parameter(torch.arange(8.0).view(2, 4))] for _ in range(2))
    own, other = split(mine, rests=False, adaptive=False), SGD(reference, learning_rate=0.1, weight_decay=0.0)
    own.learning_rate = other.learning_rate = 0.25
    rng = torch.Generator().manual_seed(4)
    sum_D = torch.zeros(8)
    for _ in range(20):
        d_D, added_D = (torch.randint(-8, 9, (8,), generator=rng) / 2 for _ in range(2))
        own.step(d_D, added_D)
        set_gradient(reference, d_D)
        other.step()
        sum_D += added_D
    assert torch.equal(mine[0], reference[0])
    assert torch.equal(own.added_change_D, -0.25 * sum_D)


@pytest.mark.parametrize("adaptive", [True, False])
def test_weight_decay_belongs_to_the_other_part(adaptive: bool) -> None:
    mine = parameters()
    start_D = flat(mine)
    own = split(mine, rests=False, decay=0.5, adaptive=adaptive)
    own.step(torch.zeros(SIZE), torch.zeros(SIZE))
    assert not own.added_change_D.any()
    torch.testing.assert_close(flat(mine), 0.95 * start_D)


@pytest.mark.parametrize("rests", [False, True])
def test_what_is_added_late_begins_as_softly_as_in_a_single_state(rests: bool) -> None:
    """After a warm-up without recognition, its first gradient moves a tenth of what a fresh Adam would make of it."""
    mine, alone = parameters(), parameters()
    own, other = split(mine, rests=rests), split(alone, rests=False)
    rng = torch.Generator().manual_seed(5)
    for _ in range(200):
        g_D = torch.randn(SIZE, generator=rng)
        own.step(g_D, torch.zeros(SIZE))
        other.step(g_D, torch.zeros(SIZE))
    g_D, added_D = torch.randn(SIZE, generator=rng), torch.randn(SIZE, generator=rng)
    own.step(g_D + added_D, added_D)
    other.step(g_D + added_D, added_D)
    torch.testing.assert_close(own.added_change_D, other.added_change_D)
    assert float(own.added_change_D.abs().max()) < 0.1 * 0.15 * float(added_D.abs().max())
