"""Recognisers that took no part in a training, kept in the run folder: the same ones judge every cell of their data.

A judge sees all sites' clean training images and starts from weights of its own, so it favours no objective. Which
images train and which test follows from the seed; there is one judge (and one of each downstream kind) per seed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
from torch import nn

from client.dataset import SiteData
from shared.checkpoint import write_atomically
from shared.config import (
    AugmentConfig,
    CampaignConfig,
    DegradeConfig,
    EnhancerConfig,
    GenerateConfig,
    MachineConfig,
    ObjectiveConfig,
    StrategyConfig,
    TrainingConfig,
    to_dict,
)
from shared.errors import DataError
from shared.locks import locked
from shared.networks import Networks, build_networks
from shared.weights import load_arrays, to_arrays
from simulation.comparators import train_judge

Kind = Literal["unet", "cnn", "vnet", "resunet", "voxresnet"]
DOWNSTREAM: tuple[Kind, ...] = ("unet", "vnet", "resunet", "voxresnet")


def judge_of(
    campaign: CampaignConfig,
    together: SiteData,
    recipe: str,
    folder: Path,
    machine: MachineConfig,
    kind: Kind | None = None,
) -> nn.Module:
    """The kept judge of this data and seed, trained first where there is none. `recipe` says whose images they are;
    `kind` is one of DOWNSTREAM, or None for a recogniser of the default kind."""
    asked = _asked(campaign, kind)
    key = _key(asked, recipe)
    with locked(folder / f"{key}.lock"):
        kept = folder / f"{key}.npz"
        networks = _kept(kept, asked)
        if networks is None:
            networks = train_judge(asked, together, machine, lambda step: None).networks
            write_atomically(kept, _npz(networks))
    return networks.recogniser.eval()


def _kept(path: Path, asked: CampaignConfig) -> Networks | None:
    """None where there is no judge, or a damaged file: it is trained again, to the same weights."""
    networks = build_networks(asked)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            load_arrays(networks, {name: arrays[name] for name in to_arrays(networks)})
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, DataError):
        return None
    return networks


def _asked(campaign: CampaignConfig, kind: Kind | None) -> CampaignConfig:
    """What only concerns the enhancer or a generator is set to one thing, so that one judge serves all cells of a data
    set."""
    recognise = campaign.recognise
    depth = min(recognise.depth, 4)
    default: Kind = "cnn" if recognise.kind == "cnn" else "unet"
    wanted = replace(recognise, kind=kind or default, depth=depth, dropout=0.0)
    return replace(
        campaign,
        name="judge",
        degrade=DegradeConfig(kind="gaussian"),
        enhance=EnhancerConfig(kind="cnn3", channels=1),
        recognise=wanted,
        objective=ObjectiveConfig(kind="plain"),
        training=TRAINING,
        strategy=StrategyConfig(kind="fedavg"),
        rounds=replace(campaign.rounds, rounds=ROUNDS),
        generate=GenerateConfig(),
        augment=AugmentConfig(),
    )


ROUNDS = 24
TRAINING = TrainingConfig(batch_size=4, local_steps=50, learning_rate=2e-3)
"""A judge is trained in one way, however the cells that it judges are."""


def _key(campaign: CampaignConfig, recipe: str) -> str:
    values = to_dict(campaign)
    del values["data"]["root"], values["strategy"]
    return hashlib.sha256(json.dumps([values, recipe], sort_keys=True).encode()).hexdigest()[:24]


def _npz(networks: Networks) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    np.savez(buffer, allow_pickle=False, **to_arrays(networks))
    return buffer.getvalue()
