"""What scanners do, against the textbook: Rayleigh and Rician moments, point-spread widths, bias amplitude."""

from __future__ import annotations

import numpy as np
import pytest

from shared.config import ScannerConfig
from simulation.hospitals.scanner import (
    LEAST_PAIR_NOISE,
    Exposure,
    acquire_ct,
    acquire_mr,
    bias_field,
    degraded_exposure,
    draw_exposure,
)
from simulation.hospitals.volume import axial, grid_mm

SHAPE = (4, 96, 96)
GRID = grid_mm(axial(96, 96, 4, (5.0, 2.0, 2.0)), SHAPE)
PIXEL = (2.0, 2.0)


def _exposure(**scanner: float) -> Exposure:
    return draw_exposure(ScannerConfig(**scanner), np.random.default_rng(3))


def test_a_perfect_scanner_changes_nothing() -> None:
    signal = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    np.testing.assert_array_equal(acquire_mr(signal, _exposure(), GRID, PIXEL), signal)
    np.testing.assert_array_equal(acquire_ct(signal, _exposure(), PIXEL, 200.0), signal)


def test_air_is_rayleigh_and_tissue_is_rician() -> None:
    """Rayleigh: mean sigma sqrt(pi/2), variance (2 - pi/2) sigma^2. Rician: E[m^2] = s^2 + 2 sigma^2."""
    sigma = 0.05
    air = acquire_mr(np.zeros(SHAPE, np.float32), _exposure(noise=sigma), GRID, PIXEL)
    assert air.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.01)
    assert air.var() == pytest.approx((2 - np.pi / 2) * sigma**2, rel=0.03)
    tissue = acquire_mr(np.full(SHAPE, 0.2, np.float32), _exposure(noise=sigma), GRID, PIXEL)
    assert (tissue.astype(np.float64) ** 2).mean() == pytest.approx(0.2**2 + 2 * sigma**2, rel=0.01)


def test_ct_noise_is_gaussian_relative_to_the_distance_from_air() -> None:
    image_hu = np.full(SHAPE, 50.0, np.float32)
    noisy = acquire_ct(image_hu, _exposure(noise=0.01), PIXEL, 200.0)
    assert noisy.mean() == pytest.approx(50.0, abs=0.3)
    assert noisy.std() == pytest.approx(12.0, rel=0.02)


def test_point_spread_has_its_width_in_the_slice_and_none_across() -> None:
    point = np.zeros(SHAPE, np.float32)
    point[2, 48, 48] = 1
    spread = acquire_mr(point, _exposure(psf_mm=3.0), GRID, PIXEL)
    assert spread[[0, 1, 3]].max() == 0
    assert spread.sum() == pytest.approx(1, rel=1e-4)
    variance_mm2 = float((spread[2].sum(axis=1) * (np.arange(96) - 48) ** 2).sum()) * 2.0**2
    assert variance_mm2 == pytest.approx(9, rel=0.02)


def test_bias_field_reaches_its_amplitude_and_is_smooth() -> None:
    field = bias_field(_exposure().bias, 0.3, GRID)
    assert np.abs(field - 1).max() == pytest.approx(0.3, rel=1e-4)
    assert np.abs(np.diff(field, axis=1)).max() < 0.03


def test_gamma_keeps_black_and_white() -> None:
    signal = np.stack([np.zeros((96, 96)), np.full((96, 96), 0.25), np.ones((96, 96)), np.ones((96, 96))])
    curved = acquire_mr(signal.astype(np.float32), _exposure(contrast_gamma=2.0), GRID, PIXEL)
    np.testing.assert_allclose(curved[:, 0, 0], [0, 0.0625, 1, 1], rtol=1e-6)


def test_the_degraded_partner_has_more_noise_and_other_noise() -> None:
    exposure = _exposure(noise=0.02, bias_field=0.2)
    worse = degraded_exposure(exposure, noise_factor=3.0)
    assert worse.config.noise == pytest.approx(0.06)
    assert worse.bias == exposure.bias
    assert worse.noise_seed != exposure.noise_seed
    assert degraded_exposure(_exposure(), noise_factor=3.0).config.noise == pytest.approx(3 * LEAST_PAIR_NOISE)
