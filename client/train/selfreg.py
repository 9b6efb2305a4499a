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
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
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
    loss = deepest_BCHW.new_zeros((), dtype=torch.float32)
    if config.consistency_weight > 0 and decoder:
        assert config.consistency == "mean" or rng is not None, "channels are drawn from a generator"
        drawn = rng if config.consistency == "random" else None
        loss = loss + config.consistency_weight * scr([*encoder, *decoder[:-1]], decoder[-1], drawn)
    if config.distillation_weight > 0:
        halves = [ifd(part, detach=config.detach, sort=config.sort) for part in (encoder, decoder[:-1]) if part]
        loss = loss + config.distillation_weight * torch.stack(halves).sum()
    return loss


def scr(students: Sequence[Tensor], teacher_BCHW: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """Semantic consistency of maps (B, C, H, W) of any sizes with the teacher's, which gets no gradient; their mean.

    With `rng` the random form, without it the mean form.
    """
    teacher_BCHW = teacher_BCHW.detach()
    if rng is None:
        teacher_BCHW = teacher_BCHW.mean(1, keepdim=True)
    pooled: dict[tuple[int, int], Tensor] = {}  # of the teacher; blocks of one size share it
    terms = []
    for student_BCHW in students:
        size = _smaller(student_BCHW, teacher_BCHW)
        if size not in pooled:
            pooled[size] = _pooled_BCHW(teacher_BCHW, size)
        ours_BCHW, target_BCHW = _pooled_BCHW(student_BCHW, size), pooled[size]
        if rng is not None:
            most = min(ours_BCHW.shape[1], target_BCHW.shape[1])
            ours_BCHW, target_BCHW = (_drawn_BCHW(maps, most, rng) for maps in (ours_BCHW, target_BCHW))
        terms.append(F.mse_loss(ours_BCHW, target_BCHW.expand_as(ours_BCHW)))
    return torch.stack(terms).mean()


def ifd(blocks: Sequence[Tensor], *, detach: bool = True, sort: bool = False) -> Tensor:
    """Distillation within maps (B, C, H, W), one half of the channels into the other; their mean."""
    return torch.stack([_ifd(sorted_BCHW(block) if sort else block, detach=detach) for block in blocks]).mean()


def _ifd(features_BCHW: Tensor, *, detach: bool) -> Tensor:
    half = features_BCHW.shape[1] // 2
    if not half:
        return features_BCHW.new_zeros(())
    first_BCHW, second_BCHW = features_BCHW[:, :half], features_BCHW[:, half : 2 * half]
    return F.mse_loss(second_BCHW, first_BCHW.detach() if detach else first_BCHW)


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


def _smaller(a_BCHW: Tensor, b_BCHW: Tensor) -> tuple[int, int]:
    return min(a_BCHW.shape[2], b_BCHW.shape[2]), min(a_BCHW.shape[3], b_BCHW.shape[3])


def _pooled_BCHW(features_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    return features_BCHW if features_BCHW.shape[-2:] == size else F.adaptive_avg_pool2d(features_BCHW, size)


def _drawn_BCHW(features_BCHW: Tensor, count: int, rng: torch.Generator) -> Tensor:
    chosen = torch.randperm(features_BCHW.shape[1], generator=rng)[:count]
    return features_BCHW.index_select(1, chosen.to(features_BCHW.device))
