"""Gates: how much of the task gradient v may be added to the enhancer's own gradient g.

    global      v if <g, v> > 0, else nothing: Zhang and Cheng 2025; Du et al. 2018, unweighted.
                <d, g> >= |g|^2, with d = g + lambda passed(v)
    layer       the same for every parameter tensor on its own.
                <d, g> >= |g|^2 in every block
    weighted    max(0, cos(g, v)) v: Du et al. 2018, weighted.
                <d, g> >= |g|^2, and what is added goes to 0 with the agreement
    projected   v without its part against g, where there is one: v - <g, v> / |g|^2 g (Yu et al. 2020, one way round).
                <d, g> >= |g|^2, equal to |g|^2 where the two conflict
    confident   v if <g, v> > 0 and the lower confidence bound of the cosine over micro batches is above 0.
                <d, g> >= |g|^2; where the expected cosine is 0 it opens with probability 1 - confidence at most
                (nominal: for independent, normal cosines)

All hold for the gradients of the batch that the step is taken on, for any lambda >= 0, up to rounding. `capped` adds
|d| <= (1 + kappa) |g|: with it d goes to 0 where g does, so that a stationary point of the main loss is one of the
step.

Equal is closed: at <g, v> = 0 nothing passes (but for projected, where nothing of v is then against g), and nothing
passes of a v that is not finite.

Du, Czarnecki et al. https://arxiv.org/abs/1812.02224. Yu et al. (PCGrad) https://arxiv.org/abs/2001.06782.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from shared.config import ObjectiveConfig


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """What of v passes, and the share of v's blocks that are open (0-dim; 0 or 1 for a gate of one bit)."""

    v_D: Tensor
    open: Tensor


def passed(
    g_D: Tensor, v_D: Tensor, objective: ObjectiveConfig, blocks: Sequence[int], cosines_M: Tensor | None = None
) -> Passed:
    """`v_D` through `objective.gate`. `blocks` are the sizes of the parameter tensors in g and v; `cosines_M` the
    cosines of the micro batches, which `confident` needs."""
    assert objective.gated
    match objective.gate:
        case "global":
            return _where(_agree(torch.dot(g_D, v_D)), v_D)
        case "layer":
            return layerwise(g_D, v_D, blocks)
        case "weighted":
            return _where(_agree(torch.dot(g_D, v_D)), cosine(g_D, v_D) * v_D)
        case "projected":
            return projected(g_D, v_D)
        case "confident":
            assert cosines_M is not None
            sure = lower_bound(cosines_M, objective.confidence) > 0
            return _where(_agree(torch.dot(g_D, v_D)) & sure, v_D)


def _agree(dots: Tensor) -> Tensor:
    # An infinite v has a dot product of +inf as easily as of NaN.
    return (dots > 0) & torch.isfinite(dots)


def _where(opened: Tensor, v_D: Tensor) -> Passed:
    # where, not opened * v: 0 * inf is NaN, and a closed gate must leave g to the bit.
    return Passed(torch.where(opened, v_D, 0.0), opened.float())


def layerwise(g_D: Tensor, v_D: Tensor, blocks: Sequence[int]) -> Passed:
    """A gate per block of weights: one convolution's kernel, one norm's scale."""
    dots = torch.stack([part.sum() for part in torch.split(g_D * v_D, list(blocks))])
    opened = _agree(dots)
    sizes = torch.tensor(blocks, device=opened.device)
    opened_D = torch.repeat_interleave(opened, sizes, output_size=len(v_D))
    return Passed(torch.where(opened_D, v_D, 0.0), opened.float().mean())


def projected(g_D: Tensor, v_D: Tensor) -> Passed:
    """Only what goes against g is taken away; open counts the batches where nothing was."""
    dot, square = torch.dot(g_D, v_D), torch.dot(g_D, g_D)
    against = dot.clamp(max=0) / square
    usable = torch.isfinite(dot) & (square > 0)
    return Passed(torch.where(usable, v_D - against * g_D, 0.0), _agree(dot).float())


def cosine(g_D: Tensor, v_D: Tensor) -> Tensor:
    """cos(g, v), 0 where either is 0."""
    norms = torch.linalg.vector_norm(g_D) * torch.linalg.vector_norm(v_D)
    value: Tensor = torch.dot(g_D, v_D) / norms.clamp(min=torch.finfo(norms.dtype).tiny)
    return value


def lower_bound(cosines_M: Tensor, confidence: float) -> Tensor:
    """Student's one-sided lower confidence bound of the mean of M >= 2 values, which are taken as independent."""
    count = len(cosines_M)
    error = cosines_M.std(correction=1) / count**0.5
    bound: Tensor = cosines_M.mean() - _student_quantile(confidence, count - 1) * error
    return bound


@lru_cache
def _student_quantile(confidence: float, degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf(confidence, degrees))


def capped(added_D: Tensor, g_D: Tensor, kappa: float | None) -> Tensor:
    """`added_D` with its norm cut to kappa |g|."""
    if kappa is None:
        return added_D
    norm = torch.linalg.vector_norm(added_D).clamp(min=torch.finfo(added_D.dtype).tiny)
    cut_D: Tensor = added_D * (kappa * torch.linalg.vector_norm(g_D) / norm).clamp(max=1.0)
    return cut_D
