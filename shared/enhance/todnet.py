"""The generator of TOD-Net: a degraded image or volume in, an enhanced one of the same size out.

Zhang, Chao, Xu, Niu, Wang, Yan. Task-Oriented Low-Dose CT Image Denoising. MICCAI 2021.
https://arxiv.org/abs/2103.13557. Widths w, 2w, 4w, 8w (published: w = 32, volumes), 3 x 3 (x 3) convolutions at full
resolution, InstanceNorm without weights, LeakyReLU 0.2; the way back adds the features of the way there.

    tanh      tanh(image + residual), as released. It cannot reach the identity: tanh(1) = 0.762, so an image on [0, 1]
              comes back darker from an untrained network, and a pixel at 1 would need an infinite residual.
    linear    image + residual.

The residual starts at zero in both. InstanceNorm looks at the whole image, so a patch is not enhanced as it would be
within its image; and it takes away a bias before it, so that no convolution there has one.

With `attention` this is the generator of the sa-wgan row, after Li et al., SACNN, IEEE TMI 2020,
https://doi.org/10.1109/TMI.2020.2968472. Taken from there: self-attention among the features of a WGAN denoiser. Not
taken: their network, their split into attention within and between slices, and their perceptual loss from a
self-supervised autoencoder; the objective says what the loss is. The block is that of Zhang et al., SAGAN, 2019,
https://arxiv.org/abs/1805.08318.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.blocks import convolution, zero_conv
from shared.config import EnhancerConfig

SLOPE = 0.2
MOST_PLACES = {2: 16, 3: 8}
"""Places along an axis between which attention is paid, by number of axes: at most 256 or 512 in all."""


class SelfAttention(nn.Module):
    """features + gain * what every place sees of all places; the gain is learned and starts at 0.

    On a grid of means, because the cost grows with the square of the number of places; energies are divided by the
    root of their width (SAGAN's are not), which keeps the softmax soft at the start.
    """

    starts_at_zero = True  # its own parameter, the gain

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        conv, inner = convolution(dims), max(1, width // 8)
        self.query = conv(width, inner, 1, bias=False)
        self.key = conv(width, inner, 1, bias=False)
        self.value = conv(width, width, 1)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, features_BCHW: Tensor) -> Tensor:
        coarse_BCHW = _coarse(features_BCHW)
        query_BEN, key_BEN, value_BCN = (layer(coarse_BCHW).flatten(2) for layer in (self.query, self.key, self.value))
        energy_BNN = query_BEN.transpose(1, 2) @ key_BEN / query_BEN.shape[1] ** 0.5
        seen_BCN = value_BCN @ energy_BNN.softmax(dim=-1).transpose(1, 2)
        seen_BCHW = F.interpolate(seen_BCN.view(coarse_BCHW.shape), size=features_BCHW.shape[2:], mode="nearest")
        return features_BCHW + self.gain * seen_BCHW


def _coarse(features_BCHW: Tensor) -> Tensor:
    sizes = features_BCHW.shape[2:]
    windows = [-(-size // MOST_PLACES[len(sizes)]) for size in sizes]
    pool = F.avg_pool2d if len(sizes) == 2 else F.avg_pool3d
    pooled_BCHW: Tensor = pool(features_BCHW, windows, ceil_mode=True)
    return pooled_BCHW


class TODNetGenerator(nn.Module):
    """`config.depth` levels, the published 4; level i has `config.channels * 2**i` channels.

    image_BCHW -> enhanced_BCHW, or with dims=3 volumes, BCDHW.
    """

    def __init__(self, channels: int, config: EnhancerConfig, *, dims: int = 2) -> None:
        super().__init__()
        conv = convolution(dims)
        widths = [config.channels * 2**level for level in range(config.depth)]
        self.encode = nn.ModuleList(
            conv(above, below, 3, padding=1, bias=False) for above, below in itertools.pairwise([channels, *widths])
        )
        self.attention = SelfAttention(widths[-1], dims) if config.attention else None
        self.decode = nn.ModuleList(
            conv(below, above, 3, padding=1, bias=False) for above, below in reversed(list(itertools.pairwise(widths)))
        )
        self.residual = zero_conv(widths[0], channels, dims=dims)
        self.output = config.output

    def forward(self, image_BCHW: Tensor) -> Tensor:
        features_BCHW, skips = image_BCHW, []
        for conv in self.encode:
            features_BCHW = _activated(conv(features_BCHW))
            skips.append(features_BCHW)
        skips.pop()
        if self.attention is not None:
            features_BCHW = self.attention(features_BCHW)
        for conv in self.decode:
            features_BCHW = _activated(conv(features_BCHW) + skips.pop())
        corrected_BCHW: Tensor = image_BCHW + self.residual(features_BCHW)
        return corrected_BCHW.tanh() if self.output == "tanh" else corrected_BCHW


def _activated(features_BCHW: Tensor) -> Tensor:
    return F.leaky_relu(F.instance_norm(features_BCHW), SLOPE, inplace=True)
