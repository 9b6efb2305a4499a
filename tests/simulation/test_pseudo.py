"""Pseudo-labels against the hidden truth: counted one image at a time, and by a recogniser whose answers are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from client.dataset import open_site
from shared.config import CampaignConfig, LabelsConfig, LearnConfig, MachineConfig, build, to_dict
from shared.networks import Networks, build_networks
from shared.recognise.recognition import Recognition
from simulation.pseudo import judged_against, pseudo_labels_judged


class Bright(nn.Module):
    """Diagnosis 1 where any pixel is brighter than 0.6, as the spots of the tests' stores are; sure by `logit`."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(logit))

    def forward(self, image_BCHW: Tensor) -> Recognition:
        bright_B = (image_BCHW.flatten(1).amax(1) > 0.6).float()
        logits_BN = self.logit * torch.stack([1 - bright_B, bright_B], 1)
        return Recognition(None, logits_BN, [image_BCHW], [])


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    alone = replace(
        campaign,
        enhance=replace(campaign.enhance, kind="none"),
        degrade=replace(campaign.degrade, kind="none"),
        objective=replace(campaign.objective, kind="plain"),
        learn=LearnConfig(kind="multimix", pseudo_labels=True, threshold=0.7),
    )
    return build(CampaignConfig, to_dict(alone))


def hidden(campaign: CampaignConfig, share: float) -> CampaignConfig:
    return replace(campaign, data=replace(campaign.data, labels={"coast": LabelsConfig(diagnoses=share)}))


def test_a_recogniser_that_is_always_right_is_counted_right_and_one_that_is_unsure_offers_in_vain(
    campaign: CampaignConfig, machine: MachineConfig, stores: dict[str, Path]
) -> None:
    scarce = hidden(campaign, 0.0)
    datas = {site: open_site(store, site, scarce) for site, store in stores.items()}
    count = len(datas["coast"].train)
    sure = Networks(nn.Identity(), Bright(5.0))
    found = pseudo_labels_judged(sure, datas, stores, scarce, machine)
    assert found["coast"] == {"offered": count, "accepted": count, "known": count, "right": count}
    assert found["north"] == {"offered": 0, "accepted": 0, "known": 0, "right": 0}, "north keeps its diagnoses"
    unsure = Networks(nn.Identity(), Bright(0.5))  # says softmax(0.5, 0) = 0.62 < 0.7
    found = pseudo_labels_judged(unsure, datas, stores, scarce, machine)
    assert found["coast"] == {"offered": count, "accepted": 0, "known": 0, "right": 0}
    wrong = Networks(nn.Identity(), Bright(-5.0))
    found = pseudo_labels_judged(wrong, datas, stores, scarce, machine)
    assert found["coast"] == {"offered": count, "accepted": count, "known": count, "right": 0}


def test_only_slices_whose_diagnosis_was_hidden_are_offered(
    campaign: CampaignConfig, machine: MachineConfig, stores: dict[str, Path]
) -> None:
    scarce = hidden(campaign, 0.5)
    datas = {"coast": open_site(stores["coast"], "coast", scarce)}
    count = int((datas["coast"].train.diagnosis_N < 0).sum())
    assert 0 < count < len(datas["coast"].train)
    found = pseudo_labels_judged(Networks(nn.Identity(), Bright(5.0)), datas, stores, scarce, machine)
    assert found["coast"] == {"offered": count, "accepted": count, "known": count, "right": count}


def test_where_the_store_knows_no_diagnosis_nothing_is_right_or_wrong(
    campaign: CampaignConfig, machine: MachineConfig, stores: dict[str, Path]
) -> None:
    train = open_site(stores["coast"], "coast", hidden(campaign, 0.0)).train
    truth_N = train.diagnosis_N.clone()
    truth_N[0] = 1 - (train.clean_NCHW[0].max() > 0.6).long()  # one is known, and it is the other diagnosis
    found = judged_against(Networks(nn.Identity(), Bright(5.0)), train, truth_N, campaign, machine)
    assert found == {"offered": len(train), "accepted": len(train), "known": 1, "right": 0}


def test_a_campaign_without_pseudo_labels_judges_none_and_networks_stay_in_their_mode(
    campaign: CampaignConfig, machine: MachineConfig, stores: dict[str, Path]
) -> None:
    datas = {site: open_site(store, site, campaign) for site, store in stores.items()}
    networks = build_networks(campaign)
    networks.recogniser.train()
    assert set(pseudo_labels_judged(networks, datas, stores, campaign, machine)) == set(stores)
    assert networks.recogniser.training
    without = replace(campaign, learn=replace(campaign.learn, pseudo_labels=False))
    assert pseudo_labels_judged(networks, datas, stores, without, machine) == {}
