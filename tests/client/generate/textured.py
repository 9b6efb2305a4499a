"""Discs with a texture of each patient's own: what a copy of an image has and its hint does not tell."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from client.dataset import Slices
from tests.client.slices import disc_slices

TEXTURE = 0.5


def textured_slices(count: int, *, seed: int = 0, side: int = 32, per_patient: int = 1) -> Slices:
    """Within the image, bumps of some 4 px; up to +-TEXTURE/2 on the [0, 1] scale, and noise of 0.01."""
    slices = disc_slices(count, seed=seed, side=side, per_patient=per_patient)
    rng = torch.Generator().manual_seed(seed + 1000)
    coarse = torch.rand(count, 1, side // 4, side // 4, generator=rng) - 0.5
    bumps = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
    inside = (slices.mask_NHW > 0)[:, None]
    noise = 0.01 * torch.randn(count, 1, side, side, generator=rng)
    image = (slices.clean_NCHW + TEXTURE * bumps * inside + noise).clamp(0, 1)
    names = tuple(f"{seed}-{name}" for name in slices.identity)
    return replace(slices, clean_NCHW=image, identity=names, acquired=(("CT", "ABDOMEN"),) * count)
