"""How often a study of the release's own scanners is called unusual, and whether one that is not of them is told."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from shared.images.descriptors import Unusual, descriptors, how_unusual
from simulation.hospitals.phantom import draw_body, paint

SIDE, SLICES, PATIENTS = 32, 4, 40
SIGMA = {"north": 0.05, "hill": 0.08}
"""Noise of the two sites' scanners."""


def study(site: str, number: int, sigma: float) -> Tensor:
    """Slices of one simulated patient on the scale of [0, 1], degraded as an input image is."""
    rng = np.random.default_rng([len(site), number])
    body = draw_body(rng, 40.0, diseased=bool(number % 2))
    pixel_mm = 320 / SIDE
    axis = (np.arange(SIDE) - (SIDE - 1) / 2) * pixel_mm
    z, y, x = np.meshgrid(np.linspace(-15.0, 15.0, SLICES), axis, axis, indexing="ij")
    image_hu, _ = paint(body, np.stack([x, y, z]).astype(np.float32), pixel_mm)
    image = torch.from_numpy((image_hu + 160) / 400).float().clamp(0, 1)[:, None]
    noise = torch.from_numpy(rng.standard_normal(image.shape)).float()
    return (image + sigma * noise).clamp(0, 1)


def of_release() -> dict[str, dict[str, dict[str, float]]]:
    """As a manifest has them: per site, over single images of its own patients."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for site, sigma in SIGMA.items():
        images = torch.cat([study(site, number, sigma) for number in range(PATIENTS)])
        for name, values in descriptors(images).items():
            moments = {"count": float(len(values)), "mean": float(values.mean()), "std": float(values.std())}
            found.setdefault(name, {})[site] = moments
    return found


def judged(numbers: range, sigma: float, *, site: str = "north", change: float = 1.0) -> list[Unusual]:
    release = of_release()
    return [how_unusual(descriptors(change * study(site, number, sigma)), release) for number in numbers]


def test_at_most_one_new_patient_in_twenty_of_the_same_scanners_is_called_unusual() -> None:
    new = range(1000, 1060)
    alarms = [one for site, sigma in SIGMA.items() for one in judged(new, sigma, site=site) if one.unusual]
    assert len(alarms) <= 0.05 * 2 * len(new)


def test_other_noise_and_another_intensity_window_are_told_in_nearly_every_patient() -> None:
    new = range(2000, 2020)
    noisy, dark = judged(new, 0.3), judged(new, 0.05, change=0.3)
    for found in (noisy, dark):
        assert sum(one.unusual for one in found) >= 19
    assert all("noise" in one.why for one in noisy if one.unusual)
