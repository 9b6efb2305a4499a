"""What a round's recognition added up to, read out: images per part, pseudo-labels, the mean mask map, feature rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from client.train.multimix import MeanMaps
from client.train.selfreg import effective_rank
from client.train.terms import Sums
from shared.batch import Batch
from shared.config import CampaignConfig
from shared.networks import Networks
from shared.weights import part_of, to_arrays

RANKED = 8
"""Images whose features the rank is taken of."""
_LOSSES = ("loss_masks", "loss_mask_ssl", "loss_diagnosis", "loss_diagnosis_ssl", "loss_selfreg")


def maps_at_start(networks: Networks) -> MeanMaps:
    """The federation's mean map where one came with the weights; else none yet."""
    if networks.prior is None or not networks.prior.known:
        return MeanMaps()
    return MeanMaps(labelled_KHW=networks.prior.map_KHW.clone(), fixed=True)


def maps_after(maps: MeanMaps, sums: Sums, campaign: CampaignConfig) -> MeanMaps:
    """The moving averages after one more batch."""
    with_mask, without = _mean(sums, "mask_map_KHW", "masked"), _mean(sums, "free_map_KHW", "unmasked")
    return maps.joined(with_mask, without, campaign.learn.prior_decay)


def _mean(sums: Sums, of: str, count: str) -> Tensor | None:
    return sums[of] / sums[count] if count in sums else None


def record(
    networks: Networks, last: Batch, sums: Sums, steps: int, campaign: CampaignConfig, *, patients: int
) -> dict[str, float]:
    """The part of a training record that recognition is the subject of; `patients` are those of the mask map."""
    found = images(sums, networks, patients=patients)
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


def images(sums: Sums, networks: Networks, *, patients: int) -> dict[str, float]:
    """images.<part> of every part that the networks have, whole; of the mask map, its patients."""
    parts = {part for name in to_arrays(networks) if (part := part_of(name)) is not None}
    counts = {name: float(value) for name, value in sums.items() if name.startswith("images.")}
    counts["images.prior"] = float(patients)
    return {f"images.{part}": float(math.ceil(counts.get(f"images.{part}", 0.0))) for part in sorted(parts)}


@torch.no_grad()
def feature_rank(networks: Networks, batch: Batch) -> float:
    """Effective rank of the decoder's last features (of the deepest, without a decoder): a collapse shows here."""
    training = networks.recogniser.training
    networks.recogniser.eval()
    features = networks.recogniser(batch.clean_BCHW[:RANKED]).features
    networks.recogniser.train(training)
    return effective_rank(features[-1])
