"""Parameters with gradients in, moved parameters out: AdamW and SGD, bit for bit those of torch.optim.

Loshchilov, Hutter. Decoupled Weight Decay Regularization. 2019. https://arxiv.org/abs/1711.05101. Kernel: torch's.

Why not torch.optim itself: its classes load torch's compiler and sympy at the first step, only to be left out of
compiled code. That is two to five seconds and 80 MB in every process, and a deployed site starts one per message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Optimiser(Protocol):
    """Set the rate, then step along the gradients that the parameters hold."""

    learning_rate: float

    def step(self) -> None: ...


class AdamW:
    """Parameters without a gradient stay as they are and keep their own count of steps."""

    def __init__(self, parameters: Sequence[nn.Parameter], *, learning_rate: float, weight_decay: float) -> None:
        self.learning_rate = learning_rate
        self._weight_decay = weight_decay
        self._parameters = list(parameters)
        self._first = [torch.zeros_like(parameter) for parameter in parameters]
        self._second = [torch.zeros_like(parameter) for parameter in parameters]
        self._steps = [torch.zeros((), dtype=torch.float32, device=parameter.device) for parameter in parameters]

    @torch.no_grad()
    def step(self) -> None:
        moved = [i for i, parameter in enumerate(self._parameters) if parameter.grad is not None]
        if not moved:
            return
        steps = [self._steps[i] for i in moved]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            [self._parameters[i] for i in moved],
            [_gradient(self._parameters[i]) for i in moved],
            [self._first[i] for i in moved],
            [self._second[i] for i in moved],
            [],
            steps,
            lr=self.learning_rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=self._weight_decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )


class SGD:
    """Without momentum; weight decay enters the gradient, which is the same step as decoupled decay."""

    def __init__(self, parameters: Sequence[nn.Parameter], *, learning_rate: float, weight_decay: float) -> None:
        self.learning_rate = learning_rate
        self._weight_decay = weight_decay
        self._parameters = list(parameters)

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self._parameters:
            if parameter.grad is None:
                continue
            gradient = parameter.grad
            if self._weight_decay:
                gradient = gradient.add(parameter, alpha=self._weight_decay)
            parameter.add_(gradient, alpha=-self.learning_rate)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
