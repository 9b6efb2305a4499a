"""Images drawn by ours and by MONAI's inferer, at equal feature distance to real ones; a case for each sampler out.

    ours    shared/generate/sampling.py: dpm on the rival's own generator; rflow on one of the same size and training
            that predicts velocities
    rival   DDIM with 20 steps and guidance of 2, as MONAI's ControlNetLatentDiffusionInferer.sample(cfg=2) runs it: in
            one batch of 2B too, but every step embeds the hint anew

The inferer shrinks hints to the latent grid, and its null prompt is a constant. So that it draws with our networks as
they are, hints are folded to that grid and unfolded before the ControlNet, and the constant is replaced by the trained
null prompt: both cost next to nothing, and its images are ours with ddim (tests/simulation/bench/test_sampling.py).

Each side draws one image for the mask and the edges of each of 256 test slices; the features are those of a recogniser
(simulation/bench/generators.py), seconds are of the processor, on one thread, batch by batch in turns. A case holds if
ours takes at most a quarter of the rival's seconds and the intervals of the two distances meet.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client.dataset import Slices
from shared.config.generation import DrawConfig
from shared.generate.hints import hint_of
from shared.generate.networks import HINT_UNSHUFFLE, REDUCTION, Generator
from shared.generate.prompts import NULL, prompt_tokens
from shared.generate.quality import distance_interval, feature_distance, features_of
from shared.generate.sampling import noise_of, sample
from shared.generate.schedule import BETAS, TIMES, Prediction
from shared.networks import placed
from shared.seeding import derived_seed, numpy_generator
from simulation.bench import Case, generators, steps

TARGET = 0.25
IMAGES, BATCH = 256, 16
RIVAL_STEPS, GUIDANCE = 20, 2.0
OURS: dict[Prediction, DrawConfig] = {
    "noise": DrawConfig(sampler="dpm", steps=5, guidance=GUIDANCE),
    "velocity": DrawConfig(sampler="rflow", steps=5, guidance=GUIDANCE),
}
FILL = -1.0
"""The inferer's null prompt."""

Draw = Callable[[Tensor, Tensor, list[int]], Tensor]
"""(hint_BCHW, token_BW, seeds) -> image_BCHW"""


def run() -> list[Case]:
    with steps.one_thread():
        data = generators.slices()
        judge = generators.judge(data)
        return [_case(prediction, data.train, data.test, judge) for prediction in OURS]


def _case(prediction: Prediction, train: Slices, test: Slices, judge: nn.Module) -> Case:
    draws = {"ours": ours(prediction, train), "rival": rival(train)}
    seconds, images = drawn(draws, test)
    real_ND = features_of(judge, test.clean_NCHW[:IMAGES])
    case: Case = {"bench": "sampling", "case": f"{OURS[prediction].sampler}, {OURS[prediction].steps} steps"} | seconds
    intervals = []
    for name, image_NCHW in images.items():
        drawn_ND = features_of(judge, image_NCHW)
        intervals.append(distance_interval(real_ND, drawn_ND, numpy_generator(0, "bench", "sampling", name)))
        case[f"{name}_distance"] = feature_distance(real_ND, drawn_ND)
        case[f"{name}_interval"] = "{:.4g} to {:.4g}".format(*intervals[-1])
    ratio = seconds["ours"] / seconds["rival"]
    meet = max(low for low, _ in intervals) <= min(high for _, high in intervals)
    return case | {"ratio": ratio, "target": TARGET, "holds": ratio <= TARGET and meet, "images": IMAGES}


def drawn(draws: dict[str, Draw], test: Slices) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Seconds per image of each side, and its images of the first IMAGES slices."""
    agreed = generators.campaign("noise")
    hint_NCHW = hint_of(
        agreed.generate, test.clean_NCHW[:IMAGES], test.mask_NHW[:IMAGES].long(), len(agreed.data.masks), None
    )
    token_NW = prompt_tokens(agreed, test.acquired[:IMAGES], test.diagnosis_N[:IMAGES])
    seconds = dict.fromkeys(draws, 0.0)
    found: dict[str, list[Tensor]] = {name: [] for name in draws}
    for start in range(0, IMAGES, BATCH):
        rows = slice(start, start + BATCH)
        seeds = [derived_seed(0, "bench", "sampling", row) for row in range(start, min(start + BATCH, IMAGES))]
        for name, draw in draws.items():
            began = time.process_time()
            found[name].append(draw(hint_NCHW[rows], token_NW[rows], seeds))
            seconds[name] += (time.process_time() - began) / IMAGES
    return seconds, {name: torch.cat(parts) for name, parts in found.items()}


def ours(prediction: Prediction, train: Slices) -> Draw:
    generator = generators.trained(prediction, train)
    placed(generator, generators.MACHINE)
    draw = OURS[prediction]
    return lambda hint, token, seeds: sample(
        generator, hint, token, draw, prediction, seeds, machine=generators.MACHINE
    )


def rival(train: Slices) -> Draw:
    generator = generators.trained("noise", train)
    return lambda hint, token, seeds: inferred(generator, hint, token, seeds, RIVAL_STEPS, GUIDANCE)


def inferred(
    generator: Generator, hint_BCHW: Tensor, token_BW: Tensor, seeds: list[int], count: int, guidance: float
) -> Tensor:
    """Images (B, C, H, W) in [0, 1] by MONAI's inferer and scheduler, `count` steps."""
    from monai.inferers.inferer import ControlNetLatentDiffusionInferer
    from monai.networks.schedulers import DDIMScheduler

    scheduler = DDIMScheduler(
        TIMES,
        "scaled_linear_beta",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        beta_start=BETAS[0],
        beta_end=BETAS[1],
    )
    scheduler.set_timesteps(count)
    inferer = ControlNetLatentDiffusionInferer(scheduler, scale_factor=float(generator.latents.scale))
    with torch.no_grad():
        null_1WC = generator.prompts(torch.full_like(token_BW[:1], NULL))
        pixels_BCHW = inferer.sample(
            noise_of(seeds, generator.latent_shape),
            generator.autoencoder,
            NullPrompted(generator.denoiser, null_1WC),
            NullPrompted(Unfolding(generator.controlnet), null_1WC),
            F.pixel_unshuffle(generator.on_canvas(hint_BCHW), REDUCTION),
            conditioning=generator.prompts(token_BW),
            cfg=guidance,
            cfg_fill_value=FILL,
            verbose=False,
        )
        return generator.shuffled(pixels_BCHW).clamp(0, 1)


class NullPrompted(nn.Module):
    """A network that reads the trained null prompt wherever the inferer fills in its constant."""

    def __init__(self, network: nn.Module, null_1WC: Tensor) -> None:
        super().__init__()
        self.network = network
        self.null_1WC = null_1WC

    def forward(self, x: Tensor, timesteps: Tensor, *, context: Tensor, **further: object) -> object:
        filled_B11 = (context == FILL).all((1, 2), keepdim=True)
        return self.network(x, timesteps, context=torch.where(filled_B11, self.null_1WC, context), **further)


class Unfolding(nn.Module):
    """A ControlNet that is given its hint folded to the latent grid: the inferer leaves that size alone."""

    def __init__(self, controlnet: nn.Module) -> None:
        super().__init__()
        self.controlnet = controlnet

    def forward(self, x: Tensor, timesteps: Tensor, *, controlnet_cond: Tensor, context: Tensor) -> object:
        hint_BCHW = F.pixel_unshuffle(F.pixel_shuffle(controlnet_cond, REDUCTION), HINT_UNSHUFFLE)
        return self.controlnet(x, timesteps, controlnet_cond=hint_BCHW, context=context)
