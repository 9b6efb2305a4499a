"""Synthetic images in, which of them may be used out, and figures for the report: copies, and what missed its mask.

Copies. A hint holds the edges and the mask of its slice, so what is drawn is near that slice also where nothing was
memorised. What a copy is must therefore be measured against images of patients whom the generator has never seen:
drawn from their hints in the same way, they show how near the hint alone leads. For an image drawn, x:

    d(x, y)   root mean square difference of two images at half resolution, each with mean 0 and standard deviation 1:
              brightness and contrast do not hide a copy, and noise that no autoencoder keeps does not either
    r(x)      d to the nearest training image / mean d to the 50 nearest training images of other patients
    r'(x')    the same for x' drawn from a held-out slice, with d to the nearest held-out image above the line
    floor     half of the median r'; without held-out patients half of the median r of the training images themselves,
              each without its own patient's

x is too near where r(x) is below the floor, and x is nearer to the training image than the images of other patients
are. The ratio and its half are those by which Carlini et al. look for copies (https://arxiv.org/abs/2301.13188, l2
relative to the mean of the 50 nearest, alpha = 0.5); what they take 1 for is measured here, since hints, and patients
who lie alike in a scanner, lead nearer than prompts do.
Too near in more than `draw.memorised_share` of the images: the generator is refused. `membership_auc` is the share of
pairs in which the image of training is the nearer one: 0.5 where training leaves no trace, 1 where it shows in each.

What missed its mask (draw.keep < 1). Dice of a segmenter that learnt on the site's real images, against the mask that
the image inherits; and correlation of the image's edges with the outlines of that mask. Ours; nothing is published.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from client.dataset import Slices
from client.generate.asks import Asks
from shared.config import (
    AugmentConfig,
    CampaignConfig,
    DegradeConfig,
    EnhancerConfig,
    GenerateConfig,
    LearnConfig,
    MachineConfig,
    ObjectiveConfig,
    RecogniserConfig,
    RoundsConfig,
    SelfRegConfig,
    StrategyConfig,
    TrainingConfig,
)
from shared.generate.edges import gaussian_edges
from shared.recognise.metrics import dice_BK

Segmenter = Callable[[Tensor], Tensor]
"""image_BCHW in [0, 1] -> codes_BHW of the campaign's masks."""

NEIGHBOURS = 50
COPY = 0.5
"""Below this share of the ratio that images have which cannot be copies, an image is one: 6 dB."""
FEWEST_HELD_OUT = 4
"""Images; the median of fewer says little."""
SEGMENTER_STEPS = 200
_CHUNK = 256


@dataclass(frozen=True, slots=True, eq=False)
class Nearness:
    """What was found about copies; S images, M held-out ones."""

    near_S: Tensor
    """bool."""
    ratio_S: Tensor
    held_out_ratio_M: Tensor
    floor: float
    auc: float | None
    """None without held-out images."""
    distance_S: Tensor
    real_distance_N: Tensor
    """Of each training image to the nearest one of another patient; inf where there is none."""


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
    kept_S, quality = _by_quality(image_SCHW, asks, train, campaign, machine, ~near_S, site, segmenter)
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


# ------------------------------------------------------------------------------------------- copies


def nearness(image_SCHW: Tensor, train: Slices, held_out: tuple[Tensor, Tensor] | None = None) -> Nearness:
    """Which images are too near to training images. `held_out`: images drawn from held-out slices, and those slices."""
    known_ND, patient_N = standardised(train.clean_NCHW), train.patient_N
    _, counts = torch.unique(patient_N, return_counts=True)
    neighbours = min(NEIGHBOURS, len(train) - int(counts.max()))
    drawn_SD = standardised(image_SCHW)
    distance_S, nearest_S = nearest(drawn_SD, known_ND)
    ratio_S = distance_S / around(drawn_SD, known_ND, neighbours, patient_N, patient_N[nearest_S])
    real_N = between_patients(known_ND, patient_N)
    usual_N = real_N / around(known_ND, known_ND, neighbours, patient_N, patient_N)
    held_out_ratio_M, area = usual_N[:0], None
    if held_out is not None:
        apart_MD, theirs_D = standardised(held_out[0]), standardised(held_out[1])
        held_out_ratio_M = nearest(apart_MD, theirs_D)[0] / around(apart_MD, known_ND, neighbours)
        area = nearer(ratio_S, held_out_ratio_M)
        if len(held_out_ratio_M) >= FEWEST_HELD_OUT:
            usual_N = held_out_ratio_M
    floor = COPY * min(float(usual_N.median()), 1.0)
    near_S = (ratio_S < floor) & (distance_S < real_N[nearest_S])
    return Nearness(near_S, ratio_S, held_out_ratio_M, floor, area, distance_S, real_N)


def standardised(image_NCHW: Tensor) -> Tensor:
    """(N, D) at half resolution with mean 0 and standard deviation 1, such that the Euclidean distance of two rows is
    the root mean square of their difference; a constant image is 0."""
    half_ND = F.avg_pool2d(image_NCHW.float(), 2).flatten(1)
    half_ND = half_ND - half_ND.mean(1, keepdim=True)
    spread_N1 = half_ND.square().mean(1, keepdim=True).sqrt()
    return half_ND / spread_N1.clamp(min=1e-3) / math.sqrt(half_ND.shape[1])


def nearest(rows_SD: Tensor, known_ND: Tensor) -> tuple[Tensor, Tensor]:
    """(distance_S, index_S) of each row's nearest known one."""
    found = [torch.cdist(chunk, known_ND).min(1) for chunk in torch.split(rows_SD, _CHUNK)]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def around(
    rows_SD: Tensor, known_ND: Tensor, neighbours: int, patient_N: Tensor | None = None, patient_S: Tensor | None = None
) -> Tensor:
    """(S,) mean distance to the `neighbours` nearest known rows, those of the patient of each row left out.

    Without anybody else: sqrt(2), the distance of two images that have nothing to do with one another.
    """
    if neighbours < 1:
        return torch.full((len(rows_SD),), math.sqrt(2))
    means = []
    for start in range(0, len(rows_SD), _CHUNK):
        distance_BN = torch.cdist(rows_SD[start : start + _CHUNK], known_ND)
        if patient_N is not None and patient_S is not None:
            distance_BN[patient_S[start : start + _CHUNK, None] == patient_N] = torch.inf
        means.append(distance_BN.topk(neighbours, largest=False).values.mean(1))
    return torch.cat(means).clamp(min=1e-6)


def between_patients(known_ND: Tensor, patient_N: Tensor) -> Tensor:
    """(N,) distance of each image to the nearest one of another patient."""
    rows = []
    for start in range(0, len(known_ND), _CHUNK):
        distance_BN = torch.cdist(known_ND[start : start + _CHUNK], known_ND)
        distance_BN[patient_N[start : start + _CHUNK, None] == patient_N] = torch.inf
        rows.append(distance_BN.min(1).values)
    return torch.cat(rows)


def nearer(ratio_S: Tensor, held_out_M: Tensor) -> float:
    """Share of pairs in which the first is the smaller one, ties half: the area under the curve of the membership test,
    1 - p of Mann and Whitney's statistic."""
    order_M = held_out_M.sort().values
    above_S = len(order_M) - torch.searchsorted(order_M, ratio_S.contiguous(), right=True)
    level_S = len(order_M) - torch.searchsorted(order_M, ratio_S.contiguous()) - above_S
    return float((above_S.double() + level_S.double() / 2).mean() / len(order_M))


def _figures(found: Nearness) -> dict[str, Any]:
    real_N = found.real_distance_N[found.real_distance_N.isfinite()]
    return {
        "too_near": int(found.near_S.sum()),
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


# ------------------------------------------------------------------------------------------- quality


def _by_quality(
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

    alone = replace(
        campaign,
        data=replace(campaign.data, diagnoses=(), labels=None),
        degrade=DegradeConfig(kind="none"),
        enhance=EnhancerConfig(kind="none"),
        recognise=RecogniserConfig(kind="unet", channels=16, depth=3),
        objective=ObjectiveConfig(kind="plain"),
        training=TrainingConfig(batch_size=8, local_steps=steps),
        strategy=StrategyConfig(kind="fedavg"),
        rounds=RoundsConfig(rounds=1),
        learn=LearnConfig(),
        selfreg=SelfRegConfig(),
        generate=GenerateConfig(),
        augment=AugmentConfig(),
    )
    networks = build_networks(alone)
    real = replace(train, synthetic=None)
    train_round(networks, real, alone, machine, site=f"{site}/segmenter", round=1, steps=steps)
    recogniser = networks.recogniser.eval()
    device = next(recogniser.parameters()).device

    def segmenter(image_BCHW: Tensor) -> Tensor:
        with torch.inference_mode():
            logits_BKHW: Tensor = recogniser(image_BCHW.to(device)).mask_logits_BKHW
            return logits_BKHW.argmax(1).cpu()

    return segmenter
