"""Solvers against flows known in closed form and against MONAI's schedulers; networks against MONAI's calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from shared.config import GenerateConfig, MachineConfig
from shared.config.generation import DrawConfig
from shared.generate.networks import Generator, build_generator
from shared.generate.prompts import NULL
from shared.generate.sampling import (
    SOLVERS,
    controlled,
    half_log_snr_of,
    noise_of,
    predicted,
    sample,
    times_of,
)
from shared.generate.schedule import TIMES, Prediction, kept_T

PLAIN = MachineConfig(device="cpu", threads=1, channels_last=False)
DPM = DrawConfig(sampler="dpm", steps=3)
MEAN = 0.5
SPREAD = torch.tensor([0.03, 0.1, 0.3, 1.0, 2.0], dtype=torch.float64).reshape(1, 5, 1, 1)
"""Standard deviations of Gaussian latents, one a channel: from what is nearly a point to wider than the noise."""


@pytest.fixture(scope="module")
def generator() -> Generator:
    """No joint is 0: the ControlNet says something."""
    from simulation.bench import steps

    plain = steps.campaign()
    made = build_generator(
        replace(
            plain,
            data=replace(plain.data, image_size=(24, 32), diagnoses=("none", "lesion")),
            generate=GenerateConfig(kind="emit-diff"),
        )
    )
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for part in (made.denoiser, made.controlnet):
            for weight in part.parameters():
                weight.add_(0.03 * torch.randn(weight.shape, generator=rng))
    return made


def hints(generator: Generator, count: int) -> Tensor:
    return torch.rand(count, 4, *generator.size, generator=torch.Generator().manual_seed(1))


def tokens(count: int) -> Tensor:
    return torch.tensor([[2, 2, 2 + row % 2] for row in range(count)])


def latents(generator: Generator, count: int) -> Tensor:
    return torch.randn(count, *generator.latent_shape, generator=torch.Generator().manual_seed(2))


def gaussian_noise(noisy: Tensor, time_B: Tensor) -> Tensor:
    """E[n | z_t] for z ~ N(MEAN, SPREAD^2), at any time between whole ones too."""
    falling = kept_T().double().logit()
    below = time_B.double().floor().long()
    share = (time_B.double() - below).reshape(-1, 1, 1, 1)
    left, right = (falling[index].reshape(-1, 1, 1, 1) for index in (below, (below + 1).clamp(max=TIMES - 1)))
    kept = (left + share * (right - left)).sigmoid()
    return (1 - kept).sqrt() * (noisy - kept.sqrt() * MEAN) / (kept * SPREAD**2 + 1 - kept)


def gaussian_velocity(noisy: Tensor, time_B: Tensor) -> Tensor:
    share = (time_B.double() / TIMES).reshape(-1, 1, 1, 1)
    off, variance = noisy - (1 - share) * MEAN, (1 - share) ** 2 * SPREAD**2 + share**2
    return share / variance * off - MEAN - (1 - share) * SPREAD**2 / variance * off


def transported(start: Tensor) -> Tensor:
    """Where the exact flow of a noise denoiser ends: at each time noisy latents are Gaussian, and the flow keeps their
    place in units of their spread."""
    first, last = kept_T()[-1].double(), kept_T()[0].double()
    place = (start - first.sqrt() * MEAN) / (first * SPREAD**2 + 1 - first).sqrt()
    return last.sqrt() * MEAN + (last * SPREAD**2 + 1 - last).sqrt() * place


def error(sampler: str, steps: int) -> float:
    """Of the solver alone, in spreads, over starts from -2 to 2; the mean over the channels."""
    start = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1, 1, 1).expand(9, 5, 1, 1)
    if sampler == "rflow":
        reached, exact = SOLVERS[sampler](gaussian_velocity, start, steps), MEAN + SPREAD * start
    else:
        reached, exact = SOLVERS[sampler](gaussian_noise, start, steps), transported(start)
    return float(((reached - exact).abs() / SPREAD).mean())


@pytest.mark.parametrize("sampler", ["dpm", "rflow"])
def test_twice_the_steps_leave_a_quarter_of_the_error(sampler: str) -> None:
    order = torch.log2(torch.tensor(error(sampler, 40) / error(sampler, 80)))
    assert 1.7 < order < 2.3


def test_ddim_converges_with_first_order_on_the_same_flow() -> None:
    """At numbers of steps that divide 1000 and whose times are evenly apart, see `ddim`."""
    assert error("ddim", 250) < 0.6 * error("ddim", 100) < error("ddim", 10)


@pytest.mark.parametrize("steps", [4, 8, 16, 40])
def test_dpm_is_closer_than_ddim_at_equal_steps(steps: int) -> None:
    assert error("dpm", steps) < error("ddim", steps)


def test_eight_steps_of_dpm_are_closer_than_twenty_of_ddim() -> None:
    assert error("dpm", 8) < 0.5 * error("ddim", 20)


def test_straight_paths_are_followed_exactly_whatever_the_steps() -> None:
    """A velocity that is the same at all times: noise and image are joined by a line."""
    start, end = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for steps in (1, 2, 7):
        reached = SOLVERS["rflow"](lambda _noisy, _time: start - end, start, steps)
        torch.testing.assert_close(reached, end, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [4, 10, 20])
def test_ddim_is_monais_scheduler(steps: int) -> None:
    from monai.networks.schedulers import DDIMScheduler

    scheduler = DDIMScheduler(
        num_train_timesteps=TIMES,
        schedule="scaled_linear_beta",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(steps)
    assert torch.equal(times_of("ddim", steps), scheduler.timesteps)

    def denoise(noisy: Tensor, time_B: Tensor) -> Tensor:
        return (noisy * 0.7 + time_B.reshape(-1, 1, 1, 1) / TIMES).sin()

    start = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    theirs = start
    for time in scheduler.timesteps:
        theirs, _ = scheduler.step(denoise(theirs, time.expand(2)), int(time), theirs)
    torch.testing.assert_close(SOLVERS["ddim"](denoise, start, steps), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampler", ["ddim", "dpm", "rflow"])
def test_times_fall_from_noise_to_image(sampler: str) -> None:
    for steps in (1, 2, 8, 50, 499):
        times = times_of(sampler, steps).double()
        assert len(times) == steps
        assert (times.diff() < 0).all()
        assert 0 <= times[-1] <= times[0] <= TIMES


def test_times_of_dpm_have_the_signal_to_noise_that_its_steps_assume() -> None:
    time_S, half_log_snr_S = times_of("dpm", 9), half_log_snr_of(9)[:-1]
    falling = kept_T().double().logit() / 2
    assert time_S[0] == TIMES - 1
    assert (falling[time_S.floor().long()] >= half_log_snr_S - 1e-5).all()
    assert (falling[time_S.ceil().long()] <= half_log_snr_S + 1e-5).all()


def test_a_controlnet_from_its_hints_embedding_on_is_monais(generator: Generator) -> None:
    import torch.nn.functional as F

    noisy, time = latents(generator, 3), torch.tensor([0, 400, 999])
    context, hint = generator.prompts(tokens(3)), hints(generator, 3)
    ours = controlled(generator.controlnet, noisy, time, context, generator.hint_embedding(hint))
    theirs = generator.controlnet(noisy, time, F.pixel_unshuffle(generator.on_canvas(hint), 2), context=context)
    assert len(ours[0]) == len(theirs[0])
    for one, other in zip([*ours[0], ours[1]], [*theirs[0], theirs[1]], strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_without_a_hint_the_denoiser_is_alone(generator: Generator) -> None:
    noisy, time, context = latents(generator, 2), torch.tensor([10, 900]), generator.prompts(tokens(2))
    alone = predicted(generator, noisy, time, context, None)
    torch.testing.assert_close(alone, generator.denoiser(noisy, time, context))
    steered = predicted(generator, noisy, time, context, generator.hint_embedding(hints(generator, 2)))
    assert (steered - alone).abs().max() > 1e-3


def test_gradients_reach_the_controlnet_through_a_frozen_denoiser(generator: Generator) -> None:
    noisy, time, context = latents(generator, 2), torch.tensor([10, 900]), generator.prompts(tokens(2))
    told = predicted(generator, noisy, time, context, generator.hint_embedding(hints(generator, 2)))
    gradients = torch.autograd.grad(told.square().mean(), list(generator.controlnet.parameters()))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert sum(float(gradient.abs().sum()) > 0 for gradient in gradients) > 0.9 * len(gradients)


def by_the_book(
    generator: Generator, hint: Tensor, token: Tensor, guidance: float, steps: int, start: Tensor
) -> Tensor:
    """DDIM, the hint embedded at every step, two calls of each network for guidance."""
    import torch.nn.functional as F

    folded = F.pixel_unshuffle(generator.on_canvas(hint), 2)

    def told(noisy: Tensor, time: Tensor, of: Tensor) -> Tensor:
        down, middle = generator.controlnet(noisy, time, folded, context=generator.prompts(of))
        answer: Tensor = generator.denoiser(noisy, time, generator.prompts(of), None, tuple(down), middle)
        return answer

    def denoise(noisy: Tensor, time: Tensor) -> Tensor:
        null = told(noisy, time, torch.full_like(token, NULL))
        return null + guidance * (told(noisy, time, token) - null)

    with torch.no_grad():
        return generator.decode(SOLVERS["ddim"](denoise, start, steps))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_images_are_those_of_two_calls_a_step_and_a_hint_embedded_anew(generator: Generator, guidance: float) -> None:
    draw = DrawConfig(sampler="ddim", steps=4, guidance=guidance)
    drawn = sample(generator, hints(generator, 2), tokens(2), draw, "noise", [5, 6], machine=PLAIN)
    start = noise_of([5, 6], generator.latent_shape)
    slow = by_the_book(generator, hints(generator, 2), tokens(2), guidance, 4, start)
    torch.testing.assert_close(drawn, slow, rtol=0, atol=2e-5)
    assert drawn.shape == (2, 1, 24, 32)
    assert 0 <= drawn.min() < drawn.max() <= 1


@pytest.mark.parametrize(("sampler", "prediction"), [("ddim", "noise"), ("dpm", "noise"), ("rflow", "velocity")])
def test_an_image_does_not_depend_on_its_batch(generator: Generator, sampler: str, prediction: Prediction) -> None:
    draw = DrawConfig(sampler=sampler, steps=3)  # type: ignore[arg-type]
    hint, token, seeds = hints(generator, 3), tokens(3), [11, 12, 13]
    together = sample(generator, hint, token, draw, prediction, seeds, machine=PLAIN)
    alone = sample(generator, hint[1:2], token[1:2], draw, prediction, seeds[1:2], machine=PLAIN)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)
    assert (together[1] - together[2]).abs().max() > 1e-3


def test_an_image_depends_on_its_seed_its_hint_and_its_prompt(generator: Generator) -> None:
    draw = DPM
    hint, token = hints(generator, 1), tokens(1)
    first = sample(generator, hint, token, draw, "noise", [1], machine=PLAIN)
    others: list[Callable[[], Tensor]] = [
        lambda: sample(generator, hint, token, draw, "noise", [2], machine=PLAIN),
        lambda: sample(generator, 1 - hint, token, draw, "noise", [1], machine=PLAIN),
        lambda: sample(generator, hint, tokens(2)[1:], draw, "noise", [1], machine=PLAIN),
    ]
    assert torch.equal(first, sample(generator, hint, token, draw, "noise", [1], machine=PLAIN))
    assert all((first - other()).abs().max() > 1e-4 for other in others)


def test_drawn_images_can_be_trained_on_and_leave_the_weights_alone(generator: Generator) -> None:
    before = {name: part.clone() for name, part in generator.controlnet.state_dict().items()}
    drawn = sample(generator, hints(generator, 1), tokens(1), DPM, "noise", [1], machine=PLAIN)
    weight = torch.ones((), requires_grad=True)
    (gradient,) = torch.autograd.grad((drawn * weight).square().mean(), [weight])
    assert gradient > 0
    after = generator.controlnet.state_dict()
    assert all(torch.equal(after[name], part) for name, part in before.items())


def test_bfloat16_moves_an_image_by_little(generator: Generator) -> None:
    exact, rounded = (
        sample(
            generator, hints(generator, 2), tokens(2), DPM, "noise", [1, 2],
            machine=replace(PLAIN, precision=precision),
        )
        for precision in ("float32", "bfloat16")
    )  # fmt: skip
    assert rounded.dtype == torch.float32
    assert (exact - rounded).abs().mean() < 0.02


def test_a_sampler_for_the_other_prediction_is_our_own_mistake(generator: Generator) -> None:
    with pytest.raises(AssertionError):
        sample(generator, hints(generator, 1), tokens(1), DrawConfig(sampler="rflow"), "noise", [1], machine=PLAIN)
