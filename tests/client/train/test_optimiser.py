"""Our optimisers against torch's own, bit for bit; and what they do not load."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from client.train.optimiser import SGD, AdamW, RMSprop

SHAPES = [(3, 2, 3, 3), (5,), ()]


def parameters() -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=rng)) for shape in SHAPES]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("ours", "theirs", "more"), [(AdamW, torch.optim.AdamW, {"fused": True}), (SGD, torch.optim.SGD, {})]
)
def test_steps_are_torchs_own_bit_for_bit(ours: Any, theirs: Any, more: dict[str, Any], decay: float) -> None:
    """Also where a parameter has no gradient in some steps, and the rate changes."""
    mine, reference = parameters(), parameters()
    own = ours(mine, learning_rate=0.1, weight_decay=decay)
    other = theirs(reference, lr=0.1, weight_decay=decay, **more)
    rng = torch.Generator().manual_seed(1)
    for step in range(6):
        own.learning_rate = other.param_groups[0]["lr"] = 0.1 / (step + 1)
        for i, (a, b) in enumerate(zip(mine, reference, strict=True)):
            gradient = torch.randn(a.shape, generator=rng)
            a.grad = b.grad = None if i == 1 and step % 2 else gradient
        own.step()
        other.step()
        for a, b in zip(mine, reference, strict=True):
            assert torch.equal(a, b)


def test_rmsprop_steps_are_torchs_own_bit_for_bit() -> None:
    """Also where a parameter has no gradient in some steps, and the rate changes."""
    mine, reference = parameters(), parameters()
    own = RMSprop(mine, learning_rate=0.1)
    other = torch.optim.RMSprop(reference, lr=0.1)
    rng = torch.Generator().manual_seed(1)
    for step in range(6):
        own.learning_rate = other.param_groups[0]["lr"] = 0.1 / (step + 1)
        for i, (a, b) in enumerate(zip(mine, reference, strict=True)):
            a.grad = b.grad = None if i == 1 and step % 2 else torch.randn(a.shape, generator=rng)
        own.step()
        other.step()
        for a, b in zip(mine, reference, strict=True):
            assert torch.equal(a, b)


def test_without_any_gradient_nothing_moves() -> None:
    mine = parameters()
    AdamW(mine, learning_rate=0.1, weight_decay=0.1).step()
    SGD(mine, learning_rate=0.1, weight_decay=0.1).step()
    assert all(torch.equal(a, b) for a, b in zip(mine, parameters(), strict=True))


def test_training_loads_no_compiler() -> None:
    code = """
import sys, torch
from client.train.optimiser import AdamW
from shared.blocks import built
network = built(lambda: torch.nn.Conv2d(1, 2, 3), 0, "test")
optimiser = AdamW(list(network.parameters()), learning_rate=0.1, weight_decay=0.0)
network(torch.ones(1, 1, 5, 5)).sum().backward()
optimiser.step()
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
