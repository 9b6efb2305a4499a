"""The task's gradient on a ControlNet against the form that one would write first, and the gate's guarantee."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client.train import phases, taskdriven
from client.train.emitdiff import Found, gradients, trained_part
from client.train.gradprom import flat, trained
from client.train.phases import train_phase
from client.train.shown import Latents, parts, size_of
from client.train.taskdriven import both_gradients, labels_of_early, steered, task_recogniser
from shared.batch import Batch
from shared.config import CampaignConfig, TaskConfig
from shared.generate.networks import Generator, build_generator
from shared.generate.schedule import noised
from shared.networks import build_networks
from shared.recognise.losses import recognition_loss
from tests.client.slices import disc_slices
from tests.client.train.diffusion import CPU, bits, drawn, stirred, with_generator


def with_task(campaign: CampaignConfig, *, prediction: str = "velocity", **changes: Any) -> CampaignConfig:
    return with_generator(campaign, task=TaskConfig(**{"weight": 0.3, **changes}), prediction=prediction).in_phase(
        "controlnet"
    )


def ready(campaign: CampaignConfig) -> tuple[Generator, nn.Module, list[nn.Parameter], Latents]:
    generator = stirred(build_generator(campaign))
    recogniser = stirred_recogniser(campaign)
    return generator, recogniser, trained(trained_part(generator, "controlnet")), drawn(generator, campaign, count=8)


def stirred_recogniser(campaign: CampaignConfig) -> nn.Module:
    recogniser = build_networks(campaign).recogniser.eval().requires_grad_(False)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in recogniser.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    return recogniser


def slow(
    generator: Generator, recogniser: nn.Module, theta: list[nn.Parameter], campaign: CampaignConfig, seen: Latents
) -> tuple[Tensor, Tensor]:
    """g and v by a forward and a backward of their own each, the equations of both predictions written out."""
    prediction = campaign.generate.prediction

    def told(noisy: Tensor) -> Tensor:
        context, hint = generator.prompts(seen.token_BW), F.pixel_unshuffle(seen.hint_BCHW, 2)
        down, middle = generator.controlnet(noisy, seen.time_B, hint, context=context)
        return generator.denoiser(
            noisy, seen.time_B, context, down_block_additional_residuals=down, mid_block_additional_residual=middle
        )

    noisy, target = noised(seen.latent_BCHW, seen.noise_BCHW, seen.time_B, prediction)
    g = torch.autograd.grad(F.mse_loss(told(noisy), target), theta)
    if prediction == "noise":
        root = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
        kept = (1 - root**2).cumprod(0).float()[seen.time_B][:, None, None, None]
        clean = (noisy - (1 - kept).sqrt() * told(noisy)) / kept.sqrt()
    else:
        clean = noisy - (seen.time_B / 1000)[:, None, None, None] * told(noisy)
    early = seen.time_B <= 1000 * campaign.generate.task.latest_time
    image = generator.decode(clean)[early]
    batch = Batch(image, image, seen.mask_BHW[early], seen.has_mask_B[early], seen.diagnosis_B[early])
    v = torch.autograd.grad(recognition_loss(recogniser(image), batch, campaign.objective), theta)
    return flat(g), flat(v)


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_both_gradients_are_those_of_two_forwards_and_two_backwards(campaign: CampaignConfig, prediction: str) -> None:
    campaign = with_task(campaign, prediction=prediction)
    generator, recogniser, theta, seen = ready(campaign)
    assert 0 < int(seen.early_B.sum()) < 8
    found = both_gradients(generator, recogniser, theta, campaign, seen, 1.0, labels_of_early(seen))
    g, v = slow(generator, recogniser, theta, campaign, seen)
    assert found.v_D is not None
    torch.testing.assert_close(found.g_D, g, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.v_D, v, rtol=1e-3, atol=1e-6)
    assert float(v.norm()) > 0
    plain = gradients(generator, theta, campaign.generate, seen, 1.0)
    torch.testing.assert_close(found.g_D, plain.g_D, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.loss, plain.loss)


def test_parts_of_a_batch_add_up_to_both_gradients_of_the_whole(campaign: CampaignConfig) -> None:
    campaign = with_task(campaign)
    generator, recogniser, theta, seen = ready(campaign)
    seen.diagnosis_B[1] = -1
    counts = labels_of_early(seen)
    whole = both_gradients(generator, recogniser, theta, campaign, seen, 1.0, counts)
    total: Found | None = None
    for part in parts(seen, 3):
        one = both_gradients(generator, recogniser, theta, campaign, part, size_of(part) / 8, counts)
        total = one if total is None else total + one
    assert total is not None
    for name in ("g_D", "v_D", "loss", "task_loss"):
        torch.testing.assert_close(getattr(total, name), getattr(whole, name), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("gate", ["none", "global", "projected"])
def test_the_gate_never_takes_away_from_the_denoising_loss(campaign: CampaignConfig, gate: Any) -> None:
    campaign = with_task(campaign, gate=gate, weight=0.7)
    rng = torch.Generator().manual_seed(0)
    agreed = []
    for _ in range(40):
        g, v = torch.randn(2, 12, generator=rng)
        agrees = float(g @ v) > 0
        agreed.append(agrees)
        step = steered(Found(g, torch.zeros(()), 5 * v, torch.zeros(())), campaign, [12])
        square = float(g @ g)
        gained = float(step.d_D @ g)
        if gate != "none":
            assert gained >= square * (1 - 1e-5)
        if gate == "none" or agrees:  # all of v, at 0.7 of the length of g whatever its own
            torch.testing.assert_close(step.d_D, g + 0.7 * g.norm() / v.norm() * v)
        elif gate == "global":
            assert torch.equal(step.d_D, g)
        else:
            assert gained == pytest.approx(square, rel=1e-4)
            assert not torch.equal(step.d_D, g)
        assert float(step.gate_open) == (gate == "none" or agrees)
    assert 5 < sum(agreed) < 35


def test_images_too_noisy_to_recognise_and_images_without_labels_have_no_say(campaign: CampaignConfig) -> None:
    campaign = with_task(campaign)
    generator, recogniser, theta, seen = ready(campaign)
    none = torch.zeros(8, dtype=torch.bool)
    late = replace(seen, early_B=none)
    unlabelled = replace(seen, has_mask_B=none, diagnosis_B=torch.full((8,), -1))
    for silent in (late, unlabelled):
        found = both_gradients(generator, recogniser, theta, campaign, silent, 1.0, labels_of_early(silent))
        assert found.v_D is not None
        assert not found.v_D.any()
        assert torch.equal(steered(found, campaign, [len(found.g_D)]).d_D, found.g_D)


def test_a_task_of_weight_nought_is_the_plain_step_to_the_bit_and_needs_no_recogniser(
    campaign: CampaignConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> nn.Module:
        raise AssertionError("a recogniser was trained for nothing")

    monkeypatch.setattr(phases, "task_recogniser", none)
    ends = []
    for changes in ({}, {"gate": "projected", "latest_time": 0.9}):
        off = with_task(campaign, **{"weight": 0.0, **changes})
        generator = stirred(build_generator(off))
        record, _ = train_phase(generator, disc_slices(6), off, CPU, site="a", round=1, steps=2)
        assert "loss_task" not in record
        ends.append(bits(generator))
    assert ends[0] == ends[1]


def test_a_closed_gate_leaves_the_plain_step(campaign: CampaignConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recogniser asks for the opposite of everything: with v = -g no gate opens."""
    monkeypatch.setattr(taskdriven, "RECOGNISER_STEPS", 2)
    plain_gradients = taskdriven.both_gradients

    def opposed(*arguments: Any) -> Found:
        found = plain_gradients(*arguments)
        return replace(found, v_D=-found.g_D)

    monkeypatch.setattr("client.train.phase_step.both_gradients", opposed)
    slices = disc_slices(6)
    weights = []
    for weight in (0.5, 0.0):
        of_task = with_task(campaign, weight=weight)
        of_task = replace(of_task, training=replace(of_task.training, optimiser="sgd"))
        generator = stirred(build_generator(of_task))
        record, _ = train_phase(generator, slices, of_task, CPU, site="a", round=1, steps=2)
        weights.append(flat(trained(generator.controlnet)))
        if weight:
            assert (record["gate_open_rate"], record["added_share"]) == (0, 0)
            assert record["mean_cosine"] == pytest.approx(-1, abs=1e-4)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


def test_the_record_tells_what_the_task_did(campaign: CampaignConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taskdriven, "RECOGNISER_STEPS", 2)
    campaign = with_task(campaign, gate="none", weight=0.3)
    generator = stirred(build_generator(campaign))
    before = bits(generator)
    record, _ = train_phase(generator, disc_slices(6), campaign, CPU, site="a", round=1, steps=2)
    assert record["loss_task"] > 0
    assert record["gate_open_rate"] == 1
    assert -1 <= record["mean_cosine"] <= 1
    assert record["added_share"] == pytest.approx(0.3, rel=1e-3)
    moved = {name.partition(".")[0] for name, value in bits(generator).items() if before[name] != value}
    assert moved == {"controlnet"}


def test_a_sites_recogniser_is_the_same_each_time_frozen_and_knows_its_images(
    campaign: CampaignConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = with_task(campaign)
    campaign = replace(campaign, training=replace(campaign.training, batch_size=8))
    slices = disc_slices(8)
    monkeypatch.setattr(taskdriven, "RECOGNISER_STEPS", 120)
    one = task_recogniser(slices, campaign, CPU, "a")
    assert task_recogniser(slices, campaign, CPU, "a") is one
    assert not one.training
    assert not any(parameter.requires_grad for parameter in one.parameters())
    taskdriven.forget()
    torch.manual_seed(8)
    again = task_recogniser(slices, campaign, CPU, "a")
    assert again is not one
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    with torch.no_grad():
        found = one(slices.clean_NCHW).mask_logits_BKHW.argmax(1) > 0
    truth = slices.mask_NHW > 0
    assert float(2 * (found & truth).sum() / (found.sum() + truth.sum())) > 0.9
