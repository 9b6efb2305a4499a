"""What a round's recognition added up to, read out: images per part, pseudo-labels, the mean mask map, feature rank."""

from __future__ import annotations

import torch
from torch import Tensor

from client.dataset import Slices
from client.train.multimix import LabelledMap
from client.train.selfreg import effective_rank
from client.train.terms import Sums
from shared.batch import Batch
from shared.config import CampaignConfig
from shared.networks import Networks

RANKED = 8
"""Images whose features the rank is taken of."""
_LOSSES = ("loss_masks", "loss_mask_ssl", "loss_diagnosis", "loss_diagnosis_ssl", "loss_selfreg")


def map_at_start(networks: Networks) -> LabelledMap:
    """The federation's mean map where one came with the weights; else none yet."""
    if networks.prior is None or not networks.prior.known:
        return LabelledMap()
    return LabelledMap(networks.prior.map_KHW.clone(), fixed=True)


def map_after(labelled: LabelledMap, sums: Sums, campaign: CampaignConfig) -> LabelledMap:
    """The moving average after one more batch."""
    mean_KHW = mean_map(sums)
    return labelled if mean_KHW is None else labelled.joined(mean_KHW, campaign.learn.prior_decay)


def mean_map(sums: Sums) -> Tensor | None:
    """Mean predicted probabilities (K, H, W) over the images with a mask that were drawn; None without any."""
    if "masked" not in sums:
        return None
    return sums["mask_map_KHW"] / sums["masked"]


def keep_map(networks: Networks, sums: Sums, slices: Slices, campaign: CampaignConfig) -> None:
    """Put this site's mean map where the federation's was, to be averaged with the other sites'.

    Not where it would be that of too few patients: then the federation's stays, and the difference is 0.
    """
    mean_KHW = mean_map(sums)
    if networks.prior is not None and mean_KHW is not None and _enough_patients(slices, campaign):
        networks.prior.map_KHW.copy_(mean_KHW)


def _enough_patients(slices: Slices, campaign: CampaignConfig) -> bool:
    return len(set(slices.patient_N[slices.has_mask_N].tolist())) >= campaign.learn.prior_patients


def record(
    networks: Networks, last: Batch, sums: Sums, steps: int, slices: Slices, campaign: CampaignConfig
) -> dict[str, float]:
    """The part of a training record that recognition is the subject of."""
    found = {name: float(value) for name, value in sums.items() if name.startswith("images.")}
    for part in ("encoder", "decoder", "diagnosis"):
        found.setdefault(f"images.{part}", 0.0)
    if networks.prior is not None:
        counted = "masked" in sums and _enough_patients(slices, campaign)
        found["images.prior"] = float(sums["masked"]) if counted else 0.0
    found |= {name: float(sums[name]) / steps for name in _LOSSES if name in sums}
    if "offered" in sums and bool(sums["offered"]):
        accepted = sums["accepted_N"].tolist()
        found["pseudo_offered"] = float(sums["offered"])
        found["pseudo_accept_rate"] = sum(accepted) / found["pseudo_offered"]
        for name, count in zip(campaign.diagnoses, accepted, strict=True):
            found[f"pseudo_accepted.{name.replace(' ', '_')}"] = count
    if campaign.learn.streams or campaign.selfreg.on:
        found["feature_rank"] = feature_rank(networks, last)
    return found


@torch.no_grad()
def feature_rank(networks: Networks, batch: Batch) -> float:
    """Effective rank of the decoder's last features (of the deepest, without a decoder): a collapse shows here."""
    training = networks.recogniser.training
    networks.recogniser.eval()
    features = networks.recogniser(batch.clean_BCHW[:RANKED]).features
    networks.recogniser.train(training)
    return effective_rank(features[-1])
