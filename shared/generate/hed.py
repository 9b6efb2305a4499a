"""Holistically-nested edge detection: images in, edges in [0, 1] out, by a network with supervision at every scale.

Xie and Tu, ICCV 2015, https://arxiv.org/abs/1504.06375. Each of five stages gives a side output, one 1 x 1 convolution
brought to the image's size; a learned weighting fuses them; all six are trained, with a cross-entropy in which edges
and the rest weigh alike (equations 2 to 5). Two layouts:

    OWN   stages of 8, 16, 32, 32, 32 channels with 1, 2, 2, 2, 2 convolutions and group norm: 55 thousand parameters
    VGG   as published, VGG-16 without its last pooling: 64, 128, 256, 512, 512 channels, 2, 2, 3, 3, 3 convolutions, no
          norm, 14.7 million parameters, on three channels of 0..255 less the means of ImageNet in the order BGR

The first is what sites train; the second is for weights from elsewhere. A file has the names of this module, or
`module` / `net` `VggOne` .. `VggFive`, `ScoreOne` .. `ScoreFive` and `Combine`, as the published weights for PyTorch
(network-bsds500) have; those are pickled, and have to be saved as safetensors first, since nothing pickled is read.
What differs from the paper in both: sides are enlarged by fixed bilinear interpolation, and the image is not padded by
35 pixels before the first convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import ConfigError, DataError
from shared.generate.edges import gaussian_edges
from shared.generate.hints import label_outline

EDGE = 0.5
"""Gaussian edges from here on are edges of a target; they are 1 at an image's 99th percentile."""
_MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)
_NUMERALS = ("One", "Two", "Three", "Four", "Five")


@dataclass(frozen=True, slots=True)
class Layout:
    channels: int
    """Of an image."""
    widths: tuple[int, ...]
    convolutions: tuple[int, ...]
    norm: bool


def own_layout(channels: int) -> Layout:
    return Layout(channels, (8, 16, 32, 32, 32), (1, 2, 2, 2, 2), norm=True)


VGG = Layout(3, (64, 128, 256, 512, 512), (2, 2, 3, 3, 3), norm=False)


class Hed(nn.Module):
    """An image to logits of edges: of each stage, and fused."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        inputs = (layout.channels, *layout.widths[:-1])
        self.stages = nn.ModuleList(
            _stage(given, width, count, layout.norm)
            for given, width, count in zip(inputs, layout.widths, layout.convolutions, strict=True)
        )
        self.sides = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in layout.widths)
        self.fuse = nn.Conv2d(len(layout.widths), 1, 1)
        nn.init.constant_(self.fuse.weight, 1 / len(layout.widths))  # as published: the mean of all sides at first
        nn.init.zeros_(cast(Tensor, self.fuse.bias))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to logits (B, 6, H, W): five sides from fine to coarse, then the fused one."""
        features, sides = self._prepared(image_BCHW), []
        for number, (stage, side) in enumerate(zip(self.stages, self.sides, strict=True)):
            if number:
                features = F.max_pool2d(features, 2, ceil_mode=True)  # Caffe's rounding; and 8 pixels halve four times
            features = stage(features)
            sides.append(
                F.interpolate(side(features), size=image_BCHW.shape[-2:], mode="bilinear", align_corners=False)
            )
        side_BSHW = torch.cat(sides, dim=1)
        return torch.cat([side_BSHW, self.fuse(side_BSHW)], dim=1)

    def _prepared(self, image_BCHW: Tensor) -> Tensor:
        if self.layout != VGG:
            return image_BCHW * 2 - 1
        image_B3HW = image_BCHW.expand(-1, 3, -1, -1)  # grey is all three
        return image_B3HW.flip(1) * 255 - image_B3HW.new_tensor(_MEAN_BGR)[:, None, None]


def _stage(given: int, width: int, convolutions: int, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(convolutions):
        layers.append(nn.Conv2d(given if number == 0 else width, width, 3, padding=1))
        layers += [nn.GroupNorm(min(8, width // 4), width)] if norm else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def build_hed(channels: int, weights_path: str | None) -> Hed:
    """An edge detector for images of `channels`: OWN, drawn from torch's current generator, or what the safetensors
    file `weights_path` holds. Raises ConfigError for a file that is none or fits neither layout."""
    if weights_path is None:
        return Hed(own_layout(channels))
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        arrays = load_file(weights_path)
    except (OSError, SafetensorError):
        raise ConfigError(
            "generate.hed_weights: expected a safetensors file (pickled weights have to be saved as one first); "
            "leave it empty to train the detector in a phase of its own"
        ) from None
    published = any("VggOne" in name for name in arrays)
    hed = Hed(VGG if published else own_layout(channels))
    given = converted(arrays) if published else {name.removeprefix("hed."): array for name, array in arrays.items()}
    try:
        check_weights(given, hed)
    except DataError as error:
        raise ConfigError(f"generate.hed_weights: {error}") from None
    hed.load_state_dict(given)
    return hed


def check_weights(given: Mapping[str, Tensor], hed: Hed) -> None:
    """Raises DataError naming the first array that is missing, unknown, misshapen or not finite."""
    from shared.weights import check_arrays

    shapes = {name: tuple(tensor.shape) for name, tensor in hed.state_dict().items()}
    check_arrays({name: tensor.float().numpy() for name, tensor in given.items()}, shapes)


def converted(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names to those of a Hed of layout VGG: `moduleVggTwo.1.weight` is `stages.1.0.weight`, the pooling
    that is number 0 there being none of ours. What has no such name stays as it is, to be refused."""
    return {_converted(name): tensor for name, tensor in arrays.items()}


def _converted(name: str) -> str:
    plain = name.removeprefix("module").removeprefix("net")
    kind, *rest = plain.split(".")
    for stage, numeral in enumerate(_NUMERALS):
        if kind == f"Vgg{numeral}" and len(rest) == 2 and rest[0].isdecimal():
            return f"stages.{stage}.{int(rest[0]) - (stage > 0)}.{rest[1]}"
        if kind == f"Score{numeral}" and len(rest) == 1:
            return f"sides.{stage}.{rest[0]}"
    if kind == "Combine" and len(rest) == 2:
        return f"fuse.{rest[1]}"
    return name


def hed_target(image_BCHW: Tensor, mask_BHW: Tensor) -> Tensor:
    """(B, 1, H, W), 0 or 1: Gaussian edges of 0.5 or more, and the outlines of the mask's classes where there is one.
    Nobody draws edges by hand for us; the mask is what the detector learns that gradients do not say."""
    outline_B1HW = label_outline(mask_BHW).to(image_BCHW)
    return ((gaussian_edges(image_BCHW) >= EDGE) | (outline_B1HW > 0)).to(image_BCHW)


def hed_loss(logit_BSHW: Tensor, target_B1HW: Tensor) -> Tensor:
    """The class-balanced cross-entropy of all outputs, sides and fused, each weight 1 (equations 2 and 5): edges weigh
    as the share of what is none in the image, and the other way round. Per pixel, mean of the batch, sum of outputs."""
    target_BSHW = target_B1HW.expand_as(logit_BSHW)
    edges_B111 = target_B1HW.mean((1, 2, 3), keepdim=True)
    weight_B1HW = torch.where(target_B1HW > 0.5, 1 - edges_B111, edges_B111)
    loss_BSHW = F.binary_cross_entropy_with_logits(logit_BSHW, target_BSHW, reduction="none")
    return (loss_BSHW * weight_B1HW).mean((0, 2, 3)).sum()


def hed_edges(hed: nn.Module, image_BCHW: Tensor) -> Tensor:
    """(B, 1, H, W) in [0, 1]: the fused output; no gradient, in evaluation mode or not (it has no layer that cares)."""
    with torch.no_grad():
        return cast(Tensor, hed(image_BCHW))[:, -1:].sigmoid()
