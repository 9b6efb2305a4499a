from __future__ import annotations

from dataclasses import replace

import torch

from client.train import gradprom
from client.train.recognise import warmup_gradients
from shared.config import CampaignConfig
from shared.enhance.losses import enhancement_loss
from shared.networks import build_networks
from shared.recognise.losses import recognition_loss
from tests.client.train.test_gradprom import make_batch, moved_networks, whole


def test_warmup_trains_each_network_on_its_own(campaign: CampaignConfig) -> None:
    networks, batch = moved_networks(campaign), make_batch()
    found = warmup_gradients(networks, batch, whole(batch), campaign)
    loss = enhancement_loss(networks.enhancer(batch.degraded_BCHW), batch.clean_BCHW, "mse")
    g = gradprom.flat(torch.autograd.grad(loss, list(networks.enhancer.parameters())))
    torch.testing.assert_close(found.enhance_D, g, rtol=1e-5, atol=1e-7)
    loss = recognition_loss(networks.recogniser(batch.clean_BCHW), batch, campaign.objective)
    r = gradprom.flat(torch.autograd.grad(loss, list(networks.recogniser.parameters())))
    torch.testing.assert_close(found.recogniser_D, r, rtol=1e-5, atol=1e-7)
    assert found.task_D == ()


def test_warmup_does_not_let_the_recogniser_see_degraded_images(campaign: CampaignConfig) -> None:
    networks, batch = build_networks(campaign), make_batch()
    found = warmup_gradients(networks, batch, whole(batch), campaign)
    darker = replace(batch, degraded_BCHW=batch.degraded_BCHW * 0.1)
    other = warmup_gradients(networks, darker, whole(batch), campaign)
    assert found.recogniser_D is not None
    assert other.recogniser_D is not None
    assert torch.equal(found.recogniser_D, other.recogniser_D)
    assert not torch.equal(found.enhance_D, other.enhance_D)
