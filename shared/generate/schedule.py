"""Clean latents, noise and a time in, noisy latents and what the denoiser shall tell of them out; and the way back.

    noise      z_t = sqrt(abar_t) z + sqrt(1 - abar_t) n        target n        abar_t = prod_{i <= t} (1 - beta_i)
               sqrt(beta) rises evenly from sqrt(0.00085) to sqrt(0.012) over t = 0..999; t drawn evenly
               Ho et al. 2020, https://arxiv.org/abs/2006.11239; betas: Rombach et al. 2022, https://arxiv.org/abs/2112.10752
    velocity   z_s = (1 - s) z + s n, s = t / 1000 in (0, 1]    target n - z    s drawn logit-normal
               Liu et al. 2022, https://arxiv.org/abs/2209.03003; times: Esser et al. 2024, https://arxiv.org/abs/2403.03206

MONAI's RFlowScheduler has the same line from image to noise and the opposite sign of the velocity.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["noise", "velocity"]
TIMES = 1000
BETAS = (0.00085, 0.012)
FIRST_SHARE = 1e-3
"""Of noise: the least that a velocity is learned at."""


@cache
def kept_T() -> Tensor:
    """abar_t, the share of the variance that is still the image's at t = 0..999; float32, on the CPU."""
    root_T = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, TIMES, dtype=torch.float64)
    return (1 - root_T**2).cumprod(0).float()


def draw_times(count: int, prediction: Prediction, rng: torch.Generator) -> Tensor:
    """(count,): int64 in 0..999 for noise, float32 in [1, 1000] for velocity; drawn on the CPU."""
    if prediction == "noise":
        return torch.randint(TIMES, (count,), generator=rng)
    return torch.randn(count, generator=rng).sigmoid().clamp(min=FIRST_SHARE) * TIMES


def signal_and_noise(time_B: Tensor, prediction: Prediction, device: torch.device) -> tuple[Tensor, Tensor]:
    """What clean latents and noise are multiplied with at each time, (B, 1, 1, 1) each."""
    if prediction == "noise":
        kept_B = kept_T()[time_B.cpu()].to(device)
        signal_B, noise_B = kept_B.sqrt(), (1 - kept_B).sqrt()
    else:
        noise_B = time_B.to(device) / TIMES
        signal_B = 1 - noise_B
    return signal_B[:, None, None, None], noise_B[:, None, None, None]


def noised(latent_BCHW: Tensor, noise_BCHW: Tensor, time_B: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
    """Noisy latents and the target of the denoiser, both (B, C, H, W)."""
    signal, noise = signal_and_noise(time_B, prediction, latent_BCHW.device)
    target_BCHW = noise_BCHW if prediction == "noise" else noise_BCHW - latent_BCHW
    return signal * latent_BCHW + noise * noise_BCHW, target_BCHW


def clean_estimate(noisy_BCHW: Tensor, predicted_BCHW: Tensor, time_B: Tensor, prediction: Prediction) -> Tensor:
    """The clean latents that a prediction amounts to; exact for an exact one."""
    signal, noise = signal_and_noise(time_B, prediction, noisy_BCHW.device)
    if prediction == "noise":
        return (noisy_BCHW - noise * predicted_BCHW) / signal
    return noisy_BCHW - noise * predicted_BCHW
