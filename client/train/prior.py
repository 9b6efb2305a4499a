"""A site's part of the federated mask map (learn.mask_ssl=federated): the mean of its masks, over patients.

What leaves is one map, the same in every round: each patient's slices with a mask are averaged, then the patients, all
with the same weight; where training mirrors images, the map is averaged with its mirror image. It depends neither on
the weights nor on which images a round happened to draw, so that many rounds tell no more than one. (A mean over the
predictions on the images that a round drew would: the order of draws follows from the campaign's seed, and from enough
rounds the maps of single images can be solved for.)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from client.dataset import Slices
from shared.config import CampaignConfig
from shared.networks import Networks


def put_map(networks: Networks, slices: Slices, campaign: CampaignConfig) -> int:
    """Put this site's map where the federation's was, to be averaged with the other sites'; returns its patients.

    Not where there are fewer patients with a mask than learn.prior_patients: then the federation's stays, the
    difference is 0, and so is what is returned.
    """
    if networks.prior is None:
        return 0
    patients = masked_patients(slices)
    if len(patients) < campaign.learn.prior_patients:
        return 0
    mean_KHW = mask_map(slices, patients, len(campaign.masks), mirrored=campaign.training.augment)
    networks.prior.map_KHW.copy_(mean_KHW)
    return len(patients)


def masked_patients(slices: Slices) -> list[int]:
    """Patients with a mask that shows something: an empty one would hide nobody else's."""
    shown_N = slices.has_mask_N & (slices.mask_NHW > 0).flatten(1).any(1)
    return sorted(set(slices.patient_N[shown_N].tolist()))


def mask_map(slices: Slices, patients: list[int], num_masks: int, *, mirrored: bool) -> Tensor:
    """(K, H, W): the share of `patients` that has each class at each pixel, each patient's slices averaged first."""
    of_patients = []
    for patient in patients:
        own_NHW = slices.mask_NHW[(slices.patient_N == patient) & slices.has_mask_N].long()
        of_patients.append(F.one_hot(own_NHW, 1 + num_masks).movedim(-1, 1).float().mean(0))
    mean_KHW = torch.stack(of_patients).mean(0)
    return (mean_KHW + mean_KHW.flip(-1)) / 2 if mirrored else mean_KHW
