"""Hints, prompts and seeds in, images out: what the trained networks draw.

    ddim    Song et al. 2021, https://arxiv.org/abs/2010.02502, deterministic; the steps of MONAI's DDIMScheduler with
            set_alpha_to_one=False and steps_offset=1, as Stable Diffusion runs it
    dpm     DPM-Solver++(2M), Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 2: of second order, with one
            call of the networks a step
    rflow   steps of the velocity, Liu et al. 2022, https://arxiv.org/abs/2209.03003, by Adams-Bashforth of second order
            instead of Euler: as exact on the straight paths that it aims at, and better on others at the same calls

Guidance: e = e(null) + w (e(prompt) - e(null)), Ho, Salimans 2022, https://arxiv.org/abs/2207.12598; the hint is in
both branches, as published, which run as one batch of 2B. Every image starts at the noise of its own seed: it does not
depend on its batch, beyond what the order of additions changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from shared.config import MachineConfig
from shared.config.generation import DrawConfig
from shared.generate.networks import Generator
from shared.generate.prompts import NULL
from shared.generate.schedule import TIMES, Prediction, clean_estimate, kept_T
from shared.seeding import generator as seeded

if TYPE_CHECKING:
    from monai.networks.nets import ControlNet

BATCH_SIZE = 16
"""Images that are drawn at a time, wherever more are wanted."""
Denoise = Callable[[Tensor, Tensor], Tensor]
"""(noisy_BCHW, time_B) -> what the networks tell at that time."""


def predicted(
    generator: Generator, noisy_BCHW: Tensor, time_B: Tensor, context_BWC: Tensor, hint_embedding_BCHW: Tensor | None
) -> Tensor:
    """What the denoiser tells of noisy latents, with the ControlNet's features where there is a hint's embedding."""
    if hint_embedding_BCHW is None:
        return cast(Tensor, generator.denoiser(noisy_BCHW, time_B, context_BWC))
    down, middle_BCHW = controlled(generator.controlnet, noisy_BCHW, time_B, context_BWC, hint_embedding_BCHW)
    return cast(
        Tensor,
        generator.denoiser(
            noisy_BCHW,
            time_B,
            context_BWC,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle_BCHW,
        ),
    )


def controlled(
    controlnet: ControlNet, noisy_BCHW: Tensor, time_B: Tensor, context_BWC: Tensor, hint_embedding_BCHW: Tensor
) -> tuple[list[Tensor], Tensor]:
    """ControlNet.forward from the hint's embedding on: MONAI's embeds the hint anew at each step.

    Returns what is added to the denoiser's skips and to its middle.
    """
    from monai.networks.nets.diffusion_model_unet import get_timestep_embedding

    embedded_BE = controlnet.time_embed(get_timestep_embedding(time_B, controlnet.block_out_channels[0]))
    hidden_BCHW = controlnet.conv_in(noisy_BCHW) + hint_embedding_BCHW
    skips = [hidden_BCHW]
    for block in controlnet.down_blocks:
        hidden_BCHW, further = block(hidden_states=hidden_BCHW, temb=embedded_BE, context=context_BWC)
        skips.extend(further)
    hidden_BCHW = controlnet.middle_block(hidden_states=hidden_BCHW, temb=embedded_BE, context=context_BWC)
    down = [joint(skip) for joint, skip in zip(controlnet.controlnet_down_blocks, skips, strict=True)]
    return down, controlnet.controlnet_mid_block(hidden_BCHW)


def times_of(sampler: str, steps: int) -> Tensor:
    """(steps,) times at which the networks are called, from noise to image: int64 for ddim, else float32.

    dpm's are even in the logarithm of the signal-to-noise ratio, rflow's lie closer towards the image (1 - cos): on
    Gaussians, where the answer is known, a fifth and a third of the error at even times, 8 steps each.
    """
    if sampler == "rflow":
        return TIMES * (1 - torch.linspace(torch.pi / 2, 0, steps + 1, dtype=torch.float64)[:-1].cos()).float()
    if sampler == "dpm":
        return time_at(half_log_snr_of(steps)[:-1])
    return torch.linspace(TIMES - 2, 0, steps).round().long() + 1


def time_at(half_log_snr_S: Tensor) -> Tensor:
    """Times 0..999, float32, at which the schedule has these lambda, on straight lines between whole times."""
    falling_T = kept_T().double().logit() / 2
    above_S = torch.searchsorted(-falling_T, -half_log_snr_S).clamp(1, TIMES - 1)
    left_S, right_S = falling_T[above_S - 1], falling_T[above_S]
    return (above_S - 1 + (left_S - half_log_snr_S) / (left_S - right_S)).float()


def sample(
    generator: Generator,
    hint_BCHW: Tensor,
    token_BW: Tensor,
    draw: DrawConfig,
    prediction: Prediction,
    seeds: Sequence[int],
    *,
    machine: MachineConfig | None = None,
) -> Tensor:
    """Images (B, C, H, W) in [0, 1], float32, on the generator's device; weights and modes are as before.

    `machine` tells precision and memory order; where the networks are is the caller's choice (`placed`).
    """
    assert (prediction == "velocity") == (draw.sampler == "rflow"), (prediction, draw.sampler)
    machine = machine or MachineConfig()
    device = generator.latents.scale.device
    last = (
        machine.channels_last and device.type != "cpu"
    )  # as the networks are: shared.networks.generator_channels_last
    memory_format = torch.channels_last if last else torch.contiguous_format
    hint_BCHW = hint_BCHW.to(device=device, memory_format=memory_format)
    latent_BCHW = noise_of(seeds, generator.latent_shape).to(device=device, memory_format=memory_format)
    with (
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, enabled=machine.precision == "bfloat16"),
    ):
        denoise = guided(generator, hint_BCHW, token_BW.to(device), draw.guidance)
        latent_BCHW = SOLVERS[draw.sampler](denoise, latent_BCHW, draw.steps)
        image_BCHW = generator.decode(latent_BCHW).float()
    return image_BCHW.clone()  # outside of inference_mode: one that training may read


def noise_of(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Standard normal (B, *shape) on the CPU, each image's from its own seed."""
    return torch.stack([torch.randn(shape, generator=seeded(seed, "draw")) for seed in seeds])


def guided(generator: Generator, hint_BCHW: Tensor, token_BW: Tensor, guidance: float) -> Denoise:
    """The networks as a function of noisy latents and their times; prompts and hints are embedded once."""
    embedding_BCHW = generator.hint_embedding(hint_BCHW)
    context_BWC = generator.prompts(token_BW)
    if guidance == 1:
        return lambda noisy_BCHW, time_B: predicted(generator, noisy_BCHW, time_B, context_BWC, embedding_BCHW).float()
    null_BWC = generator.prompts(torch.full_like(token_BW, NULL))
    both_BWC, twice_BCHW = torch.cat([null_BWC, context_BWC]), torch.cat([embedding_BCHW] * 2)

    def denoise(noisy_BCHW: Tensor, time_B: Tensor) -> Tensor:
        told = predicted(generator, torch.cat([noisy_BCHW] * 2), torch.cat([time_B] * 2), both_BWC, twice_BCHW)
        null_BCHW, prompted_BCHW = told.float().chunk(2)
        return torch.lerp(null_BCHW, prompted_BCHW, guidance)

    return denoise


def ddim(denoise: Denoise, latent_BCHW: Tensor, steps: int) -> Tensor:
    """Equation 12 of the paper with sigma = 0. The time stepped to is, as in MONAI, 1000 // steps below."""
    for time in times_of("ddim", steps).tolist():
        time_B = latent_BCHW.new_full((len(latent_BCHW),), time, dtype=torch.int64)
        noise_BCHW = denoise(latent_BCHW, time_B)
        clean_BCHW = clean_estimate(latent_BCHW, noise_BCHW, time_B, "noise")
        kept = float(kept_T()[max(time - TIMES // steps, 0)])
        latent_BCHW = kept**0.5 * clean_BCHW + (1 - kept) ** 0.5 * noise_BCHW
    return latent_BCHW


def dpm(denoise: Denoise, latent_BCHW: Tensor, steps: int) -> Tensor:
    """Algorithm 2 of the paper at even steps h of lambda = log(signal / noise), the last to the schedule's time 0."""
    half_log_snr, times = half_log_snr_of(steps), times_of("dpm", steps).tolist()
    signal, noise = (2 * half_log_snr).sigmoid().sqrt().tolist(), (-2 * half_log_snr).sigmoid().sqrt().tolist()
    before_BCHW: Tensor | None = None
    for step, time in enumerate(times):
        told_BCHW = denoise(latent_BCHW, latent_BCHW.new_full((len(latent_BCHW),), time))
        clean_BCHW = (latent_BCHW - noise[step] * told_BCHW) / signal[step]
        # Where it will be in the middle of the step, on the line through the last two; the first step has one.
        ahead_BCHW = clean_BCHW if before_BCHW is None else torch.lerp(before_BCHW, clean_BCHW, 1.5)
        shrunk = noise[step + 1] / noise[step]
        latent_BCHW = shrunk * latent_BCHW + (signal[step + 1] - shrunk * signal[step]) * ahead_BCHW
        before_BCHW = clean_BCHW
    return latent_BCHW


def half_log_snr_of(steps: int) -> Tensor:
    """(steps + 1,) lambda from time 999 to time 0, evenly; float64."""
    first, last = (float(kept_T()[time].double().logit()) / 2 for time in (TIMES - 1, 0))
    return torch.linspace(first, last, steps + 1, dtype=torch.float64)


def rflow(denoise: Denoise, latent_BCHW: Tensor, steps: int) -> Tensor:
    """dz/ds is the velocity; from s = 1 to 0 by the line through the last two (Adams-Bashforth), the first by one."""
    shares = [*(times_of("rflow", steps).double() / TIMES).tolist(), 0.0]
    before_BCHW, width_before = latent_BCHW, 0.0
    for share, following in pairwise(shares):
        velocity_BCHW = denoise(latent_BCHW, latent_BCHW.new_full((len(latent_BCHW),), share * TIMES))
        width = share - following
        ahead = 1 + width / (2 * width_before) if width_before else 1.0
        latent_BCHW = latent_BCHW - width * torch.lerp(before_BCHW, velocity_BCHW, ahead)
        before_BCHW, width_before = velocity_BCHW, width
    return latent_BCHW


SOLVERS: dict[str, Callable[[Denoise, Tensor, int], Tensor]] = {"ddim": ddim, "dpm": dpm, "rflow": rflow}
