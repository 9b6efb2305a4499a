"""Against geometry and the statistics of photons."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from shared.config import CampaignConfig, DegradeConfig, IngestConfig, IntensityConfig
from shared.errors import ConfigError
from shared.images.low_dose import (
    MU_WATER_PER_MM,
    CTScale,
    LowDose,
    add_low_dose_noise,
    back_project,
    ct_scale,
    num_angles,
    project,
)

SCALE = CTScale(low_hu=-160, high_hu=240, pixel_mm=4.0)


def disc(side: int, radius: float) -> Tensor:
    """Anti-aliased, so that its area is that of the circle."""
    fine = 8
    axis = (torch.arange(side * fine) + 0.5) / fine - side / 2
    inside = (axis[:, None] ** 2 + axis[None, :] ** 2 < radius**2).float()
    return inside.view(side, fine, side, fine).mean((1, 3))


def noise_hu(dose: float, seed: int = 0, images: int = 6) -> Tensor:
    image = 0.4 * (disc(48, 18) > 0.5).float().expand(images, 1, 48, 48)
    drawn = [LowDose(dose, 1e5, SCALE, seed + number) for number in range(images)]
    return (add_low_dose_noise(image, drawn) - image) * 400


def test_a_projection_is_the_chord_through_the_disc() -> None:
    radius = 20.0
    (sinogram,) = project(disc(64, radius)[None], 12)
    t = torch.arange(sinogram.shape[1]) - (sinogram.shape[1] - 1) / 2
    chord = 2 * (radius**2 - t**2).clamp(min=0).sqrt()
    inside = t.abs() < radius - 1
    for angle in range(12):
        torch.testing.assert_close(sinogram[angle][inside], chord[inside], rtol=0.02, atol=0.5)
        assert float(sinogram[angle].sum()) == pytest.approx(math.pi * radius**2, rel=0.005)


def test_a_projection_of_a_gaussian_off_centre_is_the_gaussian_at_its_place() -> None:
    x0, y0, sigma, angles = 7.0, -4.0, 3.0, 10
    axis = torch.arange(64) - 31.5
    image = torch.exp(-((axis[None, :] - x0) ** 2 + (axis[:, None] - y0) ** 2) / (2 * sigma**2))
    (sinogram,) = project(image[None], angles)
    t = torch.arange(sinogram.shape[1]) - (sinogram.shape[1] - 1) / 2
    for index in range(angles):
        theta = math.pi * index / angles
        place = x0 * math.cos(theta) + y0 * math.sin(theta)
        expected = sigma * math.sqrt(2 * math.pi) * torch.exp(-((t - place) ** 2) / (2 * sigma**2))
        torch.testing.assert_close(sinogram[index], expected, rtol=0, atol=0.03 * float(expected.max()))


def test_back_projection_undoes_the_projection() -> None:
    image = disc(64, 22) - 0.5 * disc(64, 9)
    restored = back_project(project(image[None], num_angles(64)), (64, 64))[0]
    flat = (disc(64, 20) > 0.99) & (disc(64, 11) == 0)
    assert float((restored - image)[flat].abs().mean()) < 0.01
    assert float(restored[disc(64, 7) > 0.99].mean()) == pytest.approx(0.5, abs=0.01)
    assert float(restored[disc(64, 25) == 0].abs().mean()) < 0.01


def test_both_are_linear() -> None:
    rng = torch.Generator().manual_seed(0)
    one, two = torch.rand(2, 1, 20, 28, generator=rng)
    torch.testing.assert_close(project(one + 2 * two, 9), project(one, 9) + 2 * project(two, 9), rtol=1e-4, atol=1e-4)
    sinograms = project(torch.stack([one[0], two[0]]), 9)
    both = back_project(sinograms, (20, 28))
    torch.testing.assert_close(both[0], back_project(sinograms[:1], (20, 28))[0], rtol=1e-4, atol=1e-5)


def test_noise_grows_as_the_square_root_of_what_is_saved() -> None:
    full, quarter = (noise_hu(dose)[:, 0, 16:32, 16:32].std() for dose in (1.0, 0.25))
    assert float(quarter / full) == pytest.approx(2.0, rel=0.1)


def test_noise_is_unbiased_and_of_the_size_that_photons_give() -> None:
    centre = noise_hu(0.5)[:, 0, 20:28, 20:28]
    assert float(centre.mean()) == pytest.approx(0, abs=3)
    # Kak and Slaney eq. 5.107 for the centre of a disc: var = pi^2 / (12 A) / counts, per bin of width 1.
    chord_mm = 36 * SCALE.pixel_mm
    counts = 0.5 * 1e5 * math.exp(-MU_WATER_PER_MM * chord_mm)
    sigma_per_pixel = math.sqrt(math.pi**2 / (12 * num_angles(48)) / counts)
    expected_hu = sigma_per_pixel / SCALE.pixel_mm / MU_WATER_PER_MM * 1000
    # Linear interpolation between bins smooths: the measured noise lies below, never above.
    assert 0.55 * expected_hu < float(centre.std()) < 1.05 * expected_hu


def test_noise_is_greatest_where_rays_are_longest() -> None:
    noise = noise_hu(0.2, images=12)
    assert float(noise[:, 0, 20:28, 20:28].std()) > 1.3 * float(noise[:, 0, 0:4, 0:4].std())


def test_air_stops_no_photons() -> None:
    air = torch.zeros(1, 1, 32, 32)
    image = add_low_dose_noise(air, [LowDose(1.0, 1e5, SCALE, 0)])
    sigma_hu = float((image * 400).std())
    thick = torch.full((1, 1, 32, 32), 0.4)
    assert float(((add_low_dose_noise(thick, [LowDose(1.0, 1e5, SCALE, 0)]) - thick) * 400).std()) > 1.5 * sigma_hu


def test_the_scale_comes_from_the_campaign(campaign: CampaignConfig) -> None:
    data = replace(campaign.data, ingest=replace(campaign.data.ingest, spacing_mm=(3.0, 1.5, 1.5)))
    assert ct_scale(data) == CTScale(-160, 240, 1.5)
    assert ct_scale(campaign.data).pixel_mm == pytest.approx(350 / 32)
    unitless = IngestConfig(modalities=("CT",), intensity=IntensityConfig(rule="percentile", low=1, high=99))
    low_dose = DegradeConfig(kind="low_dose")
    with pytest.raises(ConfigError, match="rule=window"):
        replace(campaign, data=replace(campaign.data, ingest=unitless), degrade=low_dose)
