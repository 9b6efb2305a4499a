"""How many of the final model's pseudo-labels are right: only a simulation holds the diagnoses that were hidden.

A site's training slices without a diagnosis are offered as in training, from images as the recogniser learns on them
(enhanced where there is an enhancer), but without augmentation and with the networks as they judge; the truth is what
stands in the store, before data.labels takes it away. Where the store has no diagnosis either, nobody knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from client.batches import evaluation_batches
from client.dataset import SiteData, Slices, open_site
from client.reading import BATCH_SIZE, images_of, reading, taken
from client.train.multimix import pseudo_labels
from shared.config import CampaignConfig, MachineConfig
from shared.networks import Networks


def pseudo_labels_judged(
    networks: Networks,
    datas: Mapping[str, SiteData],
    stores: Mapping[str, Path],
    campaign: CampaignConfig,
    machine: MachineConfig,
) -> dict[str, dict[str, int]]:
    """Counts of images by site: offered, accepted, of these `known` (in truth) and `right`; {} for a campaign without
    pseudo-labels."""
    if not (campaign.learn.pseudo_labels and campaign.diagnoses):
        return {}
    return {
        site: judged_against(networks, data.train, _truth_N(data, stores[site], campaign), campaign, machine)
        for site, data in datas.items()
    }


def judged_against(
    networks: Networks, train: Slices, truth_N: Tensor, campaign: CampaignConfig, machine: MachineConfig
) -> dict[str, int]:
    """`truth_N`: of every slice of `train`, -1 where it is not known."""
    offered = (train.diagnosis_N < 0).nonzero()[:, 0]
    code_N, accepted_N = _pseudo_labels(networks, taken(train, offered.tolist()), campaign, machine)
    truth_N = truth_N[offered]
    known_N = accepted_N & (truth_N >= 0)
    return {
        "offered": len(offered),
        "accepted": int(accepted_N.sum()),
        "known": int(known_N.sum()),
        "right": int((known_N & (code_N == truth_N)).sum()),
    }


def _truth_N(data: SiteData, store: Path, campaign: CampaignConfig) -> Tensor:
    """The store's diagnoses of the site's training slices."""
    budget = (campaign.data.labels or {}).get(data.site)
    if budget is None or budget.diagnoses is None:
        return data.train.diagnosis_N
    whole = open_site(store, data.site, replace(campaign, data=replace(campaign.data, labels=None))).train
    assert whole.identity == data.train.identity, "a budget takes labels away, not images"
    return whole.diagnosis_N


def _pseudo_labels(
    networks: Networks, slices: Slices, campaign: CampaignConfig, machine: MachineConfig
) -> tuple[Tensor, Tensor]:
    """Diagnosis and whether it is accepted, of every slice; on the CPU."""
    if not len(slices):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
    codes: list[Tensor] = []
    accepted: list[Tensor] = []
    with reading(networks, machine) as device, torch.no_grad():
        for batch in evaluation_batches(slices, campaign, BATCH_SIZE):
            moved = batch.to(device, channels_last=machine.channels_last)
            image_BCHW = images_of(networks, moved, machine)["enhanced"]  # without an enhancer, the degraded one
            with torch.autocast(device.type, torch.bfloat16, enabled=machine.precision == "bfloat16"):
                code_B, accepted_B = pseudo_labels(networks.recogniser, image_BCHW, campaign.learn.threshold)
            codes.append(code_B.cpu())
            accepted.append(accepted_B.cpu())
    return torch.cat(codes), torch.cat(accepted)
