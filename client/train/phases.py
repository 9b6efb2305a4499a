"""One round of a generator's training at one place, or its fine-tuning: networks and slices in, moved weights out.

A straight loop, like that of client/train/local.py, and under its rules: everything random comes from (campaign.seed,
site, round, phase), so the same inputs give the same weights to the last bit; a federated site starts every round with
a fresh optimiser, a comparator hands its state on; a step that does not fit in a GPU's memory is repeated in micro
batches of half the size. Nothing is compiled here, whatever machine.compile says.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from client.dataset import Slices
from client.train import gradprom, taskdriven
from client.train import shown as shown_to
from client.train.emitdiff import LOSSES, trained_part
from client.train.local import CHECK_EVERY, learning_rate
from client.train.optimiser import Optimiser
from client.train.phase_step import StepRecord, batch_gradients, means, update
from client.train.shown import Latents, Pictures
from client.train.taskdriven import task_recogniser
from shared.config import CampaignConfig, GenerateConfig, MachineConfig, StrategyConfig
from shared.generate.networks import Generator, start_controlnet
from shared.images.quality import psnr_db_B
from shared.metrics import moments
from shared.networks import generator_channels_last, placed
from shared.types import Metrics

JUDGED_TIMES = 2
"""Times at which each image is judged: one in each half of the schedule."""

WARM_UP = 5
"""Steps over which the rate of a fresh optimiser rises: Adam's first ones are as long as the rate, however small the
gradient. Without it a federated autoencoder lost several dB in its first rounds."""

OnStep = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class PhaseState:
    """What a comparator keeps between the rounds of one phase; it belongs to the generator that it was made with."""

    optimiser: Optimiser
    micro_size: int
    """Images at a time; below the batch size once memory ran out."""


def train_phase(
    generator: Generator,
    slices: Slices,
    campaign: CampaignConfig,
    machine: MachineConfig,
    *,
    site: str,
    round: int,
    steps: int,
    state: PhaseState | None = None,
    on_step: OnStep | None = None,
) -> tuple[Mapping[str, float], PhaseState]:
    """Train what the campaign's phase trains, in place, for `steps` steps of 1-based `round`; the rest is frozen.

    The record holds loss (mean over steps), learning_rate (last), samples and seconds; with generate.task in the
    ControlNet's phase loss_task, gate_open_rate, mean_cosine and added_share (|what the task added| / |g|) too.
    `on_step(done, steps)` is called after each step. Raises DataError if a loss or gradient is not finite (no weights
    must leave then), ConfigError if not even one image fits in memory.
    """
    rounds = campaign.rounds.rounds
    stretch = _Stretch(site, ("round", round), steps, (round - 1) / rounds, 1 / rounds)
    return _train(generator, slices, campaign, machine, stretch, state, on_step)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Steps in a row: whose and which, how many, and their part of the learning rate's schedule, [0, 1)."""

    site: str
    purpose: tuple[str | int, ...]
    steps: int
    begins: float
    length: float


def _train(
    generator: Generator,
    slices: Slices,
    campaign: CampaignConfig,
    machine: MachineConfig,
    stretch: _Stretch,
    state: PhaseState | None,
    on_step: OnStep | None,
) -> tuple[Mapping[str, float], PhaseState]:
    began = time.perf_counter()
    recogniser = _recogniser(slices, campaign, machine, stretch.site)
    device = placed(generator, machine)
    part = trained_part(generator, campaign.generate.phase)
    theta = gradprom.trained(part)
    warm_up = WARM_UP if state is None else 1
    state = state or PhaseState(gradprom.make_optimiser(part, campaign), campaign.training.batch_size)
    start_D = gradprom.flat(theta) if campaign.strategy.kind == "fedprox" else None
    rngs = shown_to.randoms(campaign, "site", stretch.site, *stretch.purpose)
    records: list[StepRecord] = []
    rate, drawn = 0.0, 0
    for step, shown in enumerate(_batches(generator, slices, campaign, machine, stretch.steps, rngs)):
        rate = learning_rate(campaign, stretch.begins + stretch.length * step / stretch.steps)
        rate *= min(1.0, (step + 1) / warm_up)
        state.optimiser.learning_rate = rate
        drawn += shown_to.size_of(shown)
        batch = shown_to.moved(shown, device, channels_last=generator_channels_last(machine, device))
        found, micro_size = batch_gradients(generator, theta, campaign, machine, batch, recogniser, state.micro_size)
        state = replace(state, micro_size=micro_size)
        check = device.type == "cpu" or step % CHECK_EVERY == 0
        records.append(update(theta, state.optimiser, found, campaign, start_D, check=check))
        if on_step is not None:
            on_step(step + 1, stretch.steps)
    gradprom.require_finite(torch.stack([record.finite for record in records]).all())
    spent = {"learning_rate": rate, "samples": float(drawn), "seconds": time.perf_counter() - began}
    return {**means(records), **spent}, state


def _recogniser(slices: Slices, campaign: CampaignConfig, machine: MachineConfig, site: str) -> nn.Module | None:
    """None where no task steers: the step is then the plain one."""
    generate = campaign.generate
    wanted = generate.phase == "controlnet" and generate.task.weight > 0
    return task_recogniser(slices, campaign, machine, site) if wanted else None


def _batches(
    generator: Generator,
    slices: Slices,
    campaign: CampaignConfig,
    machine: MachineConfig,
    steps: int,
    rngs: shown_to.Randoms,
) -> Iterator[Pictures | Latents]:
    order = shown_to.order(len(slices), campaign.training.batch_size, steps, rngs["order"])
    if campaign.generate.phase in ("edges", "autoencoder"):
        for chosen_B in order:
            yield shown_to.draw_pictures(generator, slices, chosen_B, campaign, rngs)
        return
    tables = shown_to.tables_of(generator, slices, campaign, machine, mirrored=campaign.training.augment)
    for chosen_B in order:
        yield shown_to.draw_latents(tables, slices, chosen_B, campaign, rngs)


def evaluate_phase(generator: Generator, slices: Slices, campaign: CampaignConfig, machine: MachineConfig) -> Metrics:
    """Moments over images of what the campaign's phase is about; weights and modes are as before when it returns.

    edges        edges.loss
    autoencoder  autoencoder.psnr_db and .l1 of the image decoded from its latents' mean, latents.square: the mean
                 of the squares of the latents, before they are scaled
    denoiser     denoiser.loss: mean over JUDGED_TIMES times, with a noise of the image's own
    controlnet   controlnet.loss: the same, with its hint
    """
    device = placed(generator, machine)
    columns: dict[str, list[Tensor]] = {}
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=machine.precision == "bfloat16")
    with _judging(generator), torch.no_grad(), autocast:
        for batches in _judged_batches(generator, slices, campaign, machine):
            moved = [
                shown_to.moved(batch, device, channels_last=generator_channels_last(machine, device))
                for batch in batches
            ]
            for name, values_B in _scores(generator, campaign.generate, moved).items():
                columns.setdefault(name, []).append(values_B.cpu())
    return {name: moments(torch.cat(values).double().numpy()) for name, values in columns.items()}


@contextlib.contextmanager
def _judging(generator: Generator) -> Iterator[None]:
    modes = [(network, network.training) for network in generator.all.values()]
    try:
        for network, _ in modes:
            network.eval()
        yield
    finally:
        for network, training in modes:
            network.train(training)


def _judged_batches(
    generator: Generator, slices: Slices, campaign: CampaignConfig, machine: MachineConfig
) -> Iterator[Sequence[Pictures | Latents]]:
    """All slices in order; of each batch every form that it is judged in."""
    if not len(slices):
        return
    all_N = torch.split(torch.arange(len(slices)), shown_to.BATCH_SIZE)
    if campaign.generate.phase in ("edges", "autoencoder"):
        as_they_are = replace(campaign, training=replace(campaign.training, augment=False))
        rngs = shown_to.randoms(campaign, "evaluation")
        for chosen_B in all_N:
            yield [shown_to.draw_pictures(generator, slices, chosen_B, as_they_are, rngs)]
        return
    tables = shown_to.tables_of(generator, slices, campaign, machine, mirrored=False)
    for chosen_B in all_N:
        yield shown_to.judged_latents(tables, slices, chosen_B, campaign, JUDGED_TIMES)


def _scores(generator: Generator, generate: GenerateConfig, batches: Sequence[Pictures | Latents]) -> dict[str, Tensor]:
    phase = generate.phase
    if phase == "autoencoder":
        (pictures,) = batches
        assert isinstance(pictures, Pictures)
        return _reconstructed(generator, pictures.image_BCHW)
    return {f"{phase}.loss": torch.stack([LOSSES[phase](generator, generate, batch) for batch in batches]).mean(0)}


def _reconstructed(generator: Generator, image_BCHW: Tensor) -> dict[str, Tensor]:
    mean_BCHW, _ = generator.autoencoder.encode(generator.unshuffled(image_BCHW))
    decoded_BCHW = generator.shuffled(generator.autoencoder.decode(mean_BCHW)).float().clamp(0, 1)
    return {
        "autoencoder.psnr_db": psnr_db_B(image_BCHW, decoded_BCHW),
        "autoencoder.l1": (decoded_BCHW - image_BCHW).abs().mean((1, 2, 3)),
        "latents.square": mean_BCHW.float().square().mean((1, 2, 3)),
    }


def finetune(
    generator: Generator,
    slices: Slices,
    campaign: CampaignConfig,
    machine: MachineConfig,
    *,
    site: str,
    on_step: OnStep | None = None,
) -> Mapping[str, float]:
    """The ControlNet on a site's own slices, in place, for generate.finetune_steps steps before the site draws; the
    record of a round, or {} for no steps. A ControlNet that was never trained starts as a copy of the denoiser."""
    steps = campaign.generate.finetune_steps
    if not steps:
        return {}
    if untrained(generator):
        start_controlnet(generator)
    here = replace(campaign.in_phase("controlnet"), strategy=StrategyConfig(kind="fedavg"))
    stretch = _Stretch(site, ("finetune",), steps, 0.0, 1.0)
    record, _ = _train(generator, slices, here, machine, stretch, None, on_step)
    return record


def untrained(generator: Generator) -> bool:
    """The ControlNet's joints to the denoiser are all 0, as they start."""
    joints = (generator.controlnet.controlnet_down_blocks, generator.controlnet.controlnet_mid_block)
    return not any(bool(parameter.any()) for joint in joints for parameter in joint.parameters())


def forget() -> None:
    """Let go of what this process has worked out once: latents, hints, recognisers, and the slices behind them."""
    shown_to.forget()
    taskdriven.forget()
