"""SelfReg-UNet: what a recogniser's forward returned in, a regulariser of its own feature maps out; no parameters.

Zhu et al. MICCAI 2024, https://arxiv.org/abs/2406.14896. Every block of a U-Net has a map F_m. With the names of
shared.recognise.recognition, the encoder's are `skips` (from fine to coarse) and the deepest, `features[0]`; the
decoder's are the rest of `features`, the last of which, D1, is the teacher. The first encoder block takes no part.

    SCR    semantic consistency: every block but D1 imitates D1, which stands nearest to the labels; mean over blocks.
           The larger of two maps is averaged down to the smaller.
           random: min(C_m, C_D1) channels, drawn for each side by itself, are compared in the order drawn (as released)
           mean:   E[random] = mean_i |F_i - mean_c D1|^2 + Var_c D1, without the variance: D1 is held fixed, so that it
                   is a constant. No draw, no copies of channels
    IFD    internal feature distillation: the second half of a map's channels imitates the first; mean over the
           encoder's blocks plus mean over the decoder's without D1. Of an odd number of channels the last is left out.
           sort:   channels are put in order of mean(F / |F|_2) first (as released)
           detach: only the second half is moved; as released both are, towards each other

SCR pulls every channel of a block towards one map, which may collapse features: `effective_rank` watches it.

The mean form and unsorted distillation have a gradient that is at hand once the loss is: it is written down instead of
left to autograd, which would make one per term, full of zeros where a half is left out and in another memory order than
the maps'. That is most of what they cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from shared.config import SelfRegConfig
from shared.recognise.recognition import Recognition

_TINY = torch.finfo(torch.float32).tiny


def selfreg_loss(recognition: Recognition, config: SelfRegConfig, rng: torch.Generator | None = None) -> Tensor:
    """lambda1 SCR + lambda2 IFD, 0-dim: a mean over the images. `rng` is read for consistency=random only.

    Without a decoder there is no teacher, and distillation is of the encoder alone.
    """
    deepest_BCHW, *decoder = recognition.features
    encoder = [*recognition.skips[1:], deepest_BCHW]
    inner, teacher_BCHW = decoder[:-1], decoder[-1] if decoder else None
    lambda1 = 0.0 if teacher_BCHW is None else config.consistency_weight
    lambda2 = config.distillation_weight
    if config.consistency == "mean" and not config.sort:
        students = [*encoder, *inner]
        shares = [lambda2 / len(part) for part in (encoder, inner) for _ in part]
        return _pulled(students, teacher_BCHW, lambda1 / len(students), shares, detach=config.detach)
    terms = []
    if lambda1 > 0 and teacher_BCHW is not None:
        assert config.consistency == "mean" or rng is not None, "channels are drawn from a generator"
        drawn = rng if config.consistency == "random" else None
        terms.append(lambda1 * scr([*encoder, *inner], teacher_BCHW, drawn))
    if lambda2 > 0:
        terms += [lambda2 * ifd(part, detach=config.detach, sort=config.sort) for part in (encoder, inner) if part]
    return torch.stack(terms).sum() if terms else deepest_BCHW.new_zeros((), dtype=torch.float32)


def scr(students: Sequence[Tensor], teacher_BCHW: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """Semantic consistency of maps (B, C, H, W) of any sizes with the teacher's, which gets no gradient; their mean.

    With `rng` the random form, without it the mean form.
    """
    if rng is None:
        return _pulled(students, teacher_BCHW, 1 / len(students), [0.0] * len(students), detach=True)
    targets = _targets(students, teacher_BCHW.detach())
    terms = []
    for student_BCHW, target_BCHW in zip(students, targets, strict=True):
        most = min(student_BCHW.shape[1], target_BCHW.shape[1])
        ours_BCHW = _drawn_BCHW(_pooled_BCHW(student_BCHW, target_BCHW), most, rng)
        terms.append(F.mse_loss(ours_BCHW, _drawn_BCHW(target_BCHW, most, rng)))
    return torch.stack(terms).mean()


def ifd(blocks: Sequence[Tensor], *, detach: bool = True, sort: bool = False) -> Tensor:
    """Distillation within maps (B, C, H, W), one half of the channels into the other; their mean."""
    if sort:
        blocks = [sorted_BCHW(block_BCHW) for block_BCHW in blocks]
    return _pulled(blocks, None, 0.0, [1 / len(blocks)] * len(blocks), detach=detach)


def _pulled(
    maps: Sequence[Tensor],
    teacher_BCHW: Tensor | None,
    consistency: float,
    distillation: Sequence[float],
    *,
    detach: bool,
) -> Tensor:
    """The sum over maps of `consistency` times the mean form of SCR and each map's `distillation` times its IFD."""
    targets: Sequence[Tensor | None] = [None] * len(maps)
    if teacher_BCHW is not None and consistency > 0:
        targets = _targets(maps, teacher_BCHW.detach().mean(1, keepdim=True, dtype=torch.float32))
    pulled, asked = list[Tensor](), list[_Asked]()
    for map_BCHW, target_B1HW, share in zip(maps, targets, distillation, strict=True):
        if target_B1HW is not None and target_B1HW.shape[-2:] != map_BCHW.shape[-2:]:
            # The teacher is the smaller one: its pull is of another map than the one that is distilled.
            pulled.append(_pooled_BCHW(map_BCHW, target_B1HW))
            asked.append((target_B1HW, consistency, 0.0))
            target_B1HW = None
        pulled.append(map_BCHW)
        asked.append((target_B1HW, consistency, share))
    return _pull(asked, detach, *pulled)


_Asked = tuple[Tensor | None, float, float]
"""Of one map: target_B1HW, a constant, or None for no consistency; the weights of consistency and distillation."""


class _Pull(torch.autograd.Function):
    """The sum over maps F of consistency mean |F - target|^2 + distillation mean |second half - first half|^2, with one
    gradient for each. Maps are taken together because small ones cost less than the calls to handle them."""

    @staticmethod
    def forward(ctx: Any, asked: Sequence[_Asked], detach: bool, *maps: Tensor) -> Tensor:
        pulls, scales, norms, weights = [], [], [], []
        for map_BCHW, (target_B1HW, consistency, distillation) in zip(maps, asked, strict=True):
            half = map_BCHW.shape[1] // 2
            if target_B1HW is None:
                pull_BCHW, scale = torch.zeros_like(map_BCHW, dtype=torch.float32), 1.0
            else:
                pull_BCHW, scale = _less(map_BCHW, target_B1HW), consistency / map_BCHW.numel()
                norms.append(torch.linalg.vector_norm(pull_BCHW))
                weights.append(scale)
            if half and distillation > 0:
                apart_BCHW = _less(map_BCHW[:, half : 2 * half], map_BCHW[:, :half])
                weight = distillation / apart_BCHW.numel()
                norms.append(torch.linalg.vector_norm(apart_BCHW))
                weights.append(weight)
                pull_BCHW[:, half : 2 * half].add_(apart_BCHW, alpha=weight / scale)
                if not detach:
                    pull_BCHW[:, :half].sub_(apart_BCHW, alpha=weight / scale)
            pulls.append(pull_BCHW)
            scales.append(2 * scale)
        ctx.save_for_backward(*pulls)
        ctx.scales = scales
        if not norms:
            return maps[0].new_zeros((), dtype=torch.float32)
        norms_T = torch.stack(norms)
        return torch.dot(norms_T.square(), norms_T.new_tensor(weights))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor | None, ...]:
        scales = (of_loss * of_loss.new_tensor(ctx.scales)).unbind()
        return None, None, *(pull_BCHW * scale for pull_BCHW, scale in zip(ctx.saved_tensors, scales, strict=True))


_pull: Callable[..., Tensor] = _Pull.apply


def sorted_BCHW(features_BCHW: Tensor) -> Tensor:
    """Channels in descending order of mean over images and pixels of F / |F|_2, the norm being each map's own."""
    with torch.no_grad():
        norm_BC = torch.linalg.vector_norm(features_BCHW, dim=(2, 3)).clamp(min=_TINY)
        order_C = (features_BCHW.mean((2, 3)) / norm_BC).mean(0).argsort(descending=True)
    return features_BCHW.index_select(1, order_C)


def effective_rank(features_BCHW: Tensor) -> float:
    """In [1, C]: exp of the entropy of the singular values, as shares of their sum, of the channel x pixel matrix.

    Roy, Vetterli. The effective rank. EUSIPCO 2007. All images' pixels are columns of one matrix. It is not centred:
    maps that have become one map have rank 1, also where that map is constant. 0 where all is 0, NaN where a value is
    not finite.
    """
    matrix_CN = features_BCHW.detach().movedim(1, 0).flatten(1).double()
    gram_CC = matrix_CN @ matrix_CN.T  # squares of the singular values, at the cost of a small matrix
    if not bool(torch.isfinite(gram_CC).all()):
        return math.nan
    values_C = torch.linalg.eigvalsh(gram_CC).clamp(min=0).sqrt()
    if not bool(values_C.sum() > 0):
        return 0.0
    return float(torch.special.entr(values_C / values_C.sum()).sum().exp())


def _targets(students: Sequence[Tensor], teacher_BCHW: Tensor) -> list[Tensor]:
    """The teacher at the smaller of each student's size and its own; students of one size share it."""
    pooled: dict[tuple[int, int], Tensor] = {}
    targets = []
    for student_BCHW in students:
        height, width = map(min, student_BCHW.shape[-2:], teacher_BCHW.shape[-2:])
        if (height, width) not in pooled:
            pooled[height, width] = _averaged_BCHW(teacher_BCHW, height, width)
        targets.append(pooled[height, width])
    return targets


def _pooled_BCHW(features_BCHW: Tensor, like_BCHW: Tensor) -> Tensor:
    return _averaged_BCHW(features_BCHW, like_BCHW.shape[2], like_BCHW.shape[3])


def _averaged_BCHW(features_BCHW: Tensor, height: int, width: int) -> Tensor:
    down, across = features_BCHW.shape[2] // height, features_BCHW.shape[3] // width
    if features_BCHW.shape[-2:] == (height, width):
        return features_BCHW
    if features_BCHW.shape[-2:] == (down * height, across * width):  # the same, and cheaper
        return F.avg_pool2d(features_BCHW, (down, across))
    return F.adaptive_avg_pool2d(features_BCHW, (height, width))


def _less(a: Tensor, b: Tensor) -> Tensor:
    """a - b, in float32 also where the network runs in half of it."""
    return a.float() - b.float() if a.dtype in (torch.bfloat16, torch.float16) else a - b


def _drawn_BCHW(features_BCHW: Tensor, count: int, rng: torch.Generator) -> Tensor:
    chosen = torch.randperm(features_BCHW.shape[1], generator=rng)[:count]
    return features_BCHW.index_select(1, chosen.to(features_BCHW.device))
