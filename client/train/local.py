"""One round at one site: networks and slices in, moved weights and a record of the training out.

A straight loop. Everything random comes from (campaign.seed, site, round), so the same inputs give the same weights to
the last bit on the same machine with the same number of threads. A federated site starts every round with fresh
optimisers; comparators that train without a federation hand their `TrainingState` on.

Out of memory on a GPU: the step is repeated in micro batches of half the size, whose gradients add up to those of the
whole batch, and the smaller size is kept. The gate sees the whole batch either way; only gate=confident, which compares
parts of a batch, then has more and smaller parts to compare.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from client.batches import training_batches
from client.dataset import Slices
from client.streams import learns_nothing
from client.train import gradprom, observed, recognise, todnet
from client.train.gradprom import Anchor, Gradients, Optimisers, StepRecord
from client.train.multimix import multimix
from client.train.optimiser import Split
from client.train.prior import put_map
from client.train.terms import Share, Sums, supervised
from shared.batch import Batch
from shared.config import CampaignConfig, MachineConfig
from shared.errors import ConfigError
from shared.networks import Networks, placed
from shared.recognise.losses import labelled
from shared.seeding import derived_seed, generator
from shared.types import Arrays

LOWEST_RATE = 0.01
"""The cosine schedule ends at this share of the learning rate."""

CHECK_EVERY = 16
"""Steps between looks at the device's flag of finiteness; on the CPU a look costs nothing and every step has one."""

OnStep = Callable[[int, int], None]
GradientsOf = Callable[[Networks, Batch, Share, CampaignConfig], Gradients]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingState:
    """What a comparator keeps between rounds; it belongs to the networks that it was made with."""

    optimisers: Optimisers
    micro_size: int
    """Images at a time; below the batch size once memory ran out."""


def train_round(
    networks: Networks,
    slices: Slices,
    campaign: CampaignConfig,
    machine: MachineConfig,
    *,
    site: str,
    round: int,
    steps: int,
    state: TrainingState | None = None,
    on_step: OnStep | None = None,
) -> tuple[Mapping[str, float], TrainingState]:
    """Train `networks` in place for `steps` steps of 1-based `round`.

    The record holds loss_enhance (with an enhancer), loss_recognise (means over steps), learning_rate (last), samples,
    seconds, images.<part> (how many images moved each part of the networks that labels decide over) and what
    client/train/observed.py reads from the recognition; ascent_rate, the share of steps whose applied change of weights
    leads uphill to first order; where the task gradient was looked at gate_open_rate, mean_cosine and added_share
    (|what recognition added| / |g|); and with a critic wasserstein, its mean estimate of the distance between clean and
    enhanced images. `on_step(done, steps)` is called after each step.
    Raises DataError if a loss or gradient is not finite (no weights must leave then), ConfigError if not even one
    image fits in memory.
    """
    began = time.perf_counter()
    device = placed(networks, machine)
    state = state or _fresh_state(networks, campaign)
    if learns_nothing(slices, campaign):
        return {"samples": 0.0, "seconds": 0.0, **observed.images({}, networks, patients=0)}, state
    anchor = _anchor(networks, campaign)
    main_loss, gaps = gradprom.fidelity(campaign), list[Tensor]()
    if networks.critic is not None:
        assert state.optimisers.critic is not None
        rng = generator(campaign.seed, "site", site, "round", round, "critic")
        main_loss = todnet.main_loss(networks.critic, state.optimisers.critic, campaign, rng, gaps)
    records: list[StepRecord] = []
    sums: Sums = {}
    maps = observed.maps_at_start(networks)
    channels = generator(campaign.seed, "site", site, "round", round, "selfreg")
    rate, drawn = 0.0, 0
    coming = training_batches(slices, campaign, site=site, round=round, steps=steps, pin=device.type == "cuda")
    with (
        _seeded_dropout(campaign, device, site, round),
        _compiled(networks, machine) as used,
        contextlib.closing(coming) as batches,  # an error must not leave the thread behind
    ):
        for step, batch in enumerate(batches):
            progress = ((round - 1) + step / steps) / campaign.rounds.rounds
            warm = progress < campaign.objective.warmup
            _set_modes(networks, frozen=not campaign.objective.learns and not warm)
            rate = learning_rate(campaign, progress)
            _set_rate(state.optimisers, rate)
            recognition = (
                multimix(campaign, maps, channels) if campaign.learn.streams else supervised(campaign, channels)
            )
            gradients_of = partial(gradients_form(campaign, warm=warm), main_loss=main_loss, recognition=recognition)
            moved = batch.to(device, channels_last=machine.channels_last)
            drawn += moved.size
            found, micro_size = batch_gradients(used, moved, campaign, machine, gradients_of, state.micro_size)
            state = replace(state, micro_size=micro_size)
            check = device.type == "cpu" or step % CHECK_EVERY == 0
            records.append(gradprom.update(networks, state.optimisers, found, campaign, anchor=anchor, check=check))
            sums = gradprom.added_sums(sums, found.sums)
            maps = observed.maps_after(maps, found.sums, campaign)
            if on_step is not None:
                on_step(step + 1, steps)
    gradprom.require_finite(torch.stack([record.finite for record in records]).all())
    spent = {"learning_rate": rate, "samples": float(drawn), "seconds": time.perf_counter() - began}
    if gaps:
        spent["wasserstein"] = float(torch.stack(gaps).mean())
    patients = min(put_map(networks, slices, campaign), drawn)  # a coordinator believes no higher count
    seen = observed.record(networks, moved, sums, steps, campaign, patients=patients)
    return {**_means(records, enhances=campaign.enhance.kind != "none"), **spent, **seen}, state


def gradients_form(campaign: CampaignConfig, *, warm: bool) -> Callable[..., Gradients]:
    """What a step of this campaign takes its gradients with; `warm`: before the task may steer."""
    if campaign.enhance.kind == "none":
        return recognise.alone_gradients
    return recognise.warmup_gradients if warm else gradprom.gradients


def added_change(networks: Networks, state: TrainingState) -> Arrays:
    """What recognition added to the enhancer's weights since `state` was made, by name; {} where it was not split."""
    split = state.optimisers.enhancer
    if not isinstance(split, Split):
        return {}
    named = [(name, parameter) for name, parameter in networks.enhancer.named_parameters() if parameter.requires_grad]
    parts = torch.split(split.added_change_D.cpu(), [parameter.numel() for _, parameter in named])
    return {
        f"enhancer.{name}": part.view(parameter.shape).numpy()
        for (name, parameter), part in zip(named, parts, strict=True)
    }


def batch_gradients(
    networks: Networks,
    batch: Batch,
    campaign: CampaignConfig,
    machine: MachineConfig,
    gradients_of: GradientsOf,
    micro_size: int,
) -> tuple[Gradients, int]:
    """The whole batch's gradients and the micro batch size that they fitted in memory with."""
    counts = labelled(batch)
    objective = campaign.objective
    # The confident gate compares parts of a batch, so the batch is taken in parts.
    in_parts = objective.gated and objective.gate == "confident"
    most = batch.size // objective.micro_batches if in_parts else batch.size

    def sum_of_parts() -> Gradients | None:
        total: Gradients | None = None
        autocast = torch.autocast(batch.clean_BCHW.device.type, torch.bfloat16, enabled=machine.precision == "bfloat16")
        with contextlib.suppress(torch.OutOfMemoryError), autocast:
            for part in batch.micro_batches(min(micro_size, most)):
                found = gradients_of(networks, part, Share(part.size / batch.size, counts), campaign)
                total = found if total is None else total + found
            return total
        return None

    # The retry is outside of the function that failed: its frame would keep the failed step's tensors alive.
    while (total := sum_of_parts()) is None:
        if micro_size == 1:
            raise ConfigError("one image does not fit in the device's memory; lower enhance.channels or use device=cpu")
        micro_size = max(1, min(micro_size, batch.size) // 2)
        if batch.clean_BCHW.device.type == "cuda":
            torch.cuda.empty_cache()
    return total, micro_size


def learning_rate(campaign: CampaignConfig, progress: float) -> float:
    """At `progress` in [0, 1) of the campaign's rounds."""
    if campaign.training.schedule == "constant":
        return campaign.training.learning_rate
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return campaign.training.learning_rate * (LOWEST_RATE + (1 - LOWEST_RATE) * cosine)


def _fresh_state(networks: Networks, campaign: CampaignConfig) -> TrainingState:
    critic = None if networks.critic is None else todnet.critic_optimiser(networks.critic, campaign)
    enhancer = gradprom.enhancer_optimiser(networks.enhancer, campaign)
    recogniser = gradprom.make_optimiser(networks.recogniser, campaign)
    return TrainingState(Optimisers(enhancer, recogniser, critic), campaign.images_per_step)


def _anchor(networks: Networks, campaign: CampaignConfig) -> Anchor | None:
    if campaign.strategy.kind != "fedprox":
        return None
    enhancer_D, recogniser_D = (
        gradprom.flat(gradprom.trained(network)) for network in (networks.enhancer, networks.recogniser)
    )
    return Anchor(enhancer_D, recogniser_D, campaign.strategy.proximal_mu)


def _set_modes(networks: Networks, *, frozen: bool) -> None:
    networks.enhancer.train()
    networks.recogniser.train(not frozen)
    if networks.critic is not None:
        networks.critic.train()


def _set_rate(optimisers: Optimisers, rate: float) -> None:
    for optimiser in (optimisers.enhancer, optimisers.recogniser):
        optimiser.learning_rate = rate


@contextlib.contextmanager
def _seeded_dropout(campaign: CampaignConfig, device: torch.device, site: str, round: int) -> Iterator[None]:
    """torch's dropout knows the global generator only; inside, it is this round's, and outside it was never touched."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(derived_seed(campaign.seed, "site", site, "round", round, "dropout"))
        yield


@contextlib.contextmanager
def _compiled(networks: Networks, machine: MachineConfig) -> Iterator[Networks]:
    """Compiled forms that share the networks' weights, where the machine asks for them."""
    if not machine.compile:
        yield networks
        return
    import torch._functorch.config as functorch_config

    # Two products with one graph: the first must leave the buffers that the second reads.
    with functorch_config.patch(donated_buffer=False):
        enhancer, recogniser = (
            cast(nn.Module, torch.compile(network)) for network in (networks.enhancer, networks.recogniser)
        )
        yield replace(networks, enhancer=enhancer, recogniser=recogniser)


def _means(records: list[StepRecord], *, enhances: bool) -> dict[str, float]:
    gates = [record.gate_open.float() for record in records if record.gate_open is not None]
    cosines = [record.cosine for record in records if record.cosine is not None]
    columns: dict[str, list[Tensor]] = {
        "loss_enhance": [record.enhance_loss for record in records if enhances],
        "loss_recognise": [record.recognise_loss for record in records],
        "gate_open_rate": gates,
        "mean_cosine": cosines,
        "added_share": [record.added for record in records if record.added is not None],
        "ascent_rate": [record.ascended for record in records if enhances],
    }
    return {name: float(torch.stack(values).mean()) for name, values in columns.items() if values}
