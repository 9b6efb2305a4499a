"""The saliency bridge of MultiMix: |d (highest class score) / d image| and the image, small, into the decoder.

Haghighi, Imran, Terzopoulos et al. https://arxiv.org/abs/2010.14731.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.config import LearnConfig

Bridge = Literal["normalised", "raw"]
"""How saliency enters: divided by its 99th percentile over the image, or as it comes (as published)."""

PERCENTILE = 0.99


def bridge_of(learn: LearnConfig) -> Bridge | None:
    """None for a recogniser without a bridge."""
    if not learn.saliency:
        return None
    return "normalised" if learn.saliency_norm else "raw"


def saliency_from_graph(score_logits_BN: Tensor, image_BCHW: Tensor) -> Tensor:
    """saliency_B1HW of the forward that made the logits from `image_BCHW` (which requires grad); the graph is kept.

    The largest over the channels, detached: no gradient flows through it, and no parameter gets a `.grad`.
    """
    (gradient_BCHW,) = torch.autograd.grad(score_logits_BN.amax(1).sum(), image_BCHW, retain_graph=True)
    return gradient_BCHW.detach().abs().amax(1, keepdim=True)


def bridged(image_BCHW: Tensor, saliency_B1HW: Tensor, like_BCHW: Tensor, bridge: Bridge) -> Tensor:
    """Image and saliency, bilinear at the size of `like_BCHW`: (B, C + 1, h, w)."""
    if bridge == "normalised":
        saliency_B1HW = saliency_B1HW / percentile_B1HW(saliency_B1HW).clamp(min=torch.finfo(torch.float32).tiny)
    seen_BCHW = torch.cat([image_BCHW.detach(), saliency_B1HW], dim=1)
    return F.interpolate(seen_BCHW, size=like_BCHW.shape[-2:], mode="bilinear", align_corners=True)


def percentile_B1HW(saliency_B1HW: Tensor) -> Tensor:
    """The smallest of each image's highest hundredth, (B, 1, 1, 1); by topk, which ONNX has."""
    flat_BP = saliency_B1HW.flatten(1)
    highest = max(1, math.floor((1 - PERCENTILE) * flat_BP.shape[1]))
    return flat_BP.topk(highest, dim=1).values[:, -1].view(-1, 1, 1, 1)


def saliency_of(network: nn.Module, image_BCHW: Tensor) -> Tensor:
    """saliency_B1HW of a network that judges, whatever the mode of autograd; nothing is left behind."""
    with torch.inference_mode(False), torch.enable_grad():
        image_BCHW = image_BCHW.detach().clone().requires_grad_()
        logits_BN = network.encode(image_BCHW).diagnosis_logits_BN  # type: ignore[operator]
        return saliency_from_graph(logits_BN, image_BCHW)
