"""A CT image on the campaign's window in, the image of a lower dose out.

The noise arises where it does in a scanner, in the projections (parallel beam, no scatter, no electronic noise):

    line integrals   p = sum of mu * pixel, mu = 0.02 / mm * (1 + HU / 1000)
    photon counts    n ~ Poisson(photons * dose * exp(-p)), at least 1
    noise            -log(n / (photons * dose)) - p, filtered (Ram-Lak) and back-projected

Only the noise is back-projected and added to the image: filtered back-projection is linear, so this is the low-dose
reconstruction minus the clean reconstruction, and the projector's own blur is not part of the degradation. Projector
and back-projector sample bilinearly; the filter is the band-limited ramp of Kak and Slaney, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.config import DataConfig

MU_WATER_PER_MM = 0.02
"""Linear attenuation of water near 70 keV."""

FIELD_OF_VIEW_MM = 350.0
"""Assumed extent of the image where the campaign keeps the acquired spacing, which a slice does not carry."""

_SAMPLES_AT_ONCE = 2**23


@dataclass(frozen=True, slots=True)
class CTScale:
    """What 0 and 1 on the campaign's scale mean in HU, and the side of a pixel."""

    low_hu: float
    high_hu: float
    pixel_mm: float


@dataclass(frozen=True, slots=True)
class LowDose:
    """`dose`: share of the full dose, in (0, 1]; `photons`: per detector bin at full dose, before the patient."""

    dose: float
    photons: float
    scale: CTScale
    noise_seed: int


def ct_scale(data: DataConfig) -> CTScale:
    """The campaign's window and pixel."""
    window = data.ingest.intensity
    assert window.rule == "window", window.rule  # CampaignConfig refuses low_dose on a scale without a unit
    if data.ingest.spacing_mm is not None:
        return CTScale(window.low, window.high, data.ingest.spacing_mm[1])
    return CTScale(window.low, window.high, FIELD_OF_VIEW_MM / max(data.image_size))


def add_low_dose_noise(image_BCHW: Tensor, degradations: Sequence[LowDose]) -> Tensor:
    """Clean images on the window's [0, 1] scale plus their noise; every channel is one image of its own noise."""
    batch, channels, height, width = image_BCHW.shape
    side = max(height, width)
    scales = [degradation.scale for degradation in degradations]
    low, span, pixel = (
        torch.tensor(values, device=image_BCHW.device)[:, None, None, None]
        for values in (
            [scale.low_hu for scale in scales],
            [scale.high_hu - scale.low_hu for scale in scales],
            [scale.pixel_mm for scale in scales],
        )
    )
    per_mm = MU_WATER_PER_MM * (1 + (low + image_BCHW * span) / 1000)
    # The window cuts air (-1000 HU) off at its low end; what lies at 0 is air, not tissue of low_hu.
    per_mm = torch.where(image_BCHW <= 0, 0.0, per_mm.clamp(min=0))
    integrals = project((per_mm * pixel).reshape(batch * channels, height, width), num_angles(side))
    noise = torch.cat([_count_noise(p, d) for p, d in zip(torch.split(integrals, channels), degradations, strict=True)])
    noise_per_pixel = back_project(noise, (height, width)).view(batch, channels, height, width)
    noise_hu = noise_per_pixel / pixel / MU_WATER_PER_MM * 1000
    return image_BCHW + noise_hu / span


def _count_noise(integrals: Tensor, degradation: LowDose) -> Tensor:
    rng = torch.Generator().manual_seed(degradation.noise_seed)
    sent = degradation.photons * degradation.dose
    expected = (sent * torch.exp(-integrals)).cpu()
    counted = torch.poisson(expected, generator=rng).clamp(min=1).to(integrals.device)
    return -torch.log(counted / sent) - integrals


def num_angles(side: int) -> int:
    """Projections over half a turn; fewer would show as streaks."""
    return math.ceil(1.5 * side)


def project(images_BHW: Tensor, angles: int) -> Tensor:
    """Line integrals in pixels, (B, angles, bins): a bin and a step along the ray are one pixel wide."""
    height, width = images_BHW.shape[-2:]
    bins = _num_bins(height, width)
    along = torch.arange(bins, device=images_BHW.device) - (bins - 1) / 2
    step, t = torch.meshgrid(along, along, indexing="ij")
    sums = []
    for theta in torch.split(_angles(angles, images_BHW.device), _chunk(bins * bins * len(images_BHW))):
        cos, sin = torch.cos(theta)[:, None, None], torch.sin(theta)[:, None, None]
        x, y = t * cos - step * sin, t * sin + step * cos
        grid = torch.stack([2 * x / width, 2 * y / height], dim=-1)
        # The images ride as channels: one set of interpolation weights per angle serves the whole batch.
        rays = F.grid_sample(images_BHW.expand(len(theta), -1, -1, -1), grid, align_corners=False)
        sums.append(rays.sum(2).transpose(0, 1))
    return torch.cat(sums, dim=1)


def back_project(sinogram_BAT: Tensor, size_HW: tuple[int, int]) -> Tensor:
    """Filtered back-projection of (B, angles, bins) onto a grid of one pixel per bin."""
    batch, angles, bins = sinogram_BAT.shape
    filtered_BAT = _ramp_filtered(sinogram_BAT)
    height, width = size_HW
    rows = torch.arange(height, device=sinogram_BAT.device) - (height - 1) / 2
    columns = torch.arange(width, device=sinogram_BAT.device) - (width - 1) / 2
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    total = torch.zeros(batch, height, width, device=sinogram_BAT.device)
    chunk = _chunk(height * width * batch)
    for theta, part_BAT in zip(
        torch.split(_angles(angles, sinogram_BAT.device), chunk), torch.split(filtered_BAT, chunk, dim=1), strict=True
    ):
        t = x * torch.cos(theta)[:, None, None] + y * torch.sin(theta)[:, None, None]
        grid = torch.stack([2 * t / bins, torch.zeros_like(t)], dim=-1)
        lines = part_BAT.transpose(0, 1)[:, :, None, :]
        total += F.grid_sample(lines, grid, align_corners=False).sum(0)
    return total * (math.pi / angles)


def _ramp_filtered(sinogram_BAT: Tensor) -> Tensor:
    """Kak and Slaney eq. 3.61 for bins of width 1, by FFT with zero padding against wrap-around."""
    bins = sinogram_BAT.shape[-1]
    length = 2 ** math.ceil(math.log2(2 * bins))
    offset = torch.fft.fftfreq(length, 1 / length, device=sinogram_BAT.device)
    kernel = torch.where(offset % 2 == 1, -1 / (math.pi * offset) ** 2, torch.zeros_like(offset))
    kernel[0] = 0.25
    response = torch.fft.rfft(kernel).real
    filtered_BAT: Tensor = torch.fft.irfft(torch.fft.rfft(sinogram_BAT, length) * response, length)[..., :bins]
    return filtered_BAT


def _angles(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device) * (math.pi / count)


def _num_bins(height: int, width: int) -> int:
    return math.ceil(math.hypot(height, width))


def _chunk(samples_per_angle: int) -> int:
    return max(1, _SAMPLES_AT_ONCE // samples_per_angle)
