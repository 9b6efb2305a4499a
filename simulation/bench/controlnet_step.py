"""A step of a ControlNet's training, 16 images of 64 x 64 on one thread; a case for each size of generator out.

    ours    as client/train/phases.py takes it: latents, hints and prompts' tokens worked out before; noise and times
            are part of the batch
    rival   a plain loop of MONAI's parts on the same: DDPMScheduler.add_noise, ControlNet.forward,
            DiffusionModelUNet.forward, mean squared error, backward, torch's Adam

Both freeze the denoiser and start from the same weights; ours besides limits the norm of the gradient and refuses what
is not finite. Latents are cached on both sides: MONAI's ControlNetLatentDiffusionInferer encodes every image anew in
every step. Clock: simulation/bench/steps.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F

from client.train import gradprom
from client.train.emitdiff import trained_part
from client.train.phase_step import batch_gradients, update
from client.train.shown import Latents, moved
from shared.config import CampaignConfig, GenerateConfig, MachineConfig
from shared.config.generation import DrawConfig
from shared.generate.networks import Generator, build_generator
from shared.generate.schedule import BETAS, TIMES, draw_times
from shared.networks import generator_channels_last, placed
from shared.seeding import generator as seeded
from simulation.bench import Case, steps

SIZES: tuple[Literal["S", "M"], ...] = ("S", "M")
TARGET, MARGIN = 1.0, 0.05
"""Ours is to cost no more; two runs of the same step differ by up to the margin."""
SIDE, BATCH = 64, 16
HINTS = 4
"""Channels of a hint: edges, background and two classes."""
REPETITIONS = 14
MACHINE = MachineConfig(device="cpu", threads=1)


def run() -> list[Case]:
    with steps.one_thread():
        return [_case(size) for size in SIZES]


def campaign(size: Literal["S", "M"]) -> CampaignConfig:
    """A campaign in its ControlNet's phase; noise is predicted, as MONAI's loop does."""
    plain = steps.campaign()
    generate = GenerateConfig(kind="emit-diff", size=size, prediction="noise", draw=DrawConfig(sampler="dpm"))
    data = replace(plain.data, diagnoses=("none", "lesion"), image_size=(SIDE, SIDE))
    training = replace(plain.training, batch_size=BATCH)
    return replace(plain, data=data, training=training, generate=replace(generate, phase="controlnet"))


def awake(size: Literal["S", "M"]) -> tuple[CampaignConfig, Generator]:
    """Networks whose last layers are not 0, as MONAI's start: they would say nothing and learn nothing."""
    agreed = campaign(size)
    generator, rng = build_generator(agreed), seeded(0, "bench", "controlnet-step", "weights")
    joints = (generator.controlnet.controlnet_down_blocks, generator.controlnet.controlnet_mid_block)
    with torch.no_grad():
        for layer in (generator.denoiser.out, *joints):
            for weight in layer.parameters():
                weight.add_(0.05 * torch.randn(weight.shape, generator=rng))
    return agreed, generator


def batch(generator: Generator) -> Latents:
    """Normal latents and hints of lines here and there: a step costs the same whatever they hold."""
    rng = seeded(0, "bench", "controlnet-step")
    latent_BCHW, noise_BCHW = torch.randn(2, BATCH, *generator.latent_shape, generator=rng)
    return Latents(
        latent_BCHW=latent_BCHW,
        noise_BCHW=noise_BCHW,
        time_B=draw_times(BATCH, "noise", rng),
        token_BW=torch.randint(2, 4, (BATCH, 3), generator=rng),
        hint_BCHW=(torch.rand(BATCH, HINTS, SIDE, SIDE, generator=rng) > 0.9).float(),
        mask_BHW=torch.zeros(BATCH, SIDE, SIDE, dtype=torch.int64),
        has_mask_B=torch.ones(BATCH, dtype=torch.bool),
        diagnosis_B=torch.zeros(BATCH, dtype=torch.int64),
        early_B=torch.zeros(BATCH, dtype=torch.bool),
    )


def ours(size: Literal["S", "M"]) -> Callable[[], float]:
    """A step; it returns its loss."""
    agreed, generator = awake(size)
    device = placed(generator, MACHINE)
    part = trained_part(generator, "controlnet")
    theta, optimiser = gradprom.trained(part), gradprom.make_optimiser(part, agreed)
    shown = moved(batch(generator), device, channels_last=generator_channels_last(MACHINE, device))

    def step() -> float:
        found, _ = batch_gradients(generator, theta, agreed, MACHINE, shown, None, BATCH)
        return float(update(theta, optimiser, found, agreed, None, check=True).loss)

    return step


def rival(size: Literal["S", "M"]) -> Callable[[], float]:
    """The same with MONAI's parts alone."""
    from monai.networks.schedulers import DDPMScheduler

    agreed, generator = awake(size)
    denoiser, controlnet = generator.denoiser.requires_grad_(requires_grad=False), generator.controlnet
    optimiser = torch.optim.Adam(controlnet.parameters(), lr=agreed.training.learning_rate)
    scheduler = DDPMScheduler(TIMES, "scaled_linear_beta", beta_start=BETAS[0], beta_end=BETAS[1], clip_sample=False)
    shown = batch(generator)
    assert shown.hint_BCHW is not None
    folded_BCHW = F.pixel_unshuffle(shown.hint_BCHW, 2)

    def step() -> float:
        with torch.no_grad():
            context_BWC = generator.prompts(shown.token_BW)
        noisy_BCHW = scheduler.add_noise(shown.latent_BCHW, shown.noise_BCHW, shown.time_B)
        down, middle_BCHW = controlnet(noisy_BCHW, shown.time_B, folded_BCHW, context=context_BWC)
        predicted_BCHW = denoiser(noisy_BCHW, shown.time_B, context_BWC, None, down, middle_BCHW)
        loss = F.mse_loss(predicted_BCHW, shown.noise_BCHW)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return loss.item()

    return step


def _case(size: Literal["S", "M"]) -> Case:
    times = steps.medians({"ours": ours(size), "rival": rival(size)}, repetitions=REPETITIONS)
    ratio = times["ours"] / times["rival"]
    case = {"bench": "controlnet-step", "case": f"size {size}, {BATCH} of {SIDE}x{SIDE}"} | times
    return case | {"ratio": ratio, "target": TARGET, "holds": ratio <= TARGET + MARGIN, "margin": MARGIN}
