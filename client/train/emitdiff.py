"""EMIT-Diff's losses, one for each phase, and the gradient of a batch on what it trains.

Zhang et al. DiffBoost (EMIT-Diff). IEEE TMI 44(9), 2025; https://arxiv.org/abs/2310.12868. Latent diffusion: Rombach et
al. 2022, https://arxiv.org/abs/2112.10752. ControlNet: Zhang, Rao, Agrawala 2023, https://arxiv.org/abs/2302.05543.

    edges        deeply supervised edges against the gaussian ones and outlines of masks: shared/generate/hed.py
    autoencoder  |x - D(z)|  +  kl_weight KL(N(m, s^2) | N(0, 1)),    m, s = E(x),  z = m + s n
    denoiser     |target - e(z_t, t, prompt)|^2                       z_t, target: shared/generate/schedule.py
    controlnet   |target - e(z_t, t, prompt, C(z_t, t, prompt, hint))|^2    e and the prompts are frozen

All are means over pixels or latent values, image by image. As published the denoiser is Stable Diffusion's, as it is;
ours is trained, by the same loss without a hint. Everything random is drawn before (client/train/shown.py), so that the
losses are functions of their arguments, and parts of a batch add up to the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client.train.gradprom import flat
from client.train.shown import Latents, Pictures
from shared.config import GenerateConfig
from shared.generate.networks import TRAINED, Generator
from shared.generate.sampling import predicted
from shared.generate.schedule import noised

Loss = Callable[[Generator, GenerateConfig, Pictures | Latents], Tensor]
"""(networks, campaign.generate, batch) -> (B,) float32."""


def edge_loss_B(generator: Generator, generate: GenerateConfig, shown: Pictures | Latents) -> Tensor:
    from shared.generate.hed import hed_loss, hed_target

    assert generator.hed is not None
    assert isinstance(shown, Pictures)
    logit_BSHW = generator.hed(shown.image_BCHW).float()
    target_B1HW = hed_target(shown.image_BCHW, shown.mask_BHW)
    each = zip(torch.split(logit_BSHW, 1), torch.split(target_B1HW, 1), strict=True)
    return torch.stack([hed_loss(logit_1SHW, target_11HW) for logit_1SHW, target_11HW in each])


def autoencoder_loss_B(generator: Generator, generate: GenerateConfig, shown: Pictures | Latents) -> Tensor:
    assert isinstance(shown, Pictures)
    pixels_BCHW = generator.unshuffled(shown.image_BCHW)
    mean_BCHW, spread_BCHW = generator.autoencoder.encode(pixels_BCHW)
    latent_BCHW = mean_BCHW + spread_BCHW * shown.noise_BCHW
    wrong_BCHW = generator.autoencoder.decode(latent_BCHW).float() - pixels_BCHW
    variance_BCHW = spread_BCHW.float() ** 2
    divergence_BCHW = 0.5 * (mean_BCHW.float() ** 2 + variance_BCHW - variance_BCHW.log() - 1)
    return cast(Tensor, wrong_BCHW.abs().mean((1, 2, 3)) + generate.kl_weight * divergence_BCHW.mean((1, 2, 3)))


def denoiser_loss_B(generator: Generator, generate: GenerateConfig, shown: Pictures | Latents) -> Tensor:
    assert isinstance(shown, Latents)
    noisy_BCHW, target_BCHW = noised(shown.latent_BCHW, shown.noise_BCHW, shown.time_B, generate.prediction)
    predicted_BCHW = predicted(generator, noisy_BCHW, shown.time_B, generator.prompts(shown.token_BW), None)
    return mse_B(predicted_BCHW, target_BCHW)


def controlnet_loss_B(generator: Generator, generate: GenerateConfig, shown: Pictures | Latents) -> Tensor:
    assert isinstance(shown, Latents)
    noisy_BCHW, target_BCHW = noised(shown.latent_BCHW, shown.noise_BCHW, shown.time_B, generate.prediction)
    return mse_B(predicted_with_hint(generator, noisy_BCHW, shown), target_BCHW)


LOSSES: dict[str, Loss] = {
    "edges": edge_loss_B,
    "autoencoder": autoencoder_loss_B,
    "denoiser": denoiser_loss_B,
    "controlnet": controlnet_loss_B,
}
"""By phase."""


def predicted_with_hint(generator: Generator, noisy_BCHW: Tensor, shown: Latents) -> Tensor:
    """What the denoiser tells of noisy latents with prompt and hint."""
    assert shown.hint_BCHW is not None
    context_BWC, embedding_BCHW = generator.prompts(shown.token_BW), generator.hint_embedding(shown.hint_BCHW)
    return predicted(generator, noisy_BCHW, shown.time_B, context_BWC, embedding_BCHW)


def mse_B(predicted_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    return F.mse_loss(predicted_BCHW.float(), target_BCHW, reduction="none").mean((1, 2, 3))


def trained_part(generator: Generator, phase: str) -> nn.ModuleList:
    """The networks that a phase trains, as one, in training mode; all others are frozen and judge."""
    for name, network in generator.all.items():
        trains = name in TRAINED[phase]
        network.train(trains).requires_grad_(trains)
    return nn.ModuleList(generator.all[name] for name in TRAINED[phase])


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Of a batch or a part of one: g of the phase's loss and, where a task steers (client/train/taskdriven.py), v of
    its own; flattened over what the phase trains."""

    g_D: Tensor
    loss: Tensor
    v_D: Tensor | None = None
    task_loss: Tensor | None = None

    def __add__(self, other: Found) -> Found:
        return Found(
            self.g_D + other.g_D,
            self.loss + other.loss,
            None if self.v_D is None or other.v_D is None else self.v_D + other.v_D,
            None if self.task_loss is None or other.task_loss is None else self.task_loss + other.task_loss,
        )


def gradients(
    generator: Generator, theta: list[nn.Parameter], generate: GenerateConfig, part: Pictures | Latents, share: float
) -> Found:
    """`share` is the part's share of its batch. Parameters that the loss does not reach have gradient 0."""
    loss = share * LOSSES[generate.phase](generator, generate, part).mean()
    found = torch.autograd.grad(loss, theta, allow_unused=True, materialize_grads=True)
    return Found(flat(found), loss.detach())
