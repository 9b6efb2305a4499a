"""What the benches of a recogniser's step share: a campaign without an enhancer, its networks, images, and the step.

The step is the one that client/train/local.py takes: gradients of the batch, clipped, one move of the optimiser.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from client.train import gradprom, recognise
from client.train.gradprom import Optimisers
from client.train.local import batch_gradients
from client.train.terms import RecognitionTerms
from shared.batch import Batch
from shared.config import (
    CampaignConfig,
    DegradeConfig,
    EnhancerConfig,
    LearnConfig,
    MachineConfig,
    ObjectiveConfig,
    RecogniserConfig,
    SelfRegConfig,
)
from shared.networks import Networks, build_networks, placed
from shared.seeding import generator
from simulation.bench import steps

SIDE, STREAM = 64, 8
"""Pixels of a side; images of a batch or of a stream of it."""
MACHINE = MachineConfig(device="cpu", threads=1)


@dataclass(frozen=True, slots=True, eq=False)
class Recogniser:
    """A recogniser in training; every one of a campaign starts from the same weights."""

    campaign: CampaignConfig
    networks: Networks
    optimisers: Optimisers


def campaign(
    recogniser: RecogniserConfig, *, learn: LearnConfig | None = None, selfreg: SelfRegConfig | None = None
) -> CampaignConfig:
    """Two masks, two diagnoses, images as they come."""
    plain = steps.campaign()
    return replace(
        plain,
        data=replace(plain.data, diagnoses=("none", "lesion"), image_size=(SIDE, SIDE)),
        degrade=DegradeConfig(kind="none"),
        enhance=EnhancerConfig(kind="none"),
        objective=ObjectiveConfig(kind="plain"),
        recognise=recogniser,
        learn=learn or LearnConfig(),
        selfreg=selfreg or SelfRegConfig(),
    )


def built(agreed: CampaignConfig) -> Recogniser:
    networks = build_networks(agreed)
    placed(networks, MACHINE)
    enhancer, recogniser = (
        gradprom.make_optimiser(network, agreed) for network in (networks.enhancer, networks.recogniser)
    )
    networks.recogniser.train()
    return Recogniser(agreed, networks, Optimisers(enhancer, recogniser))


def images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth fields (count, 1, SIDE, SIDE) in [0, 1], and their two levels as masks (count, SIDE, SIDE)."""
    rng = generator(seed, "bench", "recogniser")
    coarse_BCHW = torch.randn(count, 1, SIDE // 8, SIDE // 8, generator=rng)
    clean_BCHW = F.interpolate(coarse_BCHW, size=(SIDE, SIDE), mode="bicubic").sigmoid()
    return clean_BCHW, (clean_BCHW[:, 0] > 0.5).long() + (clean_BCHW[:, 0] > 0.7).long()


def step(side: Recogniser, batch: Batch, recognition: RecognitionTerms) -> None:
    gradients_of = partial(recognise.alone_gradients, recognition=recognition)
    found, _ = batch_gradients(side.networks, batch, side.campaign, MACHINE, gradients_of, batch.size)
    gradprom.update(side.networks, side.optimisers, found, side.campaign)
