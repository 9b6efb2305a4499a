"""Synthetic images and the masks that they inherit in, how well they agree, and which of them are kept, out.

Dice of a segmenter that learnt on the site's real images, against the mask that the image inherits; and correlation of
the image's edges with the outlines of that mask. Of each diagnosis the share draw.keep with the highest mean rank is
kept. Ours; nothing is published.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from client.dataset import Slices
from client.generate.asks import Asks
from client.train.alone import alone
from shared.config import CampaignConfig, MachineConfig, RecogniserConfig, TrainingConfig
from shared.generate.edges import gaussian_edges
from shared.recognise.metrics import dice_BK

Segmenter = Callable[[Tensor], Tensor]
"""image_BCHW in [0, 1] -> codes_BHW of the campaign's masks."""

SEGMENTER_STEPS = 200
_CHUNK = 256


def by_quality(
    image_SCHW: Tensor,
    asks: Asks,
    train: Slices,
    campaign: CampaignConfig,
    machine: MachineConfig,
    left_S: Tensor,
    site: str,
    segmenter: Segmenter | None,
) -> tuple[Tensor, dict[str, Any]]:
    """(kept_S of those left, figures); agreement is measured where it decides, or where a segmenter is there."""
    keep = campaign.generate.draw.keep
    filtered = keep < 1 and bool(left_S.any())
    if filtered and segmenter is None and campaign.data.masks:
        segmenter = trained_segmenter(train, campaign, machine, site=site, steps=SEGMENTER_STEPS)
    if not len(asks) or not (filtered or segmenter):
        return left_S, {"rejected_share": 0.0, "mask_dice": None, "edge_agreement": None}
    mask_SHW = train.mask_NHW[asks.source_S]
    edges_S = edge_agreement(image_SCHW, train.clean_NCHW[asks.source_S], mask_SHW)
    scores = [edges_S]
    if segmenter is not None and campaign.data.masks:
        scores.append(mask_agreement(image_SCHW, mask_SHW, len(campaign.data.masks), segmenter))
    kept_S = left_S & best_of_each_class(scores, asks.diagnosis_S, left_S, keep)
    left = max(int(left_S.sum()), 1)
    return kept_S, {
        "rejected_share": 1 - int(kept_S.sum()) / left,
        "mask_dice": float(scores[1].mean()) if len(scores) > 1 else None,
        "edge_agreement": float(edges_S.mean()),
    }


def best_of_each_class(scores: list[Tensor], diagnosis_S: Tensor, left_S: Tensor, keep: float) -> Tensor:
    """bool (S,): of the images left of each diagnosis, the share `keep` (rounded up) whose mean rank is highest."""
    kept_S = torch.zeros_like(left_S)
    for code in sorted(set(diagnosis_S[left_S].tolist())):
        rows = (left_S & (diagnosis_S == code)).nonzero()[:, 0]
        ranks = torch.stack([_rank(score_S[rows]) for score_S in scores]).sum(0)
        best = ranks.argsort(descending=True, stable=True)[: math.ceil(keep * len(rows))]
        kept_S[rows[best]] = True
    return kept_S


def _rank(score_R: Tensor) -> Tensor:
    """Ranks from 0, of equal scores their mean."""
    order_R = score_R.double().sort().values
    below_R = torch.searchsorted(order_R, score_R.double())
    return (below_R + torch.searchsorted(order_R, score_R.double(), right=True) - 1) / 2


def mask_agreement(image_SCHW: Tensor, mask_SHW: Tensor, num_masks: int, segmenter: Segmenter) -> Tensor:
    """(S,) mean Dice over the classes; 1 where nothing was there and nothing was found."""
    found = []
    for image_BCHW, mask_BHW in zip(torch.split(image_SCHW, _CHUNK), torch.split(mask_SHW, _CHUNK), strict=True):
        found.append(dice_BK(segmenter(image_BCHW), mask_BHW.long(), num_masks).nanmean(1).nan_to_num(1.0))
    return torch.cat(found)


def edge_agreement(image_SCHW: Tensor, source_SCHW: Tensor, mask_SHW: Tensor) -> Tensor:
    """(S,) correlation of an image's edges with the outlines of its mask, or without a mask with its slice's edges."""
    found = []
    chunks = (torch.split(values, _CHUNK) for values in (image_SCHW, source_SCHW, mask_SHW))
    for image_BCHW, source_BCHW, mask_BHW in zip(*chunks, strict=True):
        outline_B1HW = outlines(mask_BHW)
        empty_B = ~outline_B1HW.flatten(1).any(1)
        wanted_B1HW = torch.where(empty_B[:, None, None, None], gaussian_edges(source_BCHW), outline_B1HW.float())
        found.append(_correlation(gaussian_edges(image_BCHW), wanted_B1HW))
    return torch.cat(found)


def outlines(mask_BHW: Tensor) -> Tensor:
    """bool (B, 1, H, W): pixels within one of another class, on both sides of the border."""
    codes_B1HW = mask_BHW[:, None].float()
    padded = F.pad(codes_B1HW, (1, 1, 1, 1), mode="replicate")
    return F.max_pool2d(padded, 3, 1) != -F.max_pool2d(-padded, 3, 1)


def _correlation(a_B1HW: Tensor, b_B1HW: Tensor) -> Tensor:
    a_BD, b_BD = (values.flatten(1) - values.flatten(1).mean(1, keepdim=True) for values in (a_B1HW, b_B1HW))
    sizes_B = a_BD.square().sum(1).sqrt() * b_BD.square().sum(1).sqrt()
    return (a_BD * b_BD).sum(1) / sizes_B.clamp(min=1e-6)


def trained_segmenter(
    train: Slices, campaign: CampaignConfig, machine: MachineConfig, *, site: str, steps: int
) -> Segmenter:
    """A small U-Net that learnt masks on the site's real training images alone."""
    from client.train.local import train_round
    from shared.networks import build_networks

    asked = alone(
        campaign,
        TrainingConfig(batch_size=8, local_steps=steps),
        data=replace(campaign.data, diagnoses=(), labels=None),
        recognise=RecogniserConfig(kind="unet", channels=16, depth=3),
    )
    networks = build_networks(asked)
    real = replace(train, synthetic=None)
    train_round(networks, real, asked, machine, site=f"{site}/segmenter", round=1, steps=steps)
    recogniser = networks.recogniser.eval()
    device = next(recogniser.parameters()).device

    def segmenter(image_BCHW: Tensor) -> Tensor:
        with torch.inference_mode():
            logits_BKHW: Tensor = recogniser(image_BCHW.to(device)).mask_logits_BKHW
            return logits_BKHW.argmax(1).cpu()

    return segmenter
