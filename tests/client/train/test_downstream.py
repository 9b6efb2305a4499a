"""Rounds with the downstream networks as recognisers: what a site would train."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from client.train import gradprom
from client.train.local import batch_gradients, train_round
from shared.config import CampaignConfig, MachineConfig, RecogniserConfig
from shared.networks import build_networks
from shared.weights import load_arrays, to_arrays
from tests.client.slices import disc_slices
from tests.client.train.test_consistency import batch_of, moved_networks

KINDS = ("vnet", "resunet", "voxresnet")


def with_recogniser(campaign: CampaignConfig, kind: str, dropout: float = 0.0) -> CampaignConfig:
    recognise = RecogniserConfig(kind=kind, channels=4, depth=3, dropout=dropout)  # type: ignore[arg-type]
    return replace(campaign, recognise=recognise)


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_repeats_to_the_bit_and_its_weights_travel(
    campaign: CampaignConfig, machine: MachineConfig, kind: str
) -> None:
    campaign = with_recogniser(campaign, kind, dropout=0.2)
    found = []
    for _ in range(2):
        networks = build_networks(campaign)
        record, _ = train_round(networks, disc_slices(6), campaign, machine, site="a", round=1, steps=4)
        found.append(to_arrays(networks))
        assert 0 < record["loss_recognise"] < 10
    assert all((found[0][name] == found[1][name]).all() for name in found[0])
    other = build_networks(replace(campaign, seed=1))
    load_arrays(other, found[0])
    assert all((array == found[0][name]).all() for name, array in to_arrays(other).items())


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_add_up_to_the_batch(campaign: CampaignConfig, machine: MachineConfig, kind: str) -> None:
    campaign = with_recogniser(campaign, kind)
    networks, batch = moved_networks(campaign), batch_of(campaign)
    whole, _ = batch_gradients(networks, batch, campaign, machine, gradprom.gradients, 4)
    parts, _ = batch_gradients(networks, batch, campaign, machine, gradprom.gradients, 3)
    assert whole.recogniser_D is not None
    assert parts.recogniser_D is not None
    for a, b in ((whole.task_D[0], parts.task_D[0]), (whole.recogniser_D, parts.recogniser_D)):
        assert float((a - b).norm()) < 1e-4 * float(a.norm())
    assert torch.isfinite(whole.recogniser_D).all()
