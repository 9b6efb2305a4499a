"""Tiny campaigns with a generator, and generators away from their start: 32 x 32 pixels, a few steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from client.train.shown import Latents, Randoms, draw_latents, randoms, tables_of
from shared.config import CampaignConfig, DrawConfig, GenerateConfig, MachineConfig, PhaseConfig
from shared.generate.networks import Generator, parts_arrays
from tests.client.slices import disc_slices

CPU = MachineConfig(device="cpu", threads=1)
LENGTH = PhaseConfig(rounds=2, local_steps=3, batch_size=4)


def with_generator(campaign: CampaignConfig, **changes: Any) -> CampaignConfig:
    """`changes` of campaign.generate; the sampler goes with the prediction."""
    sampler: Any = "dpm" if changes.get("prediction") == "noise" else "rflow"
    generate = GenerateConfig(
        kind="emit-diff",
        **{
            "autoencoder": LENGTH,
            "denoiser": LENGTH,
            "controlnet": LENGTH,
            "draw": DrawConfig(sampler=sampler),
            **changes,
        },
    )
    return replace(campaign, generate=generate)


def stirred(generator: Generator, *names: str, seed: int = 1, by: float = 0.03) -> Generator:
    """The same generator with all weights (or those of the named networks) a little off, joints too."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in names or tuple(generator.all):
            for parameter in generator.all[name].parameters():
                parameter.add_(by * torch.randn(parameter.shape, generator=rng))
    return generator


def drawn(generator: Generator, campaign: CampaignConfig, *, count: int = 6, purpose: str = "test") -> Latents:
    """Six images in a phase, as a step sees them."""
    slices = disc_slices(count)
    rngs: Randoms = randoms(campaign, purpose)
    tables = tables_of(generator, slices, campaign, CPU, mirrored=campaign.training.augment)
    return draw_latents(tables, slices, torch.arange(count), campaign, rngs)


def bits(generator: Generator, *names: str) -> dict[str, bytes]:
    arrays = parts_arrays(generator, names or tuple(generator.all))
    return {name: np.ascontiguousarray(values).tobytes() for name, values in arrays.items()}
