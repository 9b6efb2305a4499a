"""Enhancers: a degraded image in, an enhanced image of the same size out; each adds a correction to its input.

    unet       residual U-Net with additive skips, one convolution a level on each way
    srresnet   the generator of Ledig et al. 2017 (https://arxiv.org/abs/1609.04802) without up-scaling, which is the
               processing network of Liu et al. (https://arxiv.org/abs/1910.09185); GroupNorm in place of BatchNorm
    cnn3       three convolutions: a baseline and a small network for fast tests
    todnet     shared/enhance/todnet.py, with self-attention on request

The last convolution starts at zero, so that an untrained enhancer is the identity (but for todnet's tanh form) and
training can only be measured against the degraded image, not against a random one. Values are not clamped: a clamp
would cut the gradient.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from shared.blocks import built, conv_block, group_norm, halved_BCHW, upsampled_BCHW, zero_conv
from shared.config import EnhancerConfig
from shared.enhance.todnet import TODNetGenerator


class ResidualUNet(nn.Module):
    """`depth` levels; level i has `width * 2**i` channels on a grid 2**i times coarser."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth)]
        pairs = list(itertools.pairwise(widths))
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True))
        self.down = nn.ModuleList(conv_block(above, below) for above, below in pairs)
        self.middle = conv_block(widths[-1], widths[-1])
        self.narrow = nn.ModuleList(nn.Conv2d(below, above, 1) for above, below in pairs)
        self.up = nn.ModuleList(conv_block(above, above) for above in widths[:-1])
        self.correction = zero_conv(width, channels, size=1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        features_BCHW = self.stem(image_BCHW)
        skips = []
        for down in self.down:
            skips.append(features_BCHW)
            features_BCHW = down(halved_BCHW(features_BCHW))
        features_BCHW = self.middle(features_BCHW)
        for level in reversed(range(len(self.up))):
            coarse_BCHW = upsampled_BCHW(self.narrow[level](features_BCHW), skips[level])
            features_BCHW = self.up[level](coarse_BCHW + skips[level])
        corrected_BCHW: Tensor = image_BCHW + self.correction(features_BCHW)
        return corrected_BCHW


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            group_norm(width),
            nn.PReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            group_norm(width),
        )

    def forward(self, features_BCHW: Tensor) -> Tensor:
        summed_BCHW: Tensor = features_BCHW + self.body(features_BCHW)
        return summed_BCHW


class SRResNet(nn.Module):
    """9 x 9 stem, `depth` residual blocks, a skip around them, 9 x 9 end."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 9, padding=4), nn.PReLU())
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(depth)))
        self.gather = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.PReLU())
        self.correction = zero_conv(width, channels, size=9)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        first_BCHW = self.stem(image_BCHW)
        features_BCHW = first_BCHW + self.gather(self.blocks(first_BCHW))
        corrected_BCHW: Tensor = image_BCHW + self.correction(features_BCHW)
        return corrected_BCHW


class ThreeConvolutions(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            zero_conv(width, channels),
        )

    def forward(self, image_BCHW: Tensor) -> Tensor:
        corrected_BCHW: Tensor = image_BCHW + self.body(image_BCHW)
        return corrected_BCHW


def build_enhancer(config: EnhancerConfig, channels: int, seed: int) -> nn.Module:
    """The named enhancer for images of `channels` channels; the same seed gives the same weights."""

    def make() -> nn.Module:
        match config.kind:
            case "unet":
                return ResidualUNet(channels, config.channels, config.depth)
            case "srresnet":
                return SRResNet(channels, config.channels, config.depth)
            case "cnn3":
                return ThreeConvolutions(channels, config.channels)
            case "todnet":
                return TODNetGenerator(channels, config)
            case "none":
                return nn.Identity()

    return built(make, seed, "enhancer")
