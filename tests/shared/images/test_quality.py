"""Against scikit-image, which counts one image at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from shared.images.quality import psnr_db_B, rmse_B, ssim_B


def pair(channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Smooth structure and noise of a different strength for each of three images."""
    rng = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 9, height), torch.linspace(0, 7, width), indexing="ij")
    clean = (0.5 + 0.4 * torch.sin(x) * torch.cos(y)).expand(3, channels, height, width).contiguous()
    sigma = torch.tensor([0.02, 0.1, 0.3]).view(3, 1, 1, 1)
    return clean, (clean + sigma * torch.randn(clean.shape, generator=rng)).clamp(0, 1)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 48, 64), (3, 33, 21), (1, 11, 11)])
def test_whole_image_scores_are_scikit_images(channels: int, height: int, width: int) -> None:
    from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

    clean, other = pair(channels, height, width)
    ssim, psnr, rmse = ssim_B(clean, other), psnr_db_B(clean, other), rmse_B(clean, other)
    for index in range(3):
        one, two = (image[index].numpy().astype(np.float64) for image in (clean, other))
        expected = structural_similarity(
            one,
            two,
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=0,
        )
        assert float(ssim[index]) == pytest.approx(expected, abs=1e-4)
        assert float(psnr[index]) == pytest.approx(peak_signal_noise_ratio(one, two, data_range=1), abs=1e-4)
        assert float(rmse[index]) == pytest.approx(math.sqrt(mean_squared_error(one, two)), abs=1e-5)


def test_scores_inside_a_region_see_nothing_outside_it() -> None:
    clean, other = pair(1, 40, 40)
    region = torch.zeros(3, 40, 40, dtype=torch.bool)
    region[:, 10:30, 12:28] = True
    spoiled = torch.where(region[:, None], other, torch.zeros_like(other))
    assert torch.equal(rmse_B(clean, other, region), rmse_B(clean, spoiled, region))
    inside = (clean - other)[:, 0, 10:30, 12:28].square().mean((1, 2)).sqrt()
    torch.testing.assert_close(rmse_B(clean, other, region), inside)
    torch.testing.assert_close(psnr_db_B(clean, other, region), -20 * torch.log10(inside))


def test_ssim_inside_a_region_is_the_mean_of_scikit_images_map() -> None:
    from skimage.metrics import structural_similarity

    clean, other = pair(1, 40, 40)
    region = torch.zeros(3, 40, 40, dtype=torch.bool)
    region[:, 8:30, 9:28] = True
    ours = ssim_B(clean, other, region)
    for index in range(3):
        one, two = (image[index, 0].numpy().astype(np.float64) for image in (clean, other))
        _, scores = structural_similarity(
            one, two, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )
        assert float(ours[index]) == pytest.approx(scores[8:30, 9:28].mean(), abs=1e-4)


def test_an_empty_region_has_no_score() -> None:
    clean, other = pair(1, 32, 32)
    region = torch.zeros(3, 32, 32, dtype=torch.bool)
    region[1] = True
    for score in (rmse_B, psnr_db_B, ssim_B):
        assert torch.isnan(score(clean, other, region)).tolist() == [True, False, True]


def test_identical_images_score_the_most_that_is_finite() -> None:
    clean, _ = pair(1, 32, 32)
    assert psnr_db_B(clean, clean).tolist() == pytest.approx([100.0] * 3)
    assert ssim_B(clean, clean).tolist() == pytest.approx([1.0] * 3, abs=1e-6)


def test_an_image_smaller_than_the_window_still_has_an_ssim() -> None:
    clean, other = pair(1, 8, 8)
    scores = ssim_B(clean, other)
    assert bool((scores[:-1] > scores[1:]).all())
