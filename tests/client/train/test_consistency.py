"""The gated step and evaluation with a layer between the enhancer and both losses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from client.batches import evaluation_batch
from client.evaluate import evaluate
from client.reading import read
from client.train import gradprom
from client.train.local import batch_gradients, train_round
from client.train.recognise import warmup_gradients
from client.train.terms import Share
from shared.batch import Batch
from shared.config import CampaignConfig, DegradeConfig, MachineConfig
from shared.enhance.consistency import consistent, enhanced_image
from shared.enhance.losses import enhancement_loss
from shared.networks import Networks, build_networks
from shared.recognise.losses import labelled, recognition_loss
from tests.client.slices import disc_slices


@pytest.fixture
def undersampled(campaign: CampaignConfig) -> CampaignConfig:
    enhance = replace(campaign.enhance, data_consistency=True)
    return replace(campaign, degrade=DegradeConfig(kind="kspace"), enhance=enhance)


def moved_networks(campaign: CampaignConfig) -> Networks:
    networks = build_networks(campaign)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in networks.enhancer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    return networks


def batch_of(campaign: CampaignConfig) -> Batch:
    return evaluation_batch(disc_slices(4), campaign, torch.arange(4))


def naive(networks: Networks, batch: Batch, campaign: CampaignConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """g and v by a forward and a backward each."""
    theta = list(networks.enhancer.parameters())

    def enhanced() -> torch.Tensor:
        assert batch.measured_BCHW is not None
        assert batch.acquired_BH is not None
        return consistent(networks.enhancer(batch.degraded_BCHW), batch.measured_BCHW, batch.acquired_BH)

    main = enhancement_loss(enhanced(), batch.clean_BCHW, campaign.training.enhance_loss)
    g = gradprom.flat(torch.autograd.grad(main, theta))
    task = recognition_loss(networks.recogniser(enhanced()), batch, campaign.objective)
    return g, gradprom.flat(torch.autograd.grad(task, theta))


@pytest.mark.parametrize("kind", ["gradprom", "joint", "estr"])
def test_both_gradients_are_those_of_naive_autograd(undersampled: CampaignConfig, kind: str) -> None:
    campaign = replace(undersampled, objective=replace(undersampled.objective, kind=kind))  # type: ignore[arg-type]
    networks, batch = moved_networks(campaign), batch_of(campaign)
    g, v = naive(networks, batch, campaign)
    found = gradprom.gradients(networks, batch, Share(1.0, labelled(batch)), campaign)
    torch.testing.assert_close(found.enhance_D, g, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.task_D[0], v, rtol=1e-4, atol=1e-7)
    without = replace(campaign, enhance=replace(campaign.enhance, data_consistency=False))
    alone = gradprom.gradients(networks, batch_of(without), Share(1.0, labelled(batch)), without)
    assert not torch.allclose(found.enhance_D, alone.enhance_D, rtol=1e-2)


def test_micro_batches_add_up_to_the_batch(undersampled: CampaignConfig, machine: MachineConfig) -> None:
    networks, batch = moved_networks(undersampled), batch_of(undersampled)
    for gradients_of in (gradprom.gradients, warmup_gradients):
        whole, _ = batch_gradients(networks, batch, undersampled, machine, gradients_of, 4)
        parts, _ = batch_gradients(networks, batch, undersampled, machine, gradients_of, 3)
        torch.testing.assert_close(whole.enhance_D, parts.enhance_D, rtol=1e-4, atol=1e-7)


def test_a_round_trains_on_consistent_images(undersampled: CampaignConfig, machine: MachineConfig) -> None:
    def trained() -> tuple[float, float, torch.Tensor]:
        networks, slices = build_networks(undersampled), disc_slices(8)
        before = evaluate(networks, slices, undersampled, machine).values["enhanced.rmse"].mean()
        train_round(networks, slices, undersampled, machine, site="a", round=1, steps=30)
        after = evaluate(networks, slices, undersampled, machine).values["enhanced.rmse"].mean()
        return before, after, gradprom.flat(list(networks.enhancer.parameters()))

    before, after, weights = trained()
    assert after < before
    assert torch.equal(weights, trained()[2])


def test_evaluation_judges_the_consistent_image(undersampled: CampaignConfig, machine: MachineConfig) -> None:
    slices, networks = disc_slices(4), build_networks(undersampled)
    scores = evaluate(networks, slices, undersampled, machine).values
    # An untrained enhancer is the identity: all that is gained over zero filling, the layer gained.
    assert bool((scores["enhanced.rmse"] < scores["degraded.rmse"]).all())
    with torch.inference_mode():
        expected = enhanced_image(networks.enhancer, batch_of(undersampled)).clamp(0, 1)
    shown = read(networks, slices, undersampled, machine)["enhanced"]
    torch.testing.assert_close(shown.image_NCHW, expected, rtol=0, atol=1e-6)
