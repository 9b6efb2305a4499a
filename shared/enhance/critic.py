"""The critic of a WGAN: images in, one score each out, higher for what looks clean; and what keeps it Lipschitz.

Zhang et al. (TOD-Net) 2021, https://arxiv.org/abs/2103.13557: 3 x 3 (x 3) convolutions of widths w, 2w, 4w (published:
32, 64, 128) and strides 2, 2, 1, LeakyReLU 0.2, mean pooling by 2, one linear layer over all places. Pooling is onto
the grid that the campaign's image size gives, so that an image of another size has a score too.

    clip      BatchNorm as released, and after each step every weight, the norms' scales and shifts too, is cut to
              +-0.01 (Arjovsky et al. 2017, https://arxiv.org/abs/1701.07875). Scales of 0.01 leave little of the
              signal: that is the released method. Norms use the statistics of the batch at hand in every mode: running
              ones would be buffers that sites average without having agreed on them.
    penalty   InstanceNorm without weights, and 10 (|gradient of the score| - 1)^2 at a random point between each
              clean and enhanced image (Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028), for which every image
              must be scored alone.
    spectral  no norm; every layer's weights are divided by a bound of its operator norm, so that each layer, and with
              it the whole, is 1-Lipschitz (after Miyato et al. 2018, https://arxiv.org/abs/1802.05957). Exact and
              anew in each forward, where theirs keeps a vector of a power iteration: that would be a buffer, too.

In a federation the critic is averaged with the others. A mean of numbers within +-0.01 lies within +-0.01: FedAvg and
FedProx keep the clip (to rounding). A server optimiser with a step of its own may leave it until the first step at a
site. Spectral norm holds whatever the weights are; the penalty is a wish, not a bound, before averaging as after.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.blocks import built, convolution
from shared.config.campaign import CriticConfig
from shared.errors import ConfigError

CLIP = 0.01
PENALTY_WEIGHT = 10.0
SLOPE = 0.2
STRIDES = (2, 2, 1)
KERNEL = 3
SMALLEST_PX = 8
"""Below, no place is left after two strides and the pooling."""


class Critic(nn.Module):
    """image_BCHW -> score_B; BCDHW where `image_size` has three axes. All weights are float tensors, no buffers."""

    def __init__(self, config: CriticConfig, channels: int, image_size: Sequence[int]) -> None:
        super().__init__()
        dims, widths = len(image_size), [channels] + [config.channels * 2**level for level in range(len(STRIDES))]
        self.spectral = config.constraint == "spectral"
        # A norm takes away the bias before it, and the losses, which are differences, take away the last one.
        self.convolutions = nn.ModuleList(
            convolution(dims)(before, after, KERNEL, stride=stride, padding=1, bias=self.spectral)
            for (before, after), stride in zip(itertools.pairwise(widths), STRIDES, strict=True)
        )
        self.norms = nn.ModuleList(_norm(config.constraint, width, dims) for width in widths[1:])
        self.grid = tuple(-(-size // 8) for size in image_size)
        self.head = nn.Linear(widths[-1] * math.prod(self.grid), 1, bias=False)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        features_BCHW = image_BCHW
        for layer, norm, stride in zip(self.convolutions, self.norms, STRIDES, strict=True):
            assert isinstance(layer, nn.Conv2d | nn.Conv3d)
            weight = layer.weight
            if self.spectral:
                weight = weight / operator_norm_bound(weight, stride)
            convolve: Callable[..., Tensor] = F.conv2d if weight.ndim == 4 else F.conv3d
            features_BCHW = F.leaky_relu(norm(convolve(features_BCHW, weight, layer.bias, stride, 1)), SLOPE)
        pool: Callable[..., Tensor] = F.adaptive_avg_pool2d if len(self.grid) == 2 else F.adaptive_avg_pool3d
        weight = self.head.weight
        if self.spectral:
            weight = weight / torch.linalg.vector_norm(weight)
        return F.linear(pool(features_BCHW, self.grid).flatten(1), weight)[:, 0]


def _norm(constraint: str, width: int, dims: int) -> nn.Module:
    if constraint == "spectral":
        return nn.Identity()
    if constraint == "penalty":
        return nn.InstanceNorm2d(width) if dims == 2 else nn.InstanceNorm3d(width)
    batch_norm = nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d
    return batch_norm(width, track_running_stats=False)


def operator_norm_bound(weight: Tensor, stride: int) -> Tensor:
    """At least the largest |conv(x)| / |x| over all x (2-norms), whatever the size of x.

    A convolution is a matrix M, its kernels as rows, on patches. A pixel lies in at most n = ceil(kernel / stride)^dims
    patches, so that all patches together have at most n |x|^2, and the norm is at most sqrt(n) |M|_2. |M|_2 is
    the root of the largest eigenvalue of the smaller Gram matrix: a fifteenth of the time of singular values.
    """
    matrix = weight.flatten(1)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    patches = math.ceil(weight.shape[-1] / stride) ** (weight.ndim - 2)
    bound: Tensor = (patches * torch.linalg.eigvalsh(gram)[-1]).sqrt()
    return bound


@torch.no_grad()
def clip_weights(critic: nn.Module) -> None:
    for parameter in critic.parameters():
        parameter.clamp_(-CLIP, CLIP)


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], clean_BCHW: Tensor, enhanced_BCHW: Tensor, rng: torch.Generator
) -> Tensor:
    """10 (|d score / d image| - 1)^2, a mean over images, at one point between clean and enhanced for each.

    The points are drawn from `rng`, a generator on the CPU.
    """
    share_B = torch.rand(len(clean_BCHW), generator=rng).to(clean_BCHW.device)
    share_BCHW = share_B.view(-1, *[1] * (clean_BCHW.ndim - 1))
    between_BCHW = torch.lerp(enhanced_BCHW.detach(), clean_BCHW, share_BCHW).requires_grad_(True)
    (gradient_BCHW,) = torch.autograd.grad(critic(between_BCHW).sum(), between_BCHW, create_graph=True)
    norm_B = torch.linalg.vector_norm(gradient_BCHW.flatten(1), dim=1)
    penalty: Tensor = PENALTY_WEIGHT * (norm_B - 1).square().mean()
    return penalty


def build_critic(config: CriticConfig, channels: int, image_size: Sequence[int], seed: int) -> Critic:
    """The critic for images (or volumes) of `image_size`; the same seed gives the same weights.

    With clip it starts clipped, where the released one starts to be after its first step. Raises ConfigError for
    images too small to have a score.
    """
    if min(image_size) < SMALLEST_PX:
        raise ConfigError(
            f"the critic of a WGAN objective needs images of {SMALLEST_PX} pixels or more along each axis, got "
            f"data.image_size={list(image_size)}; choose objective=plain or gradprom"
        )
    critic = built(lambda: Critic(config, channels, image_size), seed, "critic")
    assert isinstance(critic, Critic)
    if config.constraint == "clip":
        clip_weights(critic)
    return critic
