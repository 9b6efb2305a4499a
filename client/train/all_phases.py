"""A campaign and the slices of one place in, its generator out: all phases in a row, to hold federations against.

Rounds are those of client/train/phases.py. What a coordinator does between them (server/phases.py, server/rounds.py) is
done here: the moving average of weights, the scale of latents, the ControlNet's start as a copy of the denoiser.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from client.dataset import Slices
from client.train.phases import OnStep, evaluate_phase, train_phase, untrained
from shared.config import CampaignConfig, MachineConfig, StrategyConfig
from shared.generate.average import averaged
from shared.generate.networks import (
    TRAINED,
    Generator,
    build_generator,
    load_parts,
    parts_arrays,
    start_controlnet,
)
from shared.types import Metrics


def trained_generator(
    campaign: CampaignConfig,
    slices: Slices,
    machine: MachineConfig,
    *,
    name: str,
    on_step: OnStep | None = None,
    sites: int = 1,
) -> tuple[Generator, Mapping[str, list[Mapping[str, float]]]]:
    """A generator that learns in one place: its phases in a row, and the records of their rounds.

    As a federation does it but for what is one place's: one optimiser from a phase's first round to its last, and the
    scale of latents comes from `slices`. `sites`: a pooled comparator takes the steps that so many sites take together.
    `on_step(done, all)` counts the steps of all phases. Nothing is fine-tuned: that is of whoever draws.
    """
    generator = build_generator(campaign)
    records: dict[str, list[Mapping[str, float]]] = {}
    rounds = {phase: campaign.in_phase(phase) for phase in campaign.generate.phases}
    total = sites * sum(each.rounds.rounds * each.training.local_steps for each in rounds.values())
    done = 0
    for phase, here in rounds.items():
        if phase == "controlnet" and untrained(generator):
            start_controlnet(generator)
        steps = sites * here.training.local_steps
        count = None if on_step is None else _counted(on_step, done, total)
        records[phase] = _all_rounds(generator, slices, here, machine, name, steps, count)
        done += here.rounds.rounds * steps
        if phase == "autoencoder":
            _set_scale(generator, evaluate_phase(generator, slices, here, machine))
    return generator, records


def _all_rounds(
    generator: Generator,
    slices: Slices,
    campaign: CampaignConfig,
    machine: MachineConfig,
    name: str,
    steps: int,
    on_step: Callable[[int], OnStep] | None,
) -> list[Mapping[str, float]]:
    """One phase; it ends with the moving average of its rounds' weights, as at a coordinator."""
    alone = replace(campaign, strategy=StrategyConfig(kind="fedavg"))
    state, average, records = None, None, []
    parts, decay = TRAINED[campaign.generate.phase], campaign.generate.ema
    for round in range(1, campaign.rounds.rounds + 1):
        told = None if on_step is None else on_step((round - 1) * steps)
        record, state = train_phase(
            generator, slices, alone, machine, site=name, round=round, steps=steps, state=state, on_step=told
        )
        records.append(record)
        average = averaged(average, parts_arrays(generator, parts), round, decay)
    assert average is not None
    load_parts(generator, average, parts)
    return records


def _counted(on_step: OnStep, before: int, total: int) -> Callable[[int], OnStep]:
    return lambda rounds_before: lambda step, _: on_step(before + rounds_before + step, total)


def _set_scale(generator: Generator, metrics: Metrics) -> None:
    """1 / root of the latents' mean square over images."""
    square = metrics["latents.square"].mean
    with torch.no_grad():
        generator.latents.scale.fill_(square**-0.5)
