"""Synthetic images in, which of them may be used out, and figures for the report: copies, and what missed its mask.

Copies: client/generate/copies.py. Too near in more than `draw.memorised_share` of the images: the generator is refused.
What missed its mask (draw.keep < 1): client/generate/agreement.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from client.dataset import Slices
from client.generate.agreement import Segmenter, by_quality
from client.generate.asks import Asks
from client.generate.copies import Nearness, nearness
from shared.config import CampaignConfig, MachineConfig


def guarded(
    image_SCHW: Tensor,
    asks: Asks,
    train: Slices,
    campaign: CampaignConfig,
    machine: MachineConfig,
    *,
    site: str,
    segmenter: Segmenter | None = None,
    held_out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """(used_S bool, report). `held_out`: images drawn from held-out slices, and the images of those slices."""
    draw = campaign.generate.draw
    near_S = torch.zeros(len(asks), dtype=torch.bool)
    copies: dict[str, Any] = {}
    if len(asks):
        found = nearness(image_SCHW, train, held_out)
        near_S, copies = found.near_S, _figures(found)
    share = float(near_S.float().mean()) if len(near_S) else 0.0
    kept_S, quality = by_quality(image_SCHW, asks, train, campaign, machine, ~near_S, site, segmenter)
    refused = share > draw.memorised_share
    return kept_S, {
        **_counts(asks, kept_S, campaign),
        **quality,
        "memorised_share": share,
        "memorised_limit": draw.memorised_share,
        "nearness": copies,
        "refused": refused,
        "reason": _reason(share, draw.memorised_share) if refused else None,
    }


def _reason(share: float, limit: float) -> str:
    return (
        f"{share:.1%} of the synthetic images are copies of training images, expected at most {limit:.1%} "
        "(generate.draw.memorised_share): the generator has memorised; train it for fewer rounds or on more patients, "
        "or draw with other edges or a lower guidance"
    )


def _counts(asks: Asks, kept_S: Tensor, campaign: CampaignConfig) -> dict[str, Any]:
    """Per diagnosis (`unknown` where there is none): asked for, of these over another diagnosis' mask, and used."""
    names = dict(enumerate(campaign.data.diagnoses)) | {-1: "unknown"}
    rows = {}
    for code, name in sorted(names.items()):
        of_code_S = asks.diagnosis_S == code
        if of_code_S.any():
            rows[name] = {
                "asked": int(of_code_S.sum()),
                "relabelled": int((of_code_S & asks.relabelled_S).sum()),
                "used": int((of_code_S & kept_S).sum()),
            }
    return {"images": int(kept_S.sum()), "asked": len(asks), "classes": rows}


def _figures(found: Nearness) -> dict[str, Any]:
    real_N = found.real_distance_N[found.real_distance_N.isfinite()]
    return {
        "too_near": int(found.near_S.sum()),
        "too_near_moved": int(found.moved_S.sum()),
        "floor": found.floor,
        "ratio_median": _median(found.ratio_S),
        "ratio_smallest": float(found.ratio_S.min()),
        "held_out_images": len(found.held_out_ratio_M),
        "held_out_ratio_median": _median(found.held_out_ratio_M),
        "membership_auc": found.auc,
        "distance_median": _median(found.distance_S),
        "real_distance_median": _median(real_N),
    }


def _median(values_N: Tensor) -> float | None:
    return float(values_N.median()) if len(values_N) else None
