"""Planes in; per pixel, how far the enhanced value moves when the input's noise is drawn anew, out.

Test-time noise draws: N times, noise is added to the plane and the plane is enhanced; the map is the standard deviation
of the N answers. The noise is small: SHARE of the campaign's own (Gaussian sigma, Poisson counts), because the image
has that noise already; where the campaign's degradation is no noise (blur, k-space, pairs ...) SHARE of the level
measured in the plane itself (MAD of a Laplacian; Immerkaer 1996, https://doi.org/10.1006/cviu.1996.0060).

What it is: the sensitivity of the answer to noise. High where the enhancer decides on little, as at faint edges and in
noisy regions. What it is not: an error bar. An enhancer that is wrong in the same way for every draw, on what it never
learnt, shows nothing here; that is what the flag for unusual studies is for, and no more than a flag either.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from client.enhance.release import InUse, enhanced
from shared.config import DegradeConfig
from shared.seeding import generator

SHARE = 0.5
LOWEST = 0.005
"""Least noise on the [0, 1] scale: a synthetic plane without any would answer 0 everywhere."""
WORDS = (
    "Standard deviation of the enhanced value over repeated enhancements with a little noise added: how far the answer "
    "depends on noise. It is high where the enhancer had little to decide on. It is not the error, and it is blind to "
    "what the enhancer gets wrong in the same way each time."
)


def spread(release: InUse, image_FCHW: Tensor, draws: int, seed: int = 0) -> Tensor:
    """spread_FHW on the campaign's scale, mean over channels; `draws` of 2 or more."""
    assert draws >= 2, "one draw has no spread"
    sigma_FCHW = SHARE * noise_level(release.campaign.degrade, image_FCHW)
    rng = generator(seed, "enhance", "uncertainty")
    mean, squares = torch.zeros_like(image_FCHW), torch.zeros_like(image_FCHW)
    for draw in range(1, draws + 1):
        noisy = image_FCHW + sigma_FCHW * torch.randn(image_FCHW.shape, generator=rng)
        if release.campaign.data.ingest.intensity.clip:
            noisy = noisy.clamp(0, 1)
        answered = enhanced(release, noisy).cpu()
        # Welford 1962: one pass, nothing kept.
        before = answered - mean
        mean = mean + before / draw
        squares = squares + before * (answered - mean)
    return (squares / (draws - 1)).sqrt().mean(1)


def noise_level(config: DegradeConfig, image_FCHW: Tensor) -> Tensor:
    """Standard deviation of the noise that the enhancer has learnt to remove, per pixel (or per plane)."""
    gaussian = sum(config.sigma) / 2
    poisson = (image_FCHW.clamp(min=0) / (sum(config.peak) / 2)).sqrt()
    match config.kind:
        case "gaussian":
            level = torch.full_like(image_FCHW[:1, :1, :1, :1], gaussian)
        case "poisson":
            level = poisson
        case "composite":
            level = (poisson.square() + gaussian**2).sqrt()
        case _:
            level = measured_noise(image_FCHW)
    return level.clamp(min=LOWEST)


def measured_noise(image_FCHW: Tensor) -> Tensor:
    """Standard deviation of the noise in each plane, (F, 1, 1, 1): 1.4826 MAD of a Laplacian that has norm 6."""
    channels = image_FCHW.shape[1]
    kernel = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]).expand(channels, 1, 3, 3)
    if min(image_FCHW.shape[-2:]) < 3:
        return torch.zeros(len(image_FCHW), 1, 1, 1)
    high = F.conv2d(image_FCHW, kernel, groups=channels).flatten(1) / 6
    middle = high.median(1, keepdim=True).values
    return (1.4826 * (high - middle).abs().median(1).values)[:, None, None, None]
