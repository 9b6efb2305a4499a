"""A large image in, the enhancer's answer out, computed tile by tile; equal to the answer for the whole image.

Every tile is read with a halo as wide as the network sees, its corner lies on the network's coarsest grid, and at the
border of the image nothing is added: the network's own zero padding is there what it is for the whole image.

GroupNorm and InstanceNorm look at the whole image. Their moments are gathered exactly, one norm after another: in pass
k every tile runs up to its k-th norm, with the k - 1 norms before it given, and adds the sums of its core. So a network
with K norms is run K times in part and once to its end (unet of 3 levels: about 3 times the work), and memory stays
that of one tile: with 16 channels and TILE = 512 some 20 MB for each map that is alive, 0.3 GB in all, beside the image
and the answer. Sums are taken in float64.

Not for todnet's self-attention, whose places see each other across the whole image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from shared.config import EnhancerConfig

TILE = 512
"""Rows and columns of a core."""
MOST_VALUES = 1 << 24
"""Of the widest map of the network for one whole image; 64 MB as float32, of which up to ten are alive."""


class Tile(NamedTuple):
    """One part of the image: the core that it answers for, and what is read around it."""

    core: tuple[slice, slice]
    read: tuple[slice, slice]

    @property
    def inner(self) -> tuple[slice, slice]:
        """The core within what is read."""
        rows, columns = (
            slice(core.start - read.start, core.stop - read.start)
            for core, read in zip(self.core, self.read, strict=True)
        )
        return rows, columns


class Moments(NamedTuple):
    """Of one norm over the whole image, by image and group."""

    mean_BG: Tensor
    variance_BG: Tensor


def stride_px(config: EnhancerConfig) -> int:
    """The coarsest grid of the network, in pixels: sizes that it divides lose nothing on the way."""
    return int(2 ** (config.depth - 1)) if config.kind == "unet" else 1


def halo_px(config: EnhancerConfig) -> int:
    """How far an output pixel sees, rounded up to the network's stride; sums of the radii of its convolutions."""
    depth = config.depth
    radius: int
    match config.kind:
        case "unet":
            radius = 1 + sum(2**level for level in range(1, depth)) + 2 ** (depth - 1)
            # A pixel shares its block of 2 x 2 with others on the way down and up: one block more at each level.
            radius += sum(2**level for level in range(depth - 1)) + 2 ** (depth + 1)
        case "srresnet":
            radius = 4 + 2 * depth + 1 + 4
        case "cnn3":
            radius = 3
        case "todnet":
            radius = 2 * depth
        case "none":
            radius = 0
    stride = stride_px(config)
    return -(-radius // stride) * stride


def fits_whole(config: EnhancerConfig, height: int, width: int) -> bool:
    """Whether an image is enhanced in one piece."""
    widest = config.channels * (2 ** (config.depth - 1) if config.kind == "todnet" else 1)
    return height * width * widest <= MOST_VALUES


def enhanced_in_tiles(enhancer: nn.Module, image_BCHW: Tensor, config: EnhancerConfig, tile: int = TILE) -> Tensor:
    """What `enhancer(image_BCHW)` is, not clamped; sizes must be multiples of the stride."""
    assert not config.attention, "attention sees the whole image"
    stride = stride_px(config)
    assert not any(size % stride for size in image_BCHW.shape[-2:]), image_BCHW.shape
    tiles = tuple(tiles_of(image_BCHW.shape[-2], image_BCHW.shape[-1], -(-tile // stride) * stride, halo_px(config)))
    norms: list[Moments] = []
    while (found := _gathered(enhancer, image_BCHW, tiles, norms)) is not None:
        norms.append(found)
    whole_BCHW = torch.empty_like(image_BCHW)
    for each in tiles:
        with _Norms(norms, None):
            answer_BCHW = enhancer(image_BCHW[:, :, each.read[0], each.read[1]])
        whole_BCHW[:, :, each.core[0], each.core[1]] = answer_BCHW[:, :, each.inner[0], each.inner[1]]
    return whole_BCHW


def tiles_of(height: int, width: int, tile: int, halo: int) -> Iterator[Tile]:
    """Cores that cover the image once, row by row; what is read ends at the border of the image."""
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            core = slice(top, min(top + tile, height)), slice(left, min(left + tile, width))
            read = (
                slice(max(0, core[0].start - halo), min(height, core[0].stop + halo)),
                slice(max(0, core[1].start - halo), min(width, core[1].stop + halo)),
            )
            yield Tile(core, read)


class _Reached(Exception):
    """The norm whose moments are gathered was met; the rest of the network is not run."""


class _Norms(TorchFunctionMode):
    """Inside, norms take the moments that are given, in the order in which the network meets them; the one after the
    last is handed to `gather`, or computed as ever where there is none."""

    def __init__(self, norms: list[Moments], gather: Callable[[Tensor, int], None] | None) -> None:
        super().__init__()
        self.norms, self.gather, self.met = norms, gather, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.group_norm:
            return self._normalised(args[0], args[1], kwargs["weight"], kwargs["bias"], kwargs["eps"])
        if func is F.instance_norm:
            assert kwargs["running_mean"] is None, "running statistics are not of this image"
            return self._normalised(args[0], args[0].shape[1], kwargs["weight"], kwargs["bias"], kwargs["eps"])
        return func(*args, **kwargs)

    def _normalised(
        self, features_BCHW: Tensor, groups: int, weight_C: Tensor | None, bias_C: Tensor | None, eps: float
    ) -> Tensor:
        if self.met == len(self.norms):
            assert self.gather is not None, "every norm was gathered before the last pass"
            self.gather(features_BCHW, groups)
            raise _Reached
        moments = self.norms[self.met]
        self.met += 1
        channels = features_BCHW.shape[1]
        scale_BC = (moments.variance_BG + eps).rsqrt().repeat_interleave(channels // groups, 1)
        shift_BC = -moments.mean_BG.repeat_interleave(channels // groups, 1) * scale_BC
        if weight_C is not None:
            scale_BC, shift_BC = scale_BC * weight_C, shift_BC * weight_C
        if bias_C is not None:
            shift_BC = shift_BC + bias_C
        scaled_BCHW = features_BCHW * scale_BC[:, :, None, None].to(features_BCHW.dtype)
        return scaled_BCHW.add_(shift_BC[:, :, None, None].to(features_BCHW.dtype))


def _gathered(enhancer: nn.Module, image_BCHW: Tensor, tiles: tuple[Tile, ...], norms: list[Moments]) -> Moments | None:
    """Moments of the first norm that has none yet, over the cores of all tiles; None where every norm has them."""
    sums: list[Tensor] = []
    for tile in tiles:

        def gather(features_BCHW: Tensor, groups: int, tile: Tile = tile) -> None:
            scale = (tile.read[0].stop - tile.read[0].start) // features_BCHW.shape[-2]
            rows, columns = (slice(part.start // scale, part.stop // scale) for part in tile.inner)
            core_BGN = features_BCHW[:, :, rows, columns].double().reshape(len(features_BCHW), groups, -1)
            count_BG = torch.full_like(core_BGN[..., 0], core_BGN.shape[-1])
            part = torch.stack([count_BG, core_BGN.sum(-1), core_BGN.square().sum(-1)])
            sums.append(part)

        try:
            with _Norms(norms, gather):
                enhancer(image_BCHW[:, :, tile.read[0], tile.read[1]])
        except _Reached:
            continue
        return None
    count_BG, sum_BG, square_BG = torch.stack(sums).sum(0)
    mean_BG = sum_BG / count_BG
    return Moments(mean_BG, (square_BG / count_BG - mean_BG.square()).clamp(min=0))
