"""Bench `loading`: a local round with its data loading against the bare steps, on a batch that is already there.

Ours is `train_round`: STEPS batches are shuffled, augmented and freshly degraded in its background thread while the
steps run. The rival takes as many of the same steps (the demo's networks, gated, Adam) on one and the same batch. Both
run in this process, in turn: the steps on one thread, the loading on another core if there is one. Wall time, the
shortest of REPEATS passes of each.
`making_s` is what a batch alone takes, with nothing else to do; `processor_ratio` the ratio of processor times over all
threads, which is what the ratio would be if no loading were hidden and does not see other programs on the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from client.batches import training_batches
from client.dataset import Slices
from client.train import gradprom, local
from client.train.gradprom import Optimisers
from shared.batch import Batch
from shared.config import CampaignConfig, MachineConfig, SimulationConfig, load
from shared.networks import Networks, build_networks, placed
from shared.seeding import generator
from simulation.bench import Case

TARGET = 1.15
STEPS = 200
SLICES = 200
REPEATS = 3
MACHINE = ("machine.device=cpu", "machine.threads=1")
DEGRADATIONS = ("gaussian", "composite")


@dataclass(frozen=True, slots=True)
class Seconds:
    wall: float
    processor: float
    """Of all threads."""


def run() -> list[Case]:
    """One case per degradation; `ours` and `rival` in seconds per step."""
    threads = torch.get_num_threads()
    try:
        return [_case(degradation) for degradation in DEGRADATIONS]
    finally:
        torch.set_num_threads(threads)


def _case(degradation: str) -> Case:
    config = load("simulation", ["experiment=demo", f"degrade={degradation}", *MACHINE], SimulationConfig)
    campaign, slices = config.campaign, random_slices(config.campaign, SLICES)
    passes: list[tuple[Seconds, Seconds]] = [
        (
            round_seconds(slices, campaign, config.machine, STEPS),
            bare_seconds(slices, campaign, config.machine, STEPS),
        )
        for _ in range(REPEATS)
    ]
    ours, rival = (min(both[which].wall for both in passes) for which in (0, 1))
    ours_processor, rival_processor = (min(both[which].processor for both in passes) for which in (0, 1))
    return {
        "bench": "loading",
        "case": f"{degradation}, {STEPS} steps",
        "ours": ours / STEPS,
        "rival": rival / STEPS,
        "ratio": ours / rival,
        "target": TARGET,
        "holds": ours / rival <= TARGET,
        "processor_ratio": ours_processor / rival_processor,
        "making_s": making_seconds(slices, campaign, STEPS).wall / STEPS,
        "batch_size": campaign.training.batch_size,
        "threads": config.machine.threads,
    }


def round_seconds(slices: Slices, campaign: CampaignConfig, machine: MachineConfig, steps: int) -> Seconds:
    """The campaign's last round, where nothing is warm-up any more."""
    networks = build_networks(campaign)
    _step(networks, _batches(slices, campaign, 1)[0], campaign, machine, steps=1)
    last = campaign.rounds.rounds
    return _timed(lambda: local.train_round(networks, slices, campaign, machine, site="bench", round=last, steps=steps))


def bare_seconds(slices: Slices, campaign: CampaignConfig, machine: MachineConfig, steps: int) -> Seconds:
    """As many steps of the same round on the round's first batch."""
    networks = build_networks(campaign)
    batch = _batches(slices, campaign, 1)[0]
    _step(networks, batch, campaign, machine, steps=1)
    return _timed(lambda: _step(networks, batch, campaign, machine, steps=steps))


def making_seconds(slices: Slices, campaign: CampaignConfig, steps: int) -> Seconds:
    """The batches of a round, and nothing else."""
    return _timed(lambda: _batches(slices, campaign, steps))


def _timed(work: Callable[[], object]) -> Seconds:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - wall, time.process_time() - processor)


def _batches(slices: Slices, campaign: CampaignConfig, steps: int) -> list[Batch]:
    return list(training_batches(slices, campaign, site="bench", round=campaign.rounds.rounds, steps=steps))


def _step(networks: Networks, batch: Batch, campaign: CampaignConfig, machine: MachineConfig, *, steps: int) -> None:
    """train_round's own step, without what makes batches."""
    device = placed(networks, machine)
    optimisers = Optimisers(
        gradprom.enhancer_optimiser(networks.enhancer, campaign), gradprom.make_optimiser(networks.recogniser, campaign)
    )
    there = batch.to(device, channels_last=machine.channels_last)
    for step in range(steps):
        progress = (campaign.rounds.rounds - 1 + step / steps) / campaign.rounds.rounds
        for optimiser in (optimisers.enhancer, optimisers.recogniser):
            optimiser.learning_rate = local.learning_rate(campaign, progress)
        found, _ = local.batch_gradients(networks, there, campaign, machine, gradprom.gradients, there.size)
        gradprom.update(networks, optimisers, found, campaign)


def random_slices(campaign: CampaignConfig, count: int) -> Slices:
    """Smooth fields on the campaign's grid, their level as the mask; every slice is a patient."""
    rng = generator(0, "bench", "loading")
    data = campaign.data
    coarse = torch.randn(count, data.channels, 8, 8, generator=rng)
    clean_NCHW = F.interpolate(coarse, size=data.image_size, mode="bicubic").sigmoid()
    mask_NHW = (clean_NCHW[:, 0] * (len(data.masks) + 1)).to(torch.uint8).clamp(max=len(data.masks))
    diagnosis_N = torch.arange(count) % len(data.diagnoses) if data.diagnoses else torch.full((count,), -1)
    identity = tuple(f"bench/{number}/0" for number in range(count))
    return Slices(clean_NCHW, mask_NHW, torch.ones(count, dtype=torch.bool), diagnosis_N, torch.arange(count), identity)
