"""Bench `loading`: a local round with its data loading against the bare steps, on a batch that is already there.

Ours is `train_round`: STEPS batches are shuffled, augmented and freshly degraded in its background thread while the
steps run. The rival takes as many of the same steps (the demo's networks, gated, Adam) on one and the same batch. Both
run in this process, in turn: the steps on one thread, the loading on another core if there is one. Wall time, the
shortest of REPEATS passes of each.
`making_s` is what a batch alone takes, with nothing else to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable

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
    ours, rival = _best_of(
        lambda: round_seconds(slices, campaign, config.machine, STEPS),
        lambda: bare_seconds(slices, campaign, config.machine, STEPS),
    )
    return {
        "bench": "loading",
        "case": f"{degradation}, {STEPS} steps",
        "ours": ours / STEPS,
        "rival": rival / STEPS,
        "ratio": ours / rival,
        "target": TARGET,
        "holds": ours / rival <= TARGET,
        "making_s": making_seconds(slices, campaign, STEPS) / STEPS,
        "batch_size": campaign.training.batch_size,
        "threads": config.machine.threads,
    }


def _best_of(ours: Callable[[], float], rival: Callable[[], float]) -> tuple[float, float]:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for measured, taken in zip((ours, rival), times, strict=True):
            taken.append(measured())
    return min(times[0]), min(times[1])


def round_seconds(slices: Slices, campaign: CampaignConfig, machine: MachineConfig, steps: int) -> float:
    """The campaign's last round, where nothing is warm-up any more."""
    networks = build_networks(campaign)
    _step(networks, _batches(slices, campaign, 1)[0], campaign, machine, steps=1)
    began = time.perf_counter()
    local.train_round(networks, slices, campaign, machine, site="bench", round=campaign.rounds.rounds, steps=steps)
    return time.perf_counter() - began


def bare_seconds(slices: Slices, campaign: CampaignConfig, machine: MachineConfig, steps: int) -> float:
    """As many steps of the same round on the round's first batch."""
    networks = build_networks(campaign)
    batch = _batches(slices, campaign, 1)[0]
    _step(networks, batch, campaign, machine, steps=1)
    began = time.perf_counter()
    _step(networks, batch, campaign, machine, steps=steps)
    return time.perf_counter() - began


def making_seconds(slices: Slices, campaign: CampaignConfig, steps: int) -> float:
    """The batches of a round, and nothing else."""
    began = time.perf_counter()
    _batches(slices, campaign, steps)
    return time.perf_counter() - began


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
