"""Ideal anatomy in, what a site's scanner makes of it out. Draw, then apply.

MR: contrast curve -> coil sensitivity (bias field) -> in-plane point spread -> Rician noise (Gudbjartsson, Patz 1995:
the magnitude of a complex signal with Gaussian noise in both channels). CT: point spread -> Gaussian noise; contrast
and bias do not apply, because Hounsfield units are calibrated. A pair's second acquisition is the same anatomy and bias
field with more noise (and, for MR, a wider point spread).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from shared.config import ScannerConfig
from simulation.hospitals.volume import Floats

FAST_NOISE = 3.0  # NumberOfAverages 9 -> 1
LOW_DOSE_NOISE = 10**0.5  # XRayTubeCurrent 200 -> 20 mA
LEAST_PAIR_NOISE = 0.01  # a noise-free scanner still makes a visibly worse second acquisition


@dataclass(frozen=True, slots=True)
class Exposure:
    """One patient's passage through the scanner."""

    config: ScannerConfig
    bias: tuple[float, ...]  # weights of the smooth basis of `bias_field`
    noise_seed: int


def draw_exposure(config: ScannerConfig, rng: np.random.Generator) -> Exposure:
    return Exposure(config, tuple(rng.normal(size=9).tolist()), int(rng.integers(2**62)))


def degraded_exposure(exposure: Exposure, *, noise_factor: float, extra_psf_mm: float = 0.0) -> Exposure:
    """The second, worse acquisition of a pair: other noise, more of it."""
    config = exposure.config
    noise = max(config.noise, LEAST_PAIR_NOISE) * noise_factor
    worse = replace(config, noise=noise, psf_mm=float(np.hypot(config.psf_mm, extra_psf_mm)))
    return replace(exposure, config=worse, noise_seed=exposure.noise_seed + 1)


def bias_field(weights: tuple[float, ...], amplitude: float, grid_mm: Floats) -> Floats:
    """1 + amplitude * smooth field with largest magnitude 1: products of Legendre polynomials up to order 2."""
    if not amplitude:
        return np.ones(grid_mm.shape[1:], dtype=np.float32)
    x, y, z = (axis / np.float32(100.0) for axis in grid_mm)
    basis = (x, y, z, x * y, y * z, x * z, 1.5 * x * x - 0.5, 1.5 * y * y - 0.5, 1.5 * z * z - 0.5)
    field = sum(np.float32(weight) * term for weight, term in zip(weights, basis, strict=True))
    field = field - field.mean()
    return np.asarray(1 + np.float32(amplitude) * field / np.abs(field).max(), dtype=np.float32)


def _spread(image_DHW: Floats, psf_mm: float, pixel_mm: tuple[float, float]) -> Floats:
    if not psf_mm:
        return image_DHW
    from scipy.ndimage import gaussian_filter

    sigma = (0.0, psf_mm / pixel_mm[0], psf_mm / pixel_mm[1])
    return np.asarray(gaussian_filter(image_DHW, sigma, mode="nearest"), dtype=np.float32)


def acquire_mr(signal_DHW: Floats, exposure: Exposure, grid_mm: Floats, pixel_mm: tuple[float, float]) -> Floats:
    """`signal_DHW` is at or above 0, with the brightest normal tissue at 1; so is the result, noise aside."""
    config = exposure.config
    curved = np.power(np.maximum(signal_DHW, 0), np.float32(config.contrast_gamma))
    received = _spread(curved * bias_field(exposure.bias, config.bias_field, grid_mm), config.psf_mm, pixel_mm)
    if not config.noise:
        return received
    rng = np.random.Generator(np.random.PCG64(exposure.noise_seed))
    real, imaginary = rng.normal(size=(2, *received.shape)).astype(np.float32) * np.float32(config.noise)
    return np.asarray(np.hypot(received + real, imaginary), dtype=np.float32)


def acquire_ct(image_hu_DHW: Floats, exposure: Exposure, pixel_mm: tuple[float, float], brightest_hu: float) -> Floats:
    """Noise is relative to the brightest tissue's distance from air (-1000 HU)."""
    config = exposure.config
    spread = _spread(image_hu_DHW, config.psf_mm, pixel_mm)
    if not config.noise:
        return spread
    rng = np.random.Generator(np.random.PCG64(exposure.noise_seed))
    sigma_hu = config.noise * (brightest_hu + 1000.0)
    return spread + rng.normal(size=spread.shape).astype(np.float32) * np.float32(sigma_hu)
