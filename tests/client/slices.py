"""Discs with a bright spot as slices: enough anatomy to learn from in seconds."""

from __future__ import annotations

import torch

from client.dataset import Slices


def disc_slices(count: int, *, seed: int = 0, side: int = 32, per_patient: int = 1) -> Slices:
    """Every second patient has a spot (mask code 2, diagnosis 1) in its disc (mask code 1)."""
    rng = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    images, masks, diagnoses = [], [], []
    for number in range(count):
        shift_x, shift_y, spot_x, spot_y = ((torch.rand(4, generator=rng) - 0.5) * 0.5).tolist()
        disc = (x - shift_x) ** 2 + (y - shift_y) ** 2 < 0.4
        spot = ((x - shift_x - spot_x) ** 2 + (y - shift_y - spot_y) ** 2 < 0.05) & disc
        diseased = number // per_patient % 2
        mask = disc.to(torch.uint8)
        image = 0.45 * disc.float()
        if diseased:
            mask[spot] = 2
            image = image + 0.35 * spot.float()
        images.append(image)
        masks.append(mask)
        diagnoses.append(diseased)
    patients = torch.arange(count) // per_patient
    return Slices(
        torch.stack(images)[:, None],
        torch.stack(masks),
        torch.ones(count, dtype=torch.bool),
        torch.tensor(diagnoses),
        patients,
        tuple(f"site/{int(patient)}/{number}" for number, patient in enumerate(patients)),
    )
