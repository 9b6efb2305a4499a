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
    return maps.joined(mean_map(sums), _mean(sums, "free_map_KHW", "unmasked"), campaign.learn.prior_decay)


def mean_map(sums: Sums) -> Tensor | None:
    """Mean predicted probabilities (K, H, W) over the images with a mask that were drawn; None without any."""
    return _mean(sums, "mask_map_KHW", "masked")


def _mean(sums: Sums, of: str, count: str) -> Tensor | None:
    return sums[of] / sums[count] if count in sums else None


def keep_map(networks: Networks, sums: Sums, patients: int, campaign: CampaignConfig) -> bool:
    """Put this site's mean map where the federation's was, to be averaged with the other sites'; whether it was put.

    Not where it would be that of too few `patients`, those whose masks were drawn in this round: then the federation's
    stays, and the difference is 0.
    """
    mean_KHW = mean_map(sums)
    if networks.prior is None or mean_KHW is None or patients < campaign.learn.prior_patients:
        return False
    networks.prior.map_KHW.copy_(mean_KHW)
    return True


def record(
    networks: Networks, last: Batch, sums: Sums, steps: int, campaign: CampaignConfig, *, counted: bool
) -> dict[str, float]:
    """The part of a training record that recognition is the subject of; `counted`: the mask map was put in."""
    found = images(sums, networks, counted=counted)
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


def images(sums: Sums, networks: Networks, *, counted: bool) -> dict[str, float]:
    """images.<part> of every part that the networks have, whole; `counted`: the mask map was put in."""
    parts = {part for name in to_arrays(networks) if (part := part_of(name)) is not None}
    masked = sums.get("masked", torch.zeros(())) if counted else torch.zeros(())
    known = {**sums, "images.prior": masked}
    return {f"images.{part}": float(math.ceil(known.get(f"images.{part}", 0))) for part in sorted(parts)}


@torch.no_grad()
def feature_rank(networks: Networks, batch: Batch) -> float:
    """Effective rank of the decoder's last features (of the deepest, without a decoder): a collapse shows here."""
    training = networks.recogniser.training
    networks.recogniser.eval()
    features = networks.recogniser(batch.clean_BCHW[:RANKED]).features
    networks.recogniser.train(training)
    return effective_rank(features[-1])
