"""Images in, edges in [0, 1] out, by Gaussian gradients at several scales: a hint that needs no trained network."""

from __future__ import annotations

from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMAS_PX = (1.0, 2.0, 4.0)
TRUNCATE = 4.0
"""Kernels end at this many sigma, as scipy's do."""
FULL = 0.99
"""The share of an image's pixels whose edges are weaker than 1."""
FAINTEST = 1e-3
"""Per pixel on the [0, 1] scale: in an image whose edges are all fainter, the divisor is this."""


def gaussian_edges(image_BCHW: Tensor) -> Tensor:
    """(B, 1, H, W) in [0, 1]: the largest Gaussian gradient magnitude over scales and channels, divided by its 99th
    percentile in each image, and 1 beyond it. A flat image has none. Deterministic, on any device."""
    # Gradients do not see a constant; without it a flat image gives 0 and not what rounding leaves.
    level_BCHW = image_BCHW - image_BCHW[..., :1, :1]
    magnitude_B1HW = torch.stack([gradient_magnitude(level_BCHW, sigma) for sigma in SIGMAS_PX]).amax((0, 2))[:, None]
    divisor_B = quantile(magnitude_B1HW.flatten(1), FULL).clamp(min=FAINTEST)
    return (magnitude_B1HW / divisor_B[:, None, None, None]).clamp(max=1)


def gradient_magnitude(image_BCHW: Tensor, sigma_px: float) -> Tensor:
    """|gradient of the Gaussian-filtered image|, per pixel, of each channel; borders repeat in mirror image. The same
    as scipy.ndimage.gaussian_gradient_magnitude with its defaults."""
    radius = int(TRUNCATE * sigma_px + 0.5)
    offset_K = torch.arange(-radius, radius + 1, dtype=torch.float64)
    smooth_K = torch.exp(-0.5 * (offset_K / sigma_px) ** 2)
    smooth_K /= smooth_K.sum()
    slope_K = offset_K / sigma_px**2 * smooth_K
    smooth, slope = (kernel_K.to(image_BCHW) for kernel_K in (smooth_K, slope_K))
    return torch.hypot(separable(image_BCHW, smooth, slope), separable(image_BCHW, slope, smooth))


def separable(image_BCHW: Tensor, down_K: Tensor, across_K: Tensor) -> Tensor:
    """Each channel correlated with a kernel down its columns and one along its rows, of odd lengths."""
    batch, channels, height, width = image_BCHW.shape
    padded = symmetric_pad(image_BCHW.reshape(-1, 1, height, width), len(down_K) // 2, len(across_K) // 2)
    filtered = F.conv2d(F.conv2d(padded, down_K[None, None, :, None]), across_K[None, None, None, :])
    return filtered.reshape(batch, channels, height, width)


def symmetric_pad(image_BCHW: Tensor, down: int, across: int) -> Tensor:
    """`down` rows above and below and `across` columns at both sides, mirrored at the border between pixels
    (d c b a | a b c d | d c b a), however small the image. torch has no such mode."""
    height, width = image_BCHW.shape[-2:]
    row = _mirrored(height, down).to(image_BCHW.device)
    column = _mirrored(width, across).to(image_BCHW.device)
    return image_BCHW[..., row, :][..., column]


def quantile(value_BN: Tensor, share: float) -> Tensor:
    """Of each row, interpolated as numpy does; torch.quantile stops at 16 million values."""
    sorted_BN = value_BN.sort(dim=1).values
    place = share * (value_BN.shape[1] - 1)
    low, high = int(place), ceil(place)
    return torch.lerp(sorted_BN[:, low], sorted_BN[:, high], place - low)


def _mirrored(length: int, margin: int) -> Tensor:
    place = torch.arange(-margin, length + margin) % (2 * length)
    return torch.where(place < length, place, 2 * length - 1 - place)
