"""Images in, a few numbers per image out that say how they look; a study's numbers and a release's in, how far out it
lies, out.

All on the scale of [0, 1], over the whole image, the mean of the channels first; finite for any finite image.

    mean         of the intensities
    contrast     their standard deviation
    skewness     their third standardised moment; 0 for a constant image
    entropy      of their histogram of 32 equal bins over [0, 1], in bits (Shannon 1948)
    foreground   share of pixels above 0.1
    noise        standard deviation of the noise: responses to the mask of Immerkaer 1996
                 (https://doi.org/10.1006/cviu.1996.0060), which is blind to planes and edges along an axis, over 6, by
                 their median absolute value over 0.6745 (Donoho and Johnstone 1994), which few edges do not move
    sharpness    mean length of the gradient, by differences of neighbours
    fine         share of the power, without that of the mean, at more than half the Nyquist frequency
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

DESCRIPTORS = ("mean", "contrast", "skewness", "entropy", "foreground", "noise", "sharpness", "fine")
THRESHOLD = 5.0
"""Standard deviations of single images. On simulated patients that the release's sites hold at most one study in
twenty of the same scanners lies further out in any of the eight (tests/client/test_unusual.py measures it); spreads of
single images are wider than those of studies, and their tails are longer than a normal distribution's."""
LEAST_STD = 0.005
"""Spreads are taken to be at least this much: where all images of a site agree to the digit, none may be unusual for a
difference that nobody can see."""
LEAST_COUNT = 3
"""Images of a site, for its spread to say something."""

_BINS = 32
_BACKGROUND = 0.1
_LAPLACIAN = ((1.0, -2.0, 1.0), (-2.0, 4.0, -2.0), (1.0, -2.0, 1.0))
_NORM = 6.0  # root of the sum of squares of the mask
_MAD = 0.6745  # median absolute value of a standard normal variable
_FLAT = 1e-8


@dataclass(frozen=True, slots=True)
class Unusual:
    """How a study compares with the images that a release's sites tested it on."""

    scores: Mapping[str, float]
    """Descriptor -> distance from the nearest site's mean, in that site's standard deviations."""
    unusual: bool
    """Whether it lies outside what the release was trained on: some score is above THRESHOLD."""
    why: tuple[str, ...]
    """The descriptors whose scores are, the largest first."""


def descriptors(image_BCHW: Tensor) -> dict[str, Tensor]:
    """Each of DESCRIPTORS for each image, (B,) float32 on the images' device; same image, same numbers.

    Images need three rows and columns or more.
    """
    assert min(image_BCHW.shape[-2:]) >= 3, image_BCHW.shape
    image_BHW = image_BCHW.float().clamp(0, 1).mean(1)
    pixels_BP = image_BHW.flatten(1)
    mean_B = pixels_BP.mean(1)
    centred_BP = pixels_BP - mean_B[:, None]
    variance_B = centred_BP.square().mean(1)
    flat_B = variance_B < _FLAT  # rounding has a third moment, and a spectrum, of its own
    skewness_B = centred_BP.pow(3).mean(1) / variance_B.clamp(min=_FLAT).pow(1.5)
    return {
        "mean": mean_B,
        "contrast": variance_B.sqrt(),
        "skewness": skewness_B.masked_fill(flat_B, 0.0),
        "entropy": _entropy_B(pixels_BP),
        "foreground": (pixels_BP > _BACKGROUND).float().mean(1),
        "noise": _noise_B(image_BHW),
        "sharpness": _sharpness_B(image_BHW),
        "fine": _fine_B(image_BHW).masked_fill(flat_B, 0.0),
    }


def how_unusual(
    values: Mapping[str, Tensor | float], release: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> Unusual:
    """A study's descriptors (of all its slices, as `descriptors` gives them, or their means) against a release's.

    `release`: Manifest.descriptors, {descriptor: {site: {count, mean, std}}}. What either does not have is left out.
    """
    scores = {}
    for name, value in values.items():
        mean = float(torch.as_tensor(value, dtype=torch.float64).mean())
        far = [
            abs(mean - site["mean"]) / max(site["std"], LEAST_STD)
            for site in release.get(name, {}).values()
            if site["count"] >= LEAST_COUNT
        ]
        if far:
            scores[name] = min(far)
    why = sorted((name for name in scores if scores[name] > THRESHOLD), key=lambda name: -scores[name])
    return Unusual(scores, bool(why), tuple(why))


def _entropy_B(pixels_BP: Tensor) -> Tensor:
    count, pixels = pixels_BP.shape
    bins_BP = (pixels_BP * _BINS).long().clamp(max=_BINS - 1)
    offset_B1 = torch.arange(count, device=pixels_BP.device)[:, None] * _BINS
    counts_BK = torch.bincount((bins_BP + offset_B1).flatten(), minlength=count * _BINS).view(count, _BINS)
    share_BK = counts_BK.float() / pixels
    entropy_B: Tensor = torch.special.entr(share_BK).sum(1) / math.log(2)
    return entropy_B


def _noise_B(image_BHW: Tensor) -> Tensor:
    mask_11HW = torch.tensor(_LAPLACIAN, device=image_BHW.device)[None, None]
    response_BP = F.conv2d(image_BHW[:, None], mask_11HW).flatten(1)
    return response_BP.abs().median(1).values / (_NORM * _MAD)


def _sharpness_B(image_BHW: Tensor) -> Tensor:
    down_BHW = image_BHW[:, 1:, :-1] - image_BHW[:, :-1, :-1]
    right_BHW = image_BHW[:, :-1, 1:] - image_BHW[:, :-1, :-1]
    return (down_BHW.square() + right_BHW.square()).sqrt().mean((1, 2))


def _fine_B(image_BHW: Tensor) -> Tensor:
    height, width = image_BHW.shape[-2:]
    power_BHW = torch.fft.fft2(image_BHW - image_BHW.mean((1, 2), keepdim=True)).abs().square()
    rows, columns = (torch.fft.fftfreq(size, device=image_BHW.device).abs() for size in (height, width))
    fine_HW = torch.maximum(rows[:, None], columns[None, :]) > 0.25  # cycles per pixel; Nyquist is 0.5
    total_B = power_BHW.sum((1, 2))
    share_B: Tensor = (power_BHW * fine_HW).sum((1, 2)) / total_B.clamp(min=_FLAT)
    return share_B
