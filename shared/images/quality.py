"""Two batches of images in, PSNR, SSIM and RMSE per image out, over the whole image or inside a region.

Per image, never per batch: the mean of PSNRs is not the PSNR of the mean error. SSIM is Wang et al. 2004
(https://doi.org/10.1109/TIP.2003.819861): Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03, population
covariance, data range 1. Where an image has no pixel in the region the result is NaN, left out by `shared.metrics`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LOWEST_MSE = 1e-10
"""Identical images score 100 dB instead of infinity, which no mean survives."""

_RADIUS = 5
_SIGMA = 1.5


def rmse_B(clean_BCHW: Tensor, other_BCHW: Tensor, region_BHW: Tensor | None = None) -> Tensor:
    """Root mean squared error on the [0, 1] scale."""
    return _mse_B(clean_BCHW, other_BCHW, region_BHW).sqrt()


def psnr_db_B(clean_BCHW: Tensor, other_BCHW: Tensor, region_BHW: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB for data range 1."""
    return -10 * torch.log10(_mse_B(clean_BCHW, other_BCHW, region_BHW).clamp(min=LOWEST_MSE))


def ssim_B(clean_BCHW: Tensor, other_BCHW: Tensor, region_BHW: Tensor | None = None) -> Tensor:
    """Structural similarity; channels are averaged.

    Whole image: over the pixels whose window lies inside the image (as scikit-image crops). Region: over its pixels,
    with the image mirrored at the border.
    """
    if region_BHW is None and min(clean_BCHW.shape[-2:]) > 2 * _RADIUS:
        return _ssim_map_BCHW(clean_BCHW, other_BCHW).mean((1, 2, 3))
    padded = [F.pad(image.float(), (_RADIUS,) * 4, mode="reflect") for image in (clean_BCHW, other_BCHW)]
    return _mean_B(_ssim_map_BCHW(*padded), region_BHW)


def _mse_B(clean_BCHW: Tensor, other_BCHW: Tensor, region_BHW: Tensor | None) -> Tensor:
    return _mean_B((clean_BCHW.float() - other_BCHW.float()).square(), region_BHW)


def _mean_B(values_BCHW: Tensor, region_BHW: Tensor | None) -> Tensor:
    if region_BHW is None:
        return values_BCHW.mean((1, 2, 3))
    inside_BHW = region_BHW.to(values_BCHW.dtype)
    return (values_BCHW.mean(1) * inside_BHW).sum((1, 2)) / inside_BHW.sum((1, 2))


def _ssim_map_BCHW(clean_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
    x, y = clean_BCHW.float(), other_BCHW.float()
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = _windowed(torch.stack([x, y, x * x, y * y, x * y]))
    var_x, var_y, cov = mean_xx - mean_x**2, mean_yy - mean_y**2, mean_xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    alike, spread = 2 * mean_x * mean_y + c1, mean_x**2 + mean_y**2 + c1
    score_BCHW: Tensor = alike * (2 * cov + c2) / (spread * (var_x + var_y + c2))
    return score_BCHW


def _windowed(images: Tensor) -> Tensor:
    """Gaussian mean of each full window over the last two axes.

    Two products with banded matrices: on a CPU several times faster than a convolution with one channel.
    """
    rows_of_window, columns_of_window = (_window_matrix(size, images) for size in images.shape[-2:])
    smooth: Tensor = rows_of_window @ images @ columns_of_window.T
    return smooth


def _window_matrix(size: int, like: Tensor) -> Tensor:
    """Row i holds the window of 2 * radius + 1 weights that starts at pixel i."""
    starts = torch.arange(size - 2 * _RADIUS, device=like.device, dtype=like.dtype)
    offset = torch.arange(size, device=like.device, dtype=like.dtype) - starts[:, None] - _RADIUS
    weights = torch.exp(-(offset**2) / (2 * _SIGMA**2)) * (offset.abs() <= _RADIUS)
    return weights / weights.sum(1, keepdim=True)
