"""A clean image in, a degraded one out: first the parameters are drawn as a value, then the value is applied.

The value holds everything, the seed of its noise included: the same image and the same value give the same pixels on
every site and in every batch, so a degradation can be logged, replayed and shown to every model alike.

    gaussian     white noise, standard deviation on the [0, 1] scale (Liu et al., https://arxiv.org/abs/1910.09185)
    poisson      photon noise with `peak` expected counts at intensity 1
    blur         Gaussian point spread
    composite    blur, then poisson, then gaussian (Zhang and Cheng, https://arxiv.org/abs/2501.01114; their order and
                 parameters were not available, so both are ours)
    downsample   area average down, bicubic up again: super-resolution on the campaign's grid
    kspace       Cartesian under-sampling of MR with a fully sampled centre, zero-filled magnitude
    low_dose     fewer photons in the projections of CT: shared.images.low_dose
    pairs        draws nothing; the data set brings the degraded images itself
    none         draws nothing; images stay as they are

All results are clamped to [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.config import DataConfig, DegradeConfig
from shared.errors import ConfigError
from shared.images.low_dose import CTScale, LowDose, add_low_dose_noise, ct_scale


@dataclass(frozen=True, slots=True)
class Gaussian:
    sigma: float
    noise_seed: int


@dataclass(frozen=True, slots=True)
class Poisson:
    peak: float
    noise_seed: int


@dataclass(frozen=True, slots=True)
class Blur:
    sigma_px: float


@dataclass(frozen=True, slots=True)
class Composite:
    blur: Blur
    poisson: Poisson
    gaussian: Gaussian


@dataclass(frozen=True, slots=True)
class Downsample:
    factor: int


@dataclass(frozen=True, slots=True)
class KSpace:
    """`acceleration`: lines fully sampled over lines acquired; `centre_fraction` of all lines is always acquired."""

    acceleration: float
    centre_fraction: float
    mask_seed: int


Degradation: TypeAlias = Gaussian | Poisson | Blur | Composite | Downsample | KSpace | LowDose


def draw(config: DegradeConfig, rng: torch.Generator, data: DataConfig | None = None) -> Degradation:
    """One image's degradation; uniform over each range. `data` is read for low_dose only (its window and spacing).

    Raises ConfigError for the kinds `pairs` and `none`.
    """
    match config.kind:
        case "gaussian":
            return Gaussian(_uniform(config.sigma, rng), _seed(rng))
        case "poisson":
            return _draw_poisson(config, rng)
        case "blur":
            return Blur(_uniform(config.blur_sigma_px, rng))
        case "composite":
            blur = Blur(_uniform(config.blur_sigma_px, rng))
            return Composite(blur, _draw_poisson(config, rng), Gaussian(_uniform(config.sigma, rng), _seed(rng)))
        case "downsample":
            return Downsample(config.factor)
        case "kspace":
            return KSpace(_uniform(config.acceleration, rng), config.centre_fraction, _seed(rng))
        case "low_dose":
            assert data is not None, "low_dose needs the campaign's window"
            return LowDose(_uniform(config.dose, rng), config.photons, ct_scale(data), _seed(rng))
        case "pairs":
            raise ConfigError("degrade=pairs draws nothing: its degraded images are the site's own")
        case "none":
            raise ConfigError("degrade=none draws nothing: its images stay as they are")


def _draw_poisson(config: DegradeConfig, rng: torch.Generator) -> Poisson:
    return Poisson(_uniform(config.peak, rng), _seed(rng))


def _uniform(bounds: tuple[float, float], rng: torch.Generator) -> float:
    low, high = bounds
    return low + (high - low) * float(torch.rand((), generator=rng, dtype=torch.float64))


def _seed(rng: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=rng))


def apply(image_CHW: Tensor, degradation: Degradation) -> Tensor:
    """One image; the same as a batch of one."""
    return degrade_batch(image_CHW[None], [degradation])[0]


def degrade_batch(clean_BCHW: Tensor, degradations: Sequence[Degradation]) -> Tensor:
    """Every image by its own value; all values of one kind. Noise is drawn per image, the arithmetic is batched."""
    assert len(degradations) == len(clean_BCHW)
    kinds = {type(degradation) for degradation in degradations}
    assert len(kinds) == 1, f"one kind per batch, got {kinds}"
    return _degraded(clean_BCHW.float(), list(degradations)).clamp(0, 1)


def _degraded(image_BCHW: Tensor, degradations: list[Degradation]) -> Tensor:
    # The kind was checked to be one; the lists below only tell the type checker.
    match degradations[0]:
        case Gaussian():
            return _gaussian(image_BCHW, [d for d in degradations if isinstance(d, Gaussian)])
        case Poisson():
            return _poisson(image_BCHW, [d for d in degradations if isinstance(d, Poisson)])
        case Blur():
            return _blurred(image_BCHW, [d for d in degradations if isinstance(d, Blur)])
        case Composite():
            parts = [d for d in degradations if isinstance(d, Composite)]
            blurred_BCHW = _blurred(image_BCHW, [part.blur for part in parts])
            counted_BCHW = _poisson(blurred_BCHW, [part.poisson for part in parts])
            return _gaussian(counted_BCHW, [part.gaussian for part in parts])
        case Downsample(factor):
            return _downsampled(image_BCHW, factor)
        case KSpace():
            return _undersampled(image_BCHW, [d for d in degradations if isinstance(d, KSpace)])
        case LowDose():
            return add_low_dose_noise(image_BCHW, [d for d in degradations if isinstance(d, LowDose)])


def _gaussian(image_BCHW: Tensor, degradations: list[Gaussian]) -> Tensor:
    noise = [
        d.sigma * torch.randn(image_BCHW.shape[1:], generator=torch.Generator().manual_seed(d.noise_seed))
        for d in degradations
    ]
    return image_BCHW + torch.stack(noise).to(image_BCHW.device)


def _poisson(image_BCHW: Tensor, degradations: list[Poisson]) -> Tensor:
    expected = image_BCHW.clamp(min=0).cpu()
    counted = [
        torch.poisson(image_CHW * d.peak, generator=torch.Generator().manual_seed(d.noise_seed)) / d.peak
        for image_CHW, d in zip(expected, degradations, strict=True)
    ]
    return torch.stack(counted).to(image_BCHW.device)


def _blurred(image_BCHW: Tensor, degradations: list[Blur]) -> Tensor:
    """Each image with its own kernel, cut at three standard deviations; the border is mirrored."""
    batch, channels, height, width = image_BCHW.shape
    sigmas = torch.tensor([max(d.sigma_px, 1e-3) for d in degradations], device=image_BCHW.device)
    reach = torch.ceil(3 * sigmas)
    radius = int(min(float(reach.max()), height - 1, width - 1))
    offsets = torch.arange(-radius, radius + 1, device=image_BCHW.device)
    kernels = torch.exp(-(offsets**2) / (2 * sigmas[:, None] ** 2)) * (offsets.abs() <= reach[:, None])
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    images = F.pad(image_BCHW.reshape(1, batch * channels, height, width), (radius,) * 4, mode="reflect")
    images = F.conv2d(images, kernels[:, None, :, None], groups=batch * channels)
    images = F.conv2d(images, kernels[:, None, None, :], groups=batch * channels)
    return images.view(batch, channels, height, width)


def _downsampled(image_BCHW: Tensor, factor: int) -> Tensor:
    height, width = image_BCHW.shape[-2:]
    small = F.interpolate(image_BCHW, size=(-(-height // factor), -(-width // factor)), mode="area")
    return F.interpolate(small, size=(height, width), mode="bicubic", align_corners=False)


def _undersampled(image_BCHW: Tensor, degradations: list[KSpace]) -> Tensor:
    kspace_BCHW, _ = acquired_kspace(image_BCHW, degradations)
    magnitude_BCHW: Tensor = torch.fft.ifft2(kspace_BCHW).abs()
    return magnitude_BCHW


def acquired_kspace(image_BCHW: Tensor, degradations: Sequence[KSpace]) -> tuple[Tensor, Tensor]:
    """(kspace_BCHW, acquired_BH): what was measured of each image, and which rows those are; the others are 0.

    Rows are the phase-encoding direction; the zero frequency is row 0, as torch.fft has it.
    """
    rows = image_BCHW.shape[-2]
    acquired_BH = torch.stack([acquired_rows(rows, d) for d in degradations]).to(image_BCHW.device)
    return torch.fft.fft2(image_BCHW) * acquired_BH[:, None, :, None], acquired_BH


def acquired_rows(rows: int, degradation: KSpace) -> Tensor:
    """True for each acquired row of k-space (zero frequency first): the whole centre, and others at random."""
    wanted = max(1, round(rows / degradation.acceleration))
    centre = min(wanted, max(1, round(rows * degradation.centre_fraction)))
    frequencies = torch.fft.fftfreq(rows).abs()
    order = torch.argsort(frequencies, stable=True)
    outer = order[centre:]
    chosen = torch.randperm(len(outer), generator=torch.Generator().manual_seed(degradation.mask_seed))
    acquired = torch.zeros(rows, dtype=torch.bool)
    acquired[order[:centre]] = True
    acquired[outer[chosen[: wanted - centre]]] = True
    return acquired


__all__ = [
    "Blur",
    "CTScale",
    "Composite",
    "Degradation",
    "Downsample",
    "Gaussian",
    "KSpace",
    "LowDose",
    "Poisson",
    "acquired_kspace",
    "acquired_rows",
    "apply",
    "degrade_batch",
    "draw",
]
