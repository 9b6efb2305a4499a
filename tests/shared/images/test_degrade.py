from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.config import CampaignConfig, DegradeConfig
from shared.errors import ConfigError
from shared.images.degrade import (
    Blur,
    Composite,
    Downsample,
    Gaussian,
    KSpace,
    Poisson,
    acquired_rows,
    apply,
    degrade_batch,
    draw,
)
from shared.seeding import generator

KINDS = ("gaussian", "poisson", "blur", "composite", "downsample", "kspace", "low_dose")


def images(count: int = 4, channels: int = 1, height: int = 24, width: int = 32) -> Tensor:
    return 0.1 + 0.8 * torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))


def flat_image(value: float, side: int = 128) -> Tensor:
    return torch.full((1, side, side), value)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_value_gives_the_same_pixels_alone_and_in_any_batch(
    campaign: CampaignConfig, kind: str, channels: int
) -> None:
    config = DegradeConfig(
        kind=kind,  # type: ignore[arg-type]
        sigma=(0.05, 0.2),
        peak=(50, 200),
        blur_sigma_px=(0.5, 2),
        acceleration=(2, 6),
        dose=(0.1, 0.5),
    )
    rng = generator(0, kind)
    values = [draw(config, rng, campaign.data) for _ in range(4)]
    clean = images(channels=channels)
    batch = degrade_batch(clean, values)
    assert torch.equal(batch, degrade_batch(clean, values))
    assert batch.shape == clean.shape
    assert 0 <= float(batch.min()) <= float(batch.max()) <= 1
    assert not torch.equal(batch, clean)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(degrade_batch(clean[order], [values[i] for i in order]), batch[order], rtol=0, atol=1e-5)
    for index in range(4):
        torch.testing.assert_close(apply(clean[index], values[index]), batch[index], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_repeats_for_its_seed_and_differs_for_another(campaign: CampaignConfig, kind: str) -> None:
    config = DegradeConfig(kind=kind)  # type: ignore[arg-type]
    one, same, other = (draw(config, generator(seed, "degrade"), campaign.data) for seed in (0, 0, 1))
    assert one == same
    if kind not in ("blur", "downsample"):  # nothing is left to chance where the range is a point
        assert one != other


def test_draws_fill_their_range_evenly() -> None:
    config = DegradeConfig(kind="gaussian", sigma=(0.1, 0.3))
    rng = generator(0, "range")
    sigmas = [value.sigma for value in (draw(config, rng) for _ in range(500)) if isinstance(value, Gaussian)]
    assert min(sigmas) >= 0.1
    assert max(sigmas) <= 0.3
    assert sum(sigmas) / 500 == pytest.approx(0.2, abs=0.01)


def test_gaussian_noise_has_its_sigma() -> None:
    noise = apply(flat_image(0.5), Gaussian(sigma=0.1, noise_seed=3)) - 0.5
    assert float(noise.std()) == pytest.approx(0.1, rel=0.03)
    assert float(noise.mean()) == pytest.approx(0, abs=0.003)


def test_poisson_noise_has_the_variance_of_its_counts() -> None:
    noise = apply(flat_image(0.25), Poisson(peak=100, noise_seed=3)) - 0.25
    assert float(noise.var()) == pytest.approx(0.25 / 100, rel=0.05)
    assert float(noise.mean()) == pytest.approx(0, abs=0.003)


def test_blur_is_scipys_gaussian_filter() -> None:
    from scipy.ndimage import gaussian_filter

    clean = images(3)
    sigmas = (0.5, 1.0, 2.0)
    blurred = degrade_batch(clean, [Blur(sigma) for sigma in sigmas])
    for index, sigma in enumerate(sigmas):
        expected = gaussian_filter(clean[index, 0].double().numpy(), sigma, mode="mirror", radius=math.ceil(3 * sigma))
        torch.testing.assert_close(blurred[index, 0].double(), torch.from_numpy(expected), rtol=0, atol=1e-5)


def test_no_blur_changes_nothing() -> None:
    clean = images(1)
    torch.testing.assert_close(degrade_batch(clean, [Blur(0.0)]), clean)


def test_the_composite_is_blur_then_poisson_then_gaussian() -> None:
    image = images(1)[0]
    blur, poisson, gaussian = Blur(1.0), Poisson(255.0, 1), Gaussian(0.1, 2)
    counted = torch.poisson(apply(image, blur) * 255, generator=torch.Generator().manual_seed(1)) / 255
    noise = 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(apply(image, Composite(blur, poisson, gaussian)), (counted + noise).clamp(0, 1))


@pytest.mark.parametrize("size", [(32, 32), (33, 30)])
def test_downsampling_loses_detail_and_keeps_the_mean(size: tuple[int, int]) -> None:
    height, width = size
    stripes = (torch.arange(width) % 2).float().expand(1, height, width)
    flattened = apply(stripes * 0.5 + 0.25, Downsample(2))
    assert flattened.shape == (1, height, width)
    assert float(flattened[:, 8:-8, 8:-8].std()) < 0.03
    torch.testing.assert_close(apply(flat_image(0.3, 16), Downsample(4)), flat_image(0.3, 16))


@pytest.mark.parametrize("acceleration", [1.0, 2.0, 4.0, 8.0])
def test_k_space_acquires_the_centre_and_as_many_lines_as_promised(acceleration: float) -> None:
    rows = acquired_rows(64, KSpace(acceleration, 0.08, mask_seed=5))
    assert int(rows.sum()) == round(64 / acceleration)
    lowest = torch.fft.fftfreq(64).abs().argsort(stable=True)[:5]
    assert bool(rows[lowest].all())
    if 1 < acceleration < 8:
        assert not torch.equal(rows, acquired_rows(64, KSpace(acceleration, 0.08, mask_seed=6)))


def test_full_sampling_gives_the_image_back() -> None:
    clean = images(2)
    full = degrade_batch(clean, [KSpace(1.0, 0.08, 0)] * 2)
    torch.testing.assert_close(full, clean, rtol=0, atol=1e-5)


def test_lines_that_were_not_acquired_are_empty_in_k_space() -> None:
    y = torch.arange(32) / 32
    wave = (0.5 + 0.3 * torch.cos(2 * math.pi * 13 * y))[None, :, None].expand(1, 32, 16)
    degradation = KSpace(4.0, 0.2, mask_seed=0)
    rows = acquired_rows(32, degradation)
    assert not bool(rows[13])
    assert not bool(rows[19])
    torch.testing.assert_close(apply(wave, degradation), torch.full_like(wave, 0.5), rtol=0, atol=1e-5)


def test_pairs_draw_nothing(campaign: CampaignConfig) -> None:
    with pytest.raises(ConfigError, match="draws nothing"):
        draw(DegradeConfig(kind="pairs"), generator(0), campaign.data)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"peak": (0, 10)}, "degrade.peak must be above 0"),
        ({"acceleration": (0.5, 2)}, "degrade.acceleration must be 1 or more"),
        ({"centre_fraction": 0}, "degrade.centre_fraction must lie in"),
        ({"dose": (0.5, 1.5)}, "degrade.dose must lie in"),
    ],
)
def test_values_that_degrade_nothing_are_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        DegradeConfig(kind="gaussian", **values)
