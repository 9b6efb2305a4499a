"""Noising and targets against MONAI's schedulers, and against each other."""

from __future__ import annotations

import math

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler, RFlowScheduler

from shared.generate.schedule import TIMES, Prediction, clean_estimate, draw_times, kept_T, noised
from shared.seeding import generator

PREDICTIONS: tuple[Prediction, ...] = ("noise", "velocity")


def drawn(prediction: Prediction, count: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = generator(3, "test", "schedule")
    shape = (count, 2, 4, 4)
    return (
        torch.randn(shape, generator=rng),
        torch.randn(shape, generator=rng),
        draw_times(count, prediction, rng),
    )


def ddpm() -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=TIMES, schedule="scaled_linear_beta", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )


def test_the_share_kept_is_that_of_monai_at_every_time() -> None:
    torch.testing.assert_close(kept_T(), ddpm().alphas_cumprod, rtol=2e-5, atol=1e-6)


def test_noisy_latents_are_those_of_monais_ddpm() -> None:
    latent, noise, time = drawn("noise")
    noisy, target = noised(latent, noise, time, "noise")
    torch.testing.assert_close(noisy, ddpm().add_noise(latent, noise, time), rtol=1e-6, atol=2e-6)
    assert torch.equal(target, noise)


def test_noisy_latents_are_those_of_monais_rectified_flow() -> None:
    latent, noise, time = drawn("velocity")
    noisy, target = noised(latent, noise, time, "velocity")
    scheduler = RFlowScheduler(num_train_timesteps=TIMES, use_discrete_timesteps=False)
    torch.testing.assert_close(noisy, scheduler.add_noise(latent, noise, time), rtol=1e-6, atol=1e-6)
    # A step of MONAI's over the whole way, with the sign that it takes, ends at the clean latents.
    scheduler.set_timesteps(1)
    clean, _ = scheduler.step(-target, TIMES, noise, 0)
    torch.testing.assert_close(clean, latent, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_an_exact_prediction_gives_the_clean_latents_back(prediction: Prediction) -> None:
    latent, noise, time = (part.double() if part.is_floating_point() else part for part in drawn(prediction))
    noisy, target = noised(latent, noise, time, prediction)
    torch.testing.assert_close(clean_estimate(noisy, target, time, prediction), latent, rtol=0, atol=1e-6)


def test_times_of_a_noise_denoiser_are_even_integers_from_0_to_999() -> None:
    time = draw_times(20_000, "noise", generator(0, "test"))
    assert time.dtype == torch.int64
    assert (int(time.min()), int(time.max())) == (0, TIMES - 1)
    assert abs(time.double().mean() - (TIMES - 1) / 2) < 4 * math.sqrt(TIMES**2 / 12 / 20_000)


def test_times_of_a_velocity_denoiser_are_logit_normal() -> None:
    share = draw_times(20_000, "velocity", generator(0, "test")).double() / TIMES
    assert 0 < share.min() <= share.max() < 1
    logit = torch.logit(share)
    # Standard errors of a mean and of a standard deviation of n normal numbers: 1 / sqrt(n) and 1 / sqrt(2 n).
    assert abs(logit.mean()) < 4 / math.sqrt(20_000)
    assert abs(logit.std() - 1) < 4 / math.sqrt(40_000)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_times_repeat_with_their_seed(prediction: Prediction) -> None:
    first, second = (draw_times(8, prediction, generator(5, "test")) for _ in range(2))
    assert torch.equal(first, second)
