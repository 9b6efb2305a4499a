from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shared.images.quality import psnr_db_B
from simulation.study.denoisers import estimated_sigma, non_local_means
from tests.client.slices import disc_slices


def noisy(clean: Tensor, sigma: float, seed: int = 0) -> Tensor:
    return clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.2])
def test_the_noise_is_found_on_an_image_with_structure(sigma: float) -> None:
    slope = torch.linspace(0.3, 0.7, 64).expand(1, 64, 64)
    assert estimated_sigma(noisy(slope, sigma)) == pytest.approx(sigma, rel=0.1)


def test_a_clipped_background_hides_no_noise() -> None:
    """Two thirds of the image are background, where half of the noise was clipped away."""
    clean = torch.zeros(1, 96, 96)
    clean[:, :32] = 0.5
    found = noisy(clean, 0.1).clamp(0, 1)
    assert estimated_sigma(found) == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize("sigma", [0.1, 0.2])
@pytest.mark.parametrize("shades", [(1.0,), (0.5, 1.0, 1.4)])
def test_psnr_rises_on_every_noisy_image(sigma: float, shades: tuple[float, ...]) -> None:
    clean = disc_slices(6, side=64).clean_NCHW * torch.tensor(shades).view(-1, 1, 1)
    clean = clean.clamp(0, 1)
    degraded = noisy(clean, sigma).clamp(0, 1)
    denoised = non_local_means(degraded)
    gained = psnr_db_B(clean, denoised) - psnr_db_B(clean, degraded)
    assert float(gained.min()) > 2, gained


def test_shape_dtype_and_range_are_kept() -> None:
    degraded = noisy(torch.rand(2, 3, 20, 27, generator=torch.Generator().manual_seed(1)), 0.3)
    denoised = non_local_means(degraded)
    assert denoised.shape == degraded.shape
    assert denoised.dtype == torch.float32
    assert float(denoised.min()) >= 0
    assert float(denoised.max()) <= 1
    assert non_local_means(degraded.double()).dtype == torch.float64


def test_every_image_is_denoised_alone() -> None:
    clean = disc_slices(3, side=32).clean_NCHW
    degraded = torch.cat([noisy(clean[:1], 0.05), noisy(clean[1:2], 0.2), clean[2:]]).clamp(0, 1)
    whole = non_local_means(degraded)
    assert torch.equal(whole, torch.cat([non_local_means(degraded[index : index + 1]) for index in range(3)]))


def test_an_image_without_noise_comes_back_as_it_is() -> None:
    flat = torch.full((1, 1, 16, 16), 0.5)
    assert torch.equal(non_local_means(flat), flat)
    assert torch.equal(non_local_means(torch.zeros(1, 1, 16, 16)), torch.zeros(1, 1, 16, 16))


def test_it_works_where_evaluation_calls_it() -> None:
    degraded = noisy(disc_slices(2).clean_NCHW, 0.1).clamp(0, 1)
    with torch.inference_mode():
        inside = non_local_means(degraded)
    assert torch.equal(inside, non_local_means(degraded))
