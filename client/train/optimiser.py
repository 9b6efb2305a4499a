"""Parameters with gradients in, moved parameters out: AdamW, SGD and RMSprop, bit for bit those of torch.optim.

`Split` is AdamW or SGD that also says which part of the movement came from recognition.

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
RMS_DECAY = 0.99


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


class RMSprop:
    """Tieleman, Hinton 2012, without momentum or centring: what TOD-Net's critic is trained with."""

    def __init__(self, parameters: Sequence[nn.Parameter], *, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self._parameters = list(parameters)
        self._square = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def step(self) -> None:
        for parameter, square in zip(self._parameters, self._square, strict=True):
            if parameter.grad is not None:
                square.mul_(RMS_DECAY).addcmul_(parameter.grad, parameter.grad, value=1 - RMS_DECAY)
                parameter.addcdiv_(parameter.grad, square.sqrt().add_(EPSILON), value=-self.learning_rate)


class Split:
    """AdamW (or SGD) on d = g + a, whose movement is kept in the two parts that g and a caused.

    One preconditioner for both, from d: Adam's momentum is linear, m(d) = m(g) + m(a), so the parts add up to the very
    movement of Adam on d. Two Adams would not: each would scale its own part to the size of the learning rate.

    With `rests`, m(a) neither decays nor moves anything in a step where nothing was added, weight by weight: what the
    gate let through in earlier steps does not go on acting behind a closed one.

    `added_change_D` is the part of the movement so far that a caused; weight decay belongs to the other part.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float,
        adaptive: bool,
        rests: bool,
    ) -> None:
        assert adaptive or not rests, "without momentum there is nothing to rest"
        self.learning_rate = learning_rate
        self._weight_decay, self._adaptive, self._rests = weight_decay, adaptive, rests
        self._parameters = list(parameters)
        size = sum(parameter.numel() for parameter in parameters)
        self._main_D, self._added_D, self._square_D, self.added_change_D = (
            torch.zeros(size, device=parameters[0].device) for _ in range(4)
        )
        self._steps = 0

    @torch.no_grad()
    def step(self, d_D: Tensor, added_D: Tensor) -> None:
        """Move the parameters along d = g + added; both flattened, in the order of the parameters."""
        rate = self.learning_rate
        main_D, moved_D = self._adam(d_D, added_D) if self._adaptive else (d_D - added_D, added_D)
        self.added_change_D -= rate * moved_D
        change_D = -rate * (main_D + moved_D)
        parts = torch.split(change_D, [parameter.numel() for parameter in self._parameters])
        for parameter, part in zip(self._parameters, parts, strict=True):
            parameter.mul_(1 - rate * self._weight_decay).add_(part.view(parameter.shape))

    def _adam(self, d_D: Tensor, added_D: Tensor) -> tuple[Tensor, Tensor]:
        self._steps += 1
        acts_D = (added_D != 0).float() if self._rests else torch.ones_like(added_D)
        self._main_D.lerp_(d_D - added_D, 1 - BETAS[0])
        self._added_D.lerp_(added_D, (1 - BETAS[0]) * acts_D)
        self._square_D.mul_(BETAS[1]).addcmul_(d_D, d_D, value=1 - BETAS[1])
        root_D = (self._square_D / (1 - BETAS[1] ** self._steps)).sqrt_().add_(EPSILON)
        # One count for both: a correction of its own would let the first thing added through at ten times its weight.
        unbiased_D = root_D * (1 - BETAS[0] ** self._steps)
        return self._main_D / unbiased_D, acts_D * self._added_D / unbiased_D


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
