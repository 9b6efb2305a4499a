from __future__ import annotations

from typing import Literal

import pytest
import torch

from shared.enhance.losses import enhancement_loss

Kind = Literal["mse", "l1", "charbonnier"]


@pytest.mark.parametrize(("kind", "expected"), [("mse", 0.25), ("l1", 0.5), ("charbonnier", (0.25 + 1e-6) ** 0.5)])
def test_a_constant_error_costs_what_the_formula_says(kind: Kind, expected: float) -> None:
    clean = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert float(enhancement_loss(clean + 0.5, clean, kind)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["mse", "charbonnier"])
def test_no_error_has_no_gradient(kind: Kind) -> None:
    clean = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    enhanced = clean.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(enhancement_loss(enhanced, clean, kind), enhanced)
    assert float(gradient.abs().max()) == 0
