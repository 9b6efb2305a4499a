"""Classical augmentations that generated images are held against: drawn as a value, then applied to images and masks.

Ranges of the baselines beside EMIT-Diff (Zhang et al., https://arxiv.org/abs/2310.12868; released code,
segmentation/dataset/augmentation/data_augment.py), every draw uniform:

    contrast   about each channel's mean, factor 0.75 to 1.25
    noise      white and Gaussian, standard deviation 0 to 0.05 on the [0, 1] scale
    rotate     up to 5 degrees either way, about the centre
    scale      magnified 0.95 to 1.05 times, about the centre
    deepstack  rotation and scale in one resampling, then contrast, then noise, as a scanner would have it
    spatial    rotate and scale: what emit-diff+spatial does to a real image, its synthetic partner and their mask alike

Alone, each is applied to every image, as published. In the stack each is applied to half of the images, so that one in
sixteen is left as it is; that is ours, for the released branch of DeepStack cannot be reached and names nnU-Net's 2-D
stack (probabilities 0.1 to 0.2), which has other operations.

The published number of the noise is called a variance. batchgenerators, which the released code draws it with, hands it
to numpy as the standard deviation, and so do we: a variance of 0.05 would be a deviation of 0.22, four times as strong.

Images are bilinear, masks nearest neighbour, and what comes from outside is 0; results are clamped to [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

CONTRAST = (0.75, 1.25)
NOISE_SPREAD = (0.0, 0.05)
DEGREES = (-5.0, 5.0)
MAGNIFICATION = (0.95, 1.05)
STACKED = 0.5
"""Probability of each operation of the stack."""

Operation = Literal["rotate", "scale", "contrast", "noise"]
ORDER: tuple[Operation, ...] = ("rotate", "scale", "contrast", "noise")
OPERATIONS: Mapping[str, frozenset[Operation]] = {
    "contrast": frozenset({"contrast"}),
    "noise": frozenset({"noise"}),
    "rotate": frozenset({"rotate"}),
    "scale": frozenset({"scale"}),
    "deepstack": frozenset(ORDER),
    "emit-diff+spatial": frozenset({"rotate", "scale"}),
}
"""Of AugmentConfig.kind; a kind that is not here leaves images as they are."""


@dataclass(frozen=True, slots=True)
class Classical:
    """One image's augmentation; as it stands, none."""

    degrees: float = 0.0
    """Counter-clockwise."""
    magnified: float = 1.0
    contrast: float = 1.0
    noise_spread: float = 0.0
    noise_seed: int = 0

    @property
    def moves(self) -> bool:
        return self.degrees != 0 or self.magnified != 1


def draw_classical(kind: str, rng: torch.Generator) -> Classical:
    """One image's. Every kind takes the same draws from `rng`: rotate has the angles that deepstack has, where it has
    one, and no image's value depends on the one before it."""
    applied, uniform = torch.rand(2, len(ORDER), generator=rng, dtype=torch.float64).tolist()
    seed = int(torch.randint(2**63 - 1, (), generator=rng))
    wanted = OPERATIONS.get(kind, frozenset())
    share = STACKED if kind == "deepstack" else 1.0
    chosen = {name: u for name, luck, u in zip(ORDER, applied, uniform, strict=True) if name in wanted and luck < share}
    return Classical(
        degrees=_between(DEGREES, chosen["rotate"]) if "rotate" in chosen else 0.0,
        magnified=_between(MAGNIFICATION, chosen["scale"]) if "scale" in chosen else 1.0,
        contrast=_between(CONTRAST, chosen["contrast"]) if "contrast" in chosen else 1.0,
        noise_spread=_between(NOISE_SPREAD, chosen["noise"]) if "noise" in chosen else 0.0,
        noise_seed=seed if "noise" in chosen else 0,
    )


def _between(bounds: tuple[float, float], u: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * u


def varied(images_BCHW: Tensor, values: Sequence[Classical]) -> Tensor:
    """Images on the [0, 1] scale, each under its value; one whose value is none keeps every bit."""
    assert len(values) == len(images_BCHW), (len(values), images_BCHW.shape)
    if all(value == Classical() for value in values):
        return images_BCHW
    moved_BCHW = _resampled(images_BCHW, values, "bilinear")
    return torch.stack([_toned(image_CHW, value) for image_CHW, value in zip(moved_BCHW, values, strict=True)])


def varied_masks(mask_BHW: Tensor, values: Sequence[Classical]) -> Tensor:
    """Class codes of any dtype where `varied` moves their images' pixels."""
    assert len(values) == len(mask_BHW), (len(values), mask_BHW.shape)
    return _resampled(mask_BHW[:, None].float(), values, "nearest")[:, 0].to(mask_BHW.dtype)


def _toned(image_CHW: Tensor, value: Classical) -> Tensor:
    if value.contrast != 1:
        image_CHW = torch.lerp(image_CHW.mean((1, 2), keepdim=True), image_CHW, value.contrast).clamp(0, 1)
    if value.noise_spread > 0:
        rng = torch.Generator().manual_seed(value.noise_seed)
        noise_CHW = torch.randn(image_CHW.shape, generator=rng).to(image_CHW.device)
        image_CHW = (image_CHW + value.noise_spread * noise_CHW).clamp(0, 1)
    return image_CHW


def _resampled(images_BCHW: Tensor, values: Sequence[Classical], mode: str) -> Tensor:
    """All images that move in one resampling; the others are not touched, for that of the identity rounds."""
    moving = [place for place, value in enumerate(values) if value.moves]
    if not moving:
        return images_BCHW
    height, width = images_BCHW.shape[-2:]
    to_source_M23 = torch.tensor([_to_source(values[place], height, width) for place in moving])
    taken_MCHW = images_BCHW[moving]
    grid_MHW2 = F.affine_grid(to_source_M23, list(taken_MCHW.shape), align_corners=False).to(images_BCHW.device)
    result_BCHW = images_BCHW.clone()
    result_BCHW[moving] = F.grid_sample(taken_MCHW, grid_MHW2, mode=mode, padding_mode="zeros", align_corners=False)
    return result_BCHW


def _to_source(value: Classical, height: int, width: int) -> list[list[float]]:
    """What is seen at (x, y) comes from this times (x, y): from the centre, y downwards, in halves of either side."""
    cos = math.cos(math.radians(value.degrees)) / value.magnified
    sin = math.sin(math.radians(value.degrees)) / value.magnified
    return [[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]
