"""Strong augmentation: drawn as a value, then applied to images on the [0, 1] scale with any number of channels.

The pool and the magnitudes of MultiMix's released code (Haque, Imran, Wang, Terzopoulos,
https://arxiv.org/abs/2010.14731), which are FixMatch's RandAugment without colour (Sohn et al., https://arxiv.org/abs/2001.07685):
a horizontal flip, a shift of up to 4 px over a mirrored border, then two operations of the pool, each left out half of
the time, with a level of 1 to 9 tenths. As Pillow has them, but for two things: rotation and shear are bilinear and
about the centre (there: nearest neighbour, shear about a corner), and nothing is rounded to 8 bits without need.

    flip                     left and right exchanged
    crop_x, crop_y           px; the window moves right or down, the border is mirrored
    rotate                   degrees, counter-clockwise; outside is 0, as for all that follow
    shear_x, shear_y         pixels right (down) for every pixel down (right)
    translate_x, translate_y share of the width (height), cut to whole pixels, right (down)
    brightness, contrast     factor; contrast is about the mean of the image
    sharpness                factor; 0 is a 3 x 3 smoothing
    autocontrast             each channel's smallest and largest value become 0 and 1
    equalize                 each channel's histogram of 8-bit levels flattened
    posterize                bits that are left of 8
    solarize                 values from here on are inverted

`strengthened` is differentiable with respect to the images. Posterize and equalize are piecewise constant or have no
derivative that means anything, so their gradient is passed straight through, as if they were the identity; all others
have their own (that of solarize is -1 where it inverts).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CROP_PX = 4
OPERATIONS = 2
LEVELS = 9
"""Levels are 1/10 to 9/10 of the strongest; the released code never draws 10/10."""


@dataclass(frozen=True, slots=True)
class Strong:
    """One image's strong augmentation."""

    operations: tuple[tuple[str, float], ...]
    """(name, magnitude), applied in this order."""


# What (level, sign) means for each operation of the pool.
_POOL: Mapping[str, Callable[[float, int], float]] = {
    "autocontrast": lambda level, sign: 0.0,
    "brightness": lambda level, sign: 0.05 + 0.9 * level,
    "contrast": lambda level, sign: 0.05 + 0.9 * level,
    "equalize": lambda level, sign: 0.0,
    "identity": lambda level, sign: 0.0,
    "posterize": lambda level, sign: 4.0 + math.floor(4 * level),
    "rotate": lambda level, sign: sign * 30 * level,
    "sharpness": lambda level, sign: 0.05 + 0.9 * level,
    "shear_x": lambda level, sign: sign * 0.3 * level,
    "shear_y": lambda level, sign: sign * 0.3 * level,
    "solarize": lambda level, sign: (256 - math.floor(256 * level)) / 255,
    "translate_x": lambda level, sign: sign * 0.3 * level,
    "translate_y": lambda level, sign: sign * 0.3 * level,
}


def draw_strong(rng: torch.Generator) -> Strong:
    """One image's; the same number of draws whatever comes out, so that the next image's does not depend on it."""
    flip, down, right, *pool = torch.rand(3 + 4 * OPERATIONS, generator=rng, dtype=torch.float64).tolist()
    operations = [("flip", 1.0)] if flip < 0.5 else []
    operations += [
        (name, float(_among(2 * CROP_PX + 1, u) - CROP_PX)) for name, u in (("crop_y", down), ("crop_x", right))
    ]
    for i in range(OPERATIONS):
        which, level, sign, applied = pool[4 * i : 4 * i + 4]
        name = list(_POOL)[_among(len(_POOL), which)]
        magnitude = _POOL[name]((1 + _among(LEVELS, level)) / 10, 1 if sign < 0.5 else -1)
        if applied < 0.5:
            operations.append((name, magnitude))
    return Strong(tuple(operations))


def _among(count: int, u: float) -> int:
    return math.floor(count * u)


def strengthened(images_BCHW: Tensor, values: Sequence[Strong]) -> Tensor:
    """Each image under its value, clamped to [0, 1]; sides of more than CROP_PX pixels."""
    assert len(values) == len(images_BCHW), (len(values), images_BCHW.shape)
    return torch.stack(
        [_applied(image_CHW, value, "bilinear") for image_CHW, value in zip(images_BCHW, values, strict=True)]
    ).clamp(0, 1)


def moved(maps: Tensor, values: Sequence[Strong]) -> tuple[Tensor, Tensor]:
    """Masks_BHW (class codes) or probabilities_BKHW where `strengthened` moves the images' pixels: those, valid_BHW.

    Nearest neighbour; what comes from outside of the image is 0 and not valid. A mirrored border is valid.
    """
    assert len(values) == len(maps), (len(values), maps.shape)
    maps_BKHW = maps[:, None].float() if maps.ndim == 3 else maps
    carried_BKHW = torch.cat([maps_BKHW, torch.ones_like(maps_BKHW[:, :1])], dim=1)
    still = [Strong(tuple(each for each in value.operations if each[0] in _GEOMETRIC)) for value in values]
    moved_BKHW = torch.stack(
        [_applied(map_KHW, value, "nearest") for map_KHW, value in zip(carried_BKHW, still, strict=True)]
    )
    found_BKHW, valid_BHW = moved_BKHW[:, :-1], moved_BKHW[:, -1] > 0.5
    return (found_BKHW[:, 0].to(maps.dtype) if maps.ndim == 3 else found_BKHW), valid_BHW


def _applied(image_CHW: Tensor, value: Strong, mode: str) -> Tensor:
    for name, magnitude in value.operations:
        if name in _GEOMETRIC:
            image_CHW = _GEOMETRIC[name](image_CHW, magnitude, mode)
        else:
            image_CHW = _PHOTOMETRIC[name](image_CHW, magnitude)
    return image_CHW


def _cropped(image_CHW: Tensor, offset: int, dim: int) -> Tensor:
    last = image_CHW.shape[dim] - 1
    places = (torch.arange(last + 1, device=image_CHW.device) + offset).abs()
    return image_CHW.index_select(dim, last - (last - places).abs())


def _translated(image_CHW: Tensor, down: int, right: int) -> Tensor:
    return F.pad(image_CHW, (right, -right, down, -down))  # a negative pad cuts off


def _warped(image_CHW: Tensor, xx: float, xy: float, yx: float, yy: float, mode: str) -> Tensor:
    """What is seen at (x, y) comes from (xx x + xy y, yx x + yy y): pixels from the centre, y downwards."""
    _, height, width = image_CHW.shape
    # grid_sample's coordinates run from -1 to 1 over either side.
    rows = [[xx, xy * height / width, 0.0], [yx * width / height, yy, 0.0]]
    to_source_123 = torch.tensor([rows], dtype=image_CHW.dtype, device=image_CHW.device)
    grid_1HW2 = F.affine_grid(to_source_123, [1, 1, height, width], align_corners=False)
    return F.grid_sample(image_CHW[None], grid_1HW2, mode=mode, padding_mode="zeros", align_corners=False)[0]


def _rotated(image_CHW: Tensor, degrees: float, mode: str) -> Tensor:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _warped(image_CHW, cos, -sin, sin, cos, mode)


_GEOMETRIC: Mapping[str, Callable[[Tensor, float, str], Tensor]] = {
    "flip": lambda image, _, mode: image.flip(-1),
    "crop_x": lambda image, offset, mode: _cropped(image, int(offset), -1),
    "crop_y": lambda image, offset, mode: _cropped(image, int(offset), -2),
    "rotate": _rotated,
    "shear_x": lambda image, shear, mode: _warped(image, 1, -shear, 0, 1, mode),
    "shear_y": lambda image, shear, mode: _warped(image, 1, 0, -shear, 1, mode),
    "translate_x": lambda image, share, mode: _translated(image, 0, int(share * image.shape[-1])),
    "translate_y": lambda image, share, mode: _translated(image, int(share * image.shape[-2]), 0),
}


def _autocontrast(image_CHW: Tensor, _: float) -> Tensor:
    low_C11, high_C11 = image_CHW.amin((1, 2), keepdim=True), image_CHW.amax((1, 2), keepdim=True)
    spread_C11 = high_C11 > low_C11
    # A constant channel stays; its own division must not happen, or its gradient would be NaN.
    span_C11 = torch.where(spread_C11, high_C11 - low_C11, 1.0)
    return torch.where(spread_C11, (image_CHW - low_C11) / span_C11, image_CHW)


def _contrast(image_CHW: Tensor, factor: float) -> Tensor:
    return torch.lerp(image_CHW.mean(), image_CHW, factor)


def _sharpness(image_CHW: Tensor, factor: float) -> Tensor:
    """Pillow's smoothing: the eight neighbours with weight 1, the pixel itself with 5; the outermost pixels stay."""
    inner_CHW = image_CHW[:, 1:-1, 1:-1]
    smooth_CHW = (9 * F.avg_pool2d(image_CHW, 3, stride=1) + 4 * inner_CHW) / 13
    return image_CHW + (1 - factor) * F.pad(smooth_CHW - inner_CHW, (1, 1, 1, 1))


def _levels(image_CHW: Tensor) -> Tensor:
    """8-bit levels, still floating; NaN is level 0 here and stays NaN in the image."""
    return (255 * image_CHW.detach().nan_to_num(0).clamp(0, 1)).round()


def _straight_through(image_CHW: Tensor, result_CHW: Tensor) -> Tensor:
    return image_CHW + (result_CHW - image_CHW).detach()


def _equalize(image_CHW: Tensor, _: float) -> Tensor:
    """A level becomes the share of pixels below it, in steps of 1/255 of all pixels but those of the highest level."""
    levels_CP = _levels(image_CHW).long().flatten(1)
    counts_CV = levels_CP.new_zeros(len(levels_CP), 256).scatter_add_(1, levels_CP, torch.ones_like(levels_CP))
    highest_C1 = (levels_CP == levels_CP.amax(1, keepdim=True)).sum(1, keepdim=True)
    step_C1 = (levels_CP.shape[1] - highest_C1) // 255
    below_CV = counts_CV.cumsum(1) - counts_CV
    table_CV = ((step_C1 // 2 + below_CV) // step_C1.clamp(min=1)).clamp(max=255)
    equal_CHW = (table_CV.gather(1, levels_CP) / 255).view_as(image_CHW)
    return _straight_through(image_CHW, torch.where(step_C1[:, :, None] > 0, equal_CHW, image_CHW))


def _posterize(image_CHW: Tensor, bits: float) -> Tensor:
    step = 2.0 ** (8 - bits)
    return _straight_through(image_CHW, (_levels(image_CHW) / step).floor() * step / 255)


_PHOTOMETRIC: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "autocontrast": _autocontrast,
    "brightness": lambda image, factor: factor * image,
    "contrast": _contrast,
    "equalize": _equalize,
    "identity": lambda image, _: image,
    "posterize": _posterize,
    "sharpness": _sharpness,
    "solarize": lambda image, threshold: torch.where(image < threshold, image, 1 - image),
}
