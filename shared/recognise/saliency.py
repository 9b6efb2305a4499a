"""The saliency bridge of MultiMix: |d (highest class score) / d image| and the image, small, into the decoder.

Haque, Imran, Wang, Terzopoulos. https://arxiv.org/abs/2010.14731.

While training, saliency comes from the graph of the step's own forward (`saliency_from_graph`). For evaluation there is
the closed-form saliency: the vector-Jacobian product of the encoder, written out as forward operations. Every layer
pulls the cotangent back through what it was given,

    convolution            the transposed convolution with the same kernel
    Group- and InstanceNorm  (g w - mean(g w) - x^ mean(g w x^)) / sigma, means over a group, x^ the normalised input
    ReLU, LeakyReLU        1, or 0 (the slope), by the sign
    mean of 2 x 2 pixels   to each pixel its share; at an odd edge fewer pixels share
    maximum of 2 x 2       to the first of the highest
    mean, maximum over the image  1 / HW; to the highest, ties evenly
    linear layer           the rows of its weights; of the class with the highest score at first, ties evenly
    dropout                as it is, for it rests in evaluation

which is what autograd does, to rounding. So evaluation needs no autograd, runs in torch.inference_mode and exports.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.blocks import halved_BCHW, halved_maximum_BCHW
from shared.config import LearnConfig
from shared.recognise.recognition import Encoding, mean_BC, pooled_BC

Bridge = Literal["normalised", "raw"]
"""How saliency enters: divided by its 99th percentile over the image, or as it comes (as published)."""
Layer = nn.Module | Callable[[Tensor], Tensor]
Step = tuple[Layer, Tensor]
"""A layer on the way from the image to the class scores, and what it was given."""

PERCENTILE = 0.99


class Bridged(Protocol):
    """What a network with a bridge has; `saliency` is None where a campaign leaves the bridge out."""

    saliency: Bridge | None
    training: bool

    def encode(self, image_BCHW: Tensor, steps: list[Step] | None = None) -> Encoding: ...


def bridge_of(learn: LearnConfig) -> Bridge | None:
    """None for a recogniser without a bridge."""
    if not learn.saliency:
        return None
    return "normalised" if learn.saliency_norm else "raw"


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


# ------------------------------------------------------------------------------------------- where saliency comes from


def saliency_from_graph(score_logits_BN: Tensor, image_BCHW: Tensor) -> Tensor:
    """saliency_B1HW of the forward that made the logits from `image_BCHW` (which requires grad); the graph is kept.

    The largest over the channels, detached: no gradient flows through it, and no parameter gets a `.grad`.
    """
    (gradient_BCHW,) = torch.autograd.grad(score_logits_BN.amax(1).sum(), image_BCHW, retain_graph=True)
    return gradient_BCHW.detach().abs().amax(1, keepdim=True)


def saliency_of(network: Bridged, image_BCHW: Tensor) -> Tensor:
    """saliency_B1HW of a network that judges, whatever the mode of autograd; nothing is left behind.

    The closed form in evaluation; while training, where dropout draws, a forward and a backward of their own.
    """
    if not network.training:
        steps: list[Step] = []
        with torch.no_grad():
            return saliency_from_steps(steps, _scores_BN(network.encode(image_BCHW, steps)))
    with torch.inference_mode(False), torch.enable_grad():
        image_BCHW = image_BCHW.detach().clone().requires_grad_()
        return saliency_from_graph(_scores_BN(network.encode(image_BCHW)), image_BCHW)


def encoded(network: Bridged, image_BCHW: Tensor) -> tuple[Encoding, Tensor | None]:
    """What a decoder goes on from, with saliency where there is a bridge: in evaluation from one run of the encoder."""
    if network.saliency is None:
        return network.encode(image_BCHW), None
    if network.training:
        return network.encode(image_BCHW), saliency_of(network, image_BCHW)
    steps: list[Step] = []
    encoding = network.encode(image_BCHW, steps)
    return encoding, saliency_from_steps(steps, _scores_BN(encoding))


def _scores_BN(encoding: Encoding) -> Tensor:
    assert encoding.diagnosis_logits_BN is not None, "saliency is of the class scores"
    return encoding.diagnosis_logits_BN


# ------------------------------------------------------------------------------------------- the closed form


def passed(layers: Iterable[Layer], features: Tensor, steps: list[Step] | None = None) -> Tensor:
    """Through the layers one after the other, noting in `steps` what each was given."""
    for layer in layers:
        if steps is not None:
            steps.append((layer, features))
        features = layer(features)
    return features


def saliency_from_steps(steps: list[Step], score_logits_BN: Tensor) -> Tensor:
    """saliency_B1HW in closed form, of the steps that led from the image to the logits in evaluation.

    A ReLU that works in place has changed what it was given, but not which side of 0 that is on.
    """
    with torch.no_grad():
        cotangent = _highest(score_logits_BN, (1,))
        for layer, given in reversed(steps):
            cotangent = _pulled_back(layer, given, cotangent)
        return cotangent.abs().amax(1, keepdim=True)


def _pulled_back(layer: Layer, given: Tensor, cotangent: Tensor) -> Tensor:
    """The transposed Jacobian of `layer` at `given`, times the cotangent."""
    match layer:
        case nn.Conv2d():
            return _convolution_back(layer, given, cotangent)
        case nn.GroupNorm():
            return _norm_back(given, cotangent, layer.num_groups, layer.eps, layer.weight)
        case nn.InstanceNorm2d():
            assert not layer.track_running_stats, "statistics of other images"
            return _norm_back(given, cotangent, given.shape[1], layer.eps, layer.weight)
        case nn.ReLU():
            return torch.where(given > 0, cotangent, 0)
        case nn.LeakyReLU():
            return torch.where(given > 0, cotangent, layer.negative_slope * cotangent)
        case nn.Dropout():
            return cotangent
        case nn.Linear():
            return cotangent @ layer.weight
    if layer is halved_BCHW:
        return _halved_back(given, cotangent)
    if layer is halved_maximum_BCHW:
        return _halved_maximum_back(given, cotangent)
    if layer is mean_BC:
        return _mean_back(given, cotangent)
    assert layer is pooled_BC, f"no closed form of {layer}"
    of_mean_BC, of_maximum_BC = cotangent.chunk(2, dim=1)
    return _mean_back(given, of_mean_BC) + of_maximum_BC[..., None, None] * _highest(given, (2, 3))


def _convolution_back(layer: nn.Conv2d, given: Tensor, cotangent: Tensor) -> Tensor:
    assert layer.padding_mode == "zeros"
    assert not isinstance(layer.padding, str)
    # What a stride steps over at the far edge has no output of its own, and comes back as zeros.
    left_over = [
        size - ((out - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1)
        for size, out, stride, padding, dilation, kernel in zip(
            given.shape[-2:],
            cotangent.shape[-2:],
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.kernel_size,
            strict=True,
        )
    ]
    return F.conv_transpose2d(
        cotangent, layer.weight, None, layer.stride, layer.padding, left_over, layer.groups, layer.dilation
    )


def _norm_back(given: Tensor, cotangent: Tensor, groups: int, eps: float, weight_C: Tensor | None) -> Tensor:
    if weight_C is not None:
        cotangent = cotangent * weight_C[:, None, None]
    in_groups = (given.shape[0], groups, -1)
    given_BGD, cotangent_BGD = given.reshape(in_groups), cotangent.reshape(in_groups)
    centred_BGD = given_BGD - given_BGD.mean(2, keepdim=True)
    variance_BG1 = centred_BGD.square().mean(2, keepdim=True) + eps  # torch.var_mean takes four times as long
    along_BG1 = (cotangent_BGD * centred_BGD).mean(2, keepdim=True) / variance_BG1
    across_BGD = cotangent_BGD - cotangent_BGD.mean(2, keepdim=True)
    return (torch.addcmul(across_BGD, centred_BGD, along_BG1, value=-1) * variance_BG1.rsqrt()).reshape(given.shape)


def _halved_back(given: Tensor, cotangent: Tensor) -> Tensor:
    height, width = given.shape[-2:]
    spread_BCHW = F.interpolate(cotangent, scale_factor=2.0, mode="nearest")[..., :height, :width]
    return spread_BCHW * (_share(height, given)[:, None] * _share(width, given))


def _share(size: int, like: Tensor) -> Tensor:
    """Of each pixel in its mean along one side: a half, but the odd one at the end is alone."""
    share = torch.full((size,), 0.5, dtype=like.dtype, device=like.device)
    return torch.cat([share[:-1], torch.ones_like(share[-1:])]) if size % 2 else share


def _halved_maximum_back(given: Tensor, cotangent: Tensor) -> Tensor:
    height, width = given.shape[-2:]
    padded_BCHW = F.pad(given, (0, width % 2, 0, height % 2), value=-math.inf)
    corners = [padded_BCHW[..., row::2, column::2] for row, column in itertools.product((0, 1), (0, 1))]
    highest_BCHW = functools.reduce(torch.maximum, corners)
    # The first of the highest takes all, as in max_pool2d: flat regions have many.
    parts = []
    for corner_BCHW in corners:
        part_BCHW = torch.where(corner_BCHW == highest_BCHW, cotangent, 0)
        cotangent = cotangent - part_BCHW
        parts.append(part_BCHW)
    return F.pixel_shuffle(torch.stack(parts, 2).flatten(1, 2), 2)[..., :height, :width]


def _mean_back(given: Tensor, cotangent_BC: Tensor) -> Tensor:
    return (cotangent_BC / (given.shape[-2] * given.shape[-1]))[..., None, None].expand_as(given)


def _highest(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The gradient of values.amax(dims): 1 at the highest, shared evenly among ties."""
    highest = (values == values.amax(dims, keepdim=True)).to(values.dtype)
    return highest / highest.sum(dims, keepdim=True)
