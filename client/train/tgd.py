"""Targeted gradient descent: which kernels of a trained enhancer are redundant, and training that moves no other.

Chen, Asma, Chan. Targeted Gradient Descent. MICCAI 2021. https://arxiv.org/abs/2109.14729. The score is that of Li et
al., KSE, CVPR 2019, https://arxiv.org/abs/1812.04368, by its equations; the released code of KSE reshapes where it has
to transpose, and takes the entropy of other kernels than those it weighs. A patent application covers the method: see
NOTICE.

    score        of an input channel c of a layer: sqrt(s / (1 + e)), s the l1 norm of the kernels that read c, e the
                 entropy of their distances to their k nearest; s, e and the score each scaled to [0, 1] in the layer
    redundant    a channel whose score is below phi in every convolution that reads it; the summands of a residual have
                 one decision (shared/enhance/kernels.py)
    retrained    the kernels that make redundant channels, with their biases and their norms' scales and shifts.
                 Everything else is protected, to the last bit: the end, grouped convolutions, what all channels share
                 (the one slope of a PReLU, the gain of an attention)

    activation   as published: the gradient of protected feature maps is cut, after every convolution and after every
                 norm. Kernels before see the loss through redundant maps alone
    weight       the true gradient, of what is retrained

Where a chain of layers is scored there is a redundant map in each, the least of all. The trunk of a residual network,
which many convolutions read, may have none: a cut there would keep the loss from all that is behind it, so a layer
whose maps are all protected cuts nothing.

The layer after the convolution would do nothing that the one after the norm has not done, were the norm's backward pass
one per channel, as BatchNorm's is. GroupNorm's is not: the statistics that channels share bring gradient back to
protected ones, so both layers are needed. A layer cannot keep an activation's own weights; therefore gradients are
masked at the weights too, in both forms.

What is protected are kernels. With norms over several channels a protected map still changes with its neighbours.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shared.config import TGDConfig
from shared.enhance.kernels import TRANSPOSED, Wiring
from shared.errors import RefusedError

MOST_DISTANCES = 2**24
"""Distances between kernels that are held at once: 64 MB."""


@torch.no_grad()
def kernel_scores_C(weight_NCk: Tensor, neighbours: int) -> Tensor:
    """KSE of every input channel, equations 1 to 3: 1 for the most useful one of the layer, 0 for the least.

    `weight_NCk`: N kernels for each of C channels, of any shape. Conventions that the paper leaves open: fewer than
    `neighbours` others: all of them; none (N = 1) or all alike: entropy 0; values that are all the same scale to 0.
    """
    kernels_CNk = weight_NCk.flatten(2).transpose(0, 1).float()
    sum_C = kernels_CNk.abs().sum((1, 2))
    count = kernels_CNk.shape[1]
    nearest = min(neighbours, count - 1)
    entropy_C = torch.zeros_like(sum_C)
    if nearest:
        parts = torch.split(kernels_CNk, max(1, MOST_DISTANCES // count**2))
        entropy_C = torch.cat([_entropy_C(part, nearest) for part in parts])
    return _scaled(torch.sqrt(_scaled(sum_C) / (1 + _scaled(entropy_C))))


def _entropy_C(kernels_CNk: Tensor, nearest: int) -> Tensor:
    distance_CNN = torch.cdist(kernels_CNk, kernels_CNk, compute_mode="donot_use_mm_for_euclid_dist")
    distance_CNN.diagonal(dim1=1, dim2=2).fill_(torch.inf)  # no kernel is its own neighbour
    density_CN = distance_CNN.topk(nearest, largest=False).values.sum(-1)
    total_C1 = density_CN.sum(1, keepdim=True)
    share_CN = density_CN / torch.where(total_C1 > 0, total_C1, 1.0)
    entropy_C: Tensor = -torch.special.xlogy(share_CN, share_CN).sum(1) / math.log(2)
    return entropy_C


def _scaled(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if bool(high > low) else torch.zeros_like(values)


def group_scores_G(network: nn.Module, wiring: Wiring, neighbours: int) -> Tensor:
    """The highest score that any convolution gives to a group of channels; infinite for a fixed one."""
    scores_G = torch.zeros(len(wiring.fixed_G))
    for name, group_C in wiring.reads.items():
        module = network.get_submodule(name)
        weight = getattr(module, "weight").detach()  # noqa: B009 - typed as module or tensor
        oriented_NCk = weight.transpose(0, 1) if isinstance(module, TRANSPOSED) else weight
        scores_G.scatter_reduce_(0, group_C, kernel_scores_C(oriented_NCk, neighbours).cpu(), "amax")
    return torch.where(wiring.fixed_G, torch.inf, scores_G)


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """True is redundant: retrained."""

    rows: Mapping[str, Tensor]
    """Module with weights per channel -> (N,) bool of the channels that it makes or scales."""
    layers: Mapping[str, Tensor]
    """Convolutions and norms whose maps' gradients are cut -> (N,) bool."""


def masks_of(
    wiring: Wiring, scores_G: Tensor, phi: float, first_layer: Literal["masked", "free", "frozen"] = "masked"
) -> Masks:
    """What is retrained at `phi`."""
    redundant_G = scores_G < phi
    rows = {name: redundant_G[group_N] for name, group_N in wiring.made.items()}
    layers = {name: row_N for name, row_N in rows.items() if bool(row_N.any()) and not _fixed(name, wiring)}
    for name in () if first_layer == "masked" else wiring.first:
        if name in wiring.writes and not _fixed(name, wiring):
            rows[name] = torch.full_like(rows[name], first_layer == "free")
            layers.pop(name, None)
    return Masks(rows, layers)


def _fixed(name: str, wiring: Wiring) -> bool:
    """The end, and grouped convolutions: their kernels rest, but what the loss says flows back through them."""
    return bool(wiring.fixed_G[wiring.made[name]].any())


def retrained(network: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """Every parameter's name -> bool of its shape, True where it is retrained."""
    free = {name: torch.zeros_like(parameter, dtype=torch.bool) for name, parameter in network.named_parameters()}
    for name, row_N in masks.rows.items():
        module = network.get_submodule(name)
        for own, parameter in module.named_parameters(recurse=False):
            axis = 1 if own == "weight" and isinstance(module, TRANSPOSED) else 0
            shape = [1] * parameter.ndim
            shape[axis] = -1
            free[f"{name}.{own}"] = row_N.to(parameter.device).view(shape).expand(parameter.shape).clone()
    return free


def share(free: Mapping[str, Tensor]) -> float:
    """Part of all weights that is trained."""
    return sum(int(mask.sum()) for mask in free.values()) / max(1, sum(mask.numel() for mask in free.values()))


class Cut(torch.autograd.Function):
    """Forward: the identity. Backward: 0 for protected maps."""

    @staticmethod
    def forward(ctx: Any, features_BCHW: Tensor, redundant_C: Tensor) -> Tensor:
        ctx.save_for_backward(redundant_C)
        ctx.mark_dirty(features_BCHW)  # handed on as it is: a view would forbid the in-place activations behind it
        return features_BCHW

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (redundant_C,) = ctx.saved_tensors
        (gradient_BCHW,) = gradients
        shape = [1, -1] + [1] * (gradient_BCHW.ndim - 2)
        # where, not a product: 0 * inf is NaN.
        return torch.where(redundant_C.view(shape), gradient_BCHW, 0.0), None


@contextmanager
def cut(network: nn.Module, masks: Masks) -> Iterator[None]:
    """Inside, gradients of protected feature maps are cut, as published."""
    with ExitStack() as hooks:
        for name, redundant_N in masks.layers.items():
            module = network.get_submodule(name)
            if isinstance(module, nn.PReLU):
                continue  # the paper's layers stand after convolutions and norms
            device = next(module.parameters()).device
            handle = module.register_forward_hook(_cutting(redundant_N.to(device)))
            hooks.callback(handle.remove)
        yield


def _cutting(redundant_N: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(module: nn.Module, inputs: Any, features_BCHW: Tensor) -> Tensor:
        cut_BCHW: Tensor = Cut.apply(features_BCHW, redundant_N)  # type: ignore[no-untyped-call]
        return cut_BCHW

    return hook


@torch.no_grad()
def dropped(network: nn.Module, masks: Masks) -> nn.Module:
    """A copy in which redundant kernels are 0, with their biases, scales and shifts: nothing reads anything there."""
    without = copy.deepcopy(network)
    free = retrained(without, masks)
    for name, parameter in without.named_parameters():
        parameter.masked_fill_(free[name], 0.0)
    return without


def dropping_test(
    network: nn.Module, wiring: Wiring, scores_G: Tensor, phis: tuple[float, ...], psnr_db: Callable[[nn.Module], float]
) -> list[dict[str, float]]:
    """What each phi costs when its kernels are dropped: rows of phi, lost_db and share (of all weights), phi rising."""
    whole_db = psnr_db(network)
    rows = []
    for phi in sorted(set(phis)):
        masks = masks_of(wiring, scores_G, phi)
        lost_db = whole_db - psnr_db(dropped(network, masks))
        rows.append({"phi": phi, "lost_db": lost_db, "share": share(retrained(network, masks))})
    return rows


def chosen_phi(curve: list[dict[str, float]], config: TGDConfig) -> float:
    """The largest phi of the dropping test that loses at most `drop_db`; RefusedError where none does."""
    allowed = [row["phi"] for row in curve if row["lost_db"] <= config.drop_db]
    if not allowed:
        least = min(curve, key=lambda row: row["lost_db"])
        raise RefusedError(
            f"no redundant kernels: without those below tgd.phi={least['phi']:g} the enhancer loses "
            f"{least['lost_db']:.2f} dB, more than tgd.drop_db={config.drop_db:g}; set a lower tgd.phis, or another "
            "method"
        )
    return max(allowed)


def touched(before: nn.Module, after: nn.Module, free: Mapping[str, Tensor]) -> list[str]:
    """Parameters and buffers of which something protected is not bit for bit what it was."""
    old = {**dict(before.named_parameters()), **dict(before.named_buffers())}
    wrong = []
    for name, value in (*after.named_parameters(), *after.named_buffers()):
        keep = ~free[name].cpu() if name in free else torch.ones_like(value, dtype=torch.bool).cpu()
        was, now = (each.detach().cpu()[keep].contiguous() for each in (old[name], value))
        if was.numpy().tobytes() != now.numpy().tobytes():
            wrong.append(name)
    return wrong
