"""The mask map that leaves a site: a mean over patients that tells the same however many rounds are looked at."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from client.labels import scarce
from client.train.local import train_round
from client.train.prior import mask_map, masked_patients
from shared.config import CampaignConfig, LabelsConfig, MachineConfig, SimulationConfig, load
from shared.networks import build_networks
from tests.client.slices import disc_slices

MACHINE = MachineConfig(device="cpu", threads=1)


@pytest.fixture
def campaign() -> CampaignConfig:
    alone = ("enhance=none", "degrade=none", "objective=plain", "learn=multimix", "learn.mask_ssl=federated")
    small = ("data=phantom", "recognise.channels=4", "recognise.depth=2", "training.batch_size=2", "rounds=3", "seed=0")
    return load("simulation", [*alone, *small], SimulationConfig).campaign


def test_a_patient_weighs_the_same_however_many_slices_it_has() -> None:
    slices = disc_slices(8, per_patient=2)
    slices = replace(slices, patient_N=torch.tensor([0, 0, 0, 0, 0, 0, 1, 2]))
    one_hot = torch.nn.functional.one_hot(slices.mask_NHW.long(), 3).movedim(-1, 1).float()
    expected = (one_hot[:6].mean(0) + one_hot[6] + one_hot[7]) / 3
    torch.testing.assert_close(mask_map(slices, [0, 1, 2], 2, mirrored=False), expected)
    mirrored = mask_map(slices, [0, 1, 2], 2, mirrored=True)
    torch.testing.assert_close(mirrored, (expected + expected.flip(-1)) / 2)
    torch.testing.assert_close(mirrored.sum(0), torch.ones(32, 32))


def test_an_empty_mask_is_nobody_to_hide_behind() -> None:
    slices = disc_slices(6)
    slices = replace(slices, mask_NHW=slices.mask_NHW * (torch.arange(6) < 2)[:, None, None])
    assert masked_patients(slices) == [0, 1]


@pytest.mark.parametrize(("patients", "leaves"), [(2, False), (3, True)])
def test_the_map_leaves_only_as_a_mean_over_enough_patients(
    campaign: CampaignConfig, patients: int, leaves: bool
) -> None:
    networks = build_networks(campaign)
    few = scarce(disc_slices(16), LabelsConfig(masks=patients), seed=0)
    record, _ = train_round(networks, few, campaign, MACHINE, site="north", round=1, steps=2)
    assert record["images.prior"] == (patients if leaves else 0)
    assert networks.prior is not None
    assert networks.prior.known == leaves


def test_the_map_is_the_same_in_every_round_so_that_many_tell_no_more_than_one(campaign: CampaignConfig) -> None:
    slices, maps = disc_slices(16), []
    for number, steps in ((1, 1), (2, 3), (3, 2)):
        networks = build_networks(campaign)
        assert networks.prior is not None
        train_round(networks, slices, campaign, MACHINE, site="north", round=number, steps=steps)
        maps.append(networks.prior.map_KHW)
    assert torch.equal(maps[0], maps[1])
    assert torch.equal(maps[0], maps[2])


def test_no_more_patients_are_claimed_than_a_coordinator_believes(campaign: CampaignConfig) -> None:
    once = replace(campaign, training=replace(campaign.training, batch_size=1))
    record, _ = train_round(build_networks(once), disc_slices(16), once, MACHINE, site="north", round=1, steps=1)
    assert record["images.prior"] <= record["samples"]
