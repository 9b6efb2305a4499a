"""Synthetic images and training slices in, which images are copies out.

A hint holds the edges and the mask of its slice, so what is drawn is near that slice also where nothing was
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

What was moved is a copy too: the same for x mirrored, or shifted by up to SHIFT_PX pixels each way, though never as it
is, at the nearest of all these ways, with a floor of its own from x' that are moved alike. What only follows its hint
lies better as it is than moved, and that floor says by how much. Larger shifts, rotations, scalings and blur are not
looked for; without held-out patients none of these are.

Too near in more than `draw.memorised_share` of the images: the generator is refused. `membership_auc` is the share of
pairs in which the image of training is the nearer one: 0.5 where training leaves no trace, 1 where it shows in each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from client.dataset import Slices

NEIGHBOURS = 50
COPY = 0.5
"""Below this share of the ratio that images have which cannot be copies, an image is one: 6 dB."""
SHIFT_PX = 2
FEWEST_HELD_OUT = 4
"""Images; the median of fewer says little."""
_CHUNK = 256


@dataclass(frozen=True, slots=True, eq=False)
class Nearness:
    """What was found about copies; S images, M held-out ones."""

    near_S: Tensor
    """bool."""
    moved_S: Tensor
    """bool: too near once mirrored or shifted; these are among `near_S`."""
    ratio_S: Tensor
    held_out_ratio_M: Tensor
    floor: float
    auc: float | None
    """None without held-out images."""
    distance_S: Tensor
    real_distance_N: Tensor
    """Of each training image to the nearest one of another patient; inf where there is none."""


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
    moved_S = torch.zeros_like(near_S)
    if held_out is not None and len(held_out_ratio_M) >= FEWEST_HELD_OUT:
        moved_S = _moved_copies(image_SCHW, train, real_N, neighbours, held_out)
    return Nearness(near_S | moved_S, moved_S, ratio_S, held_out_ratio_M, floor, area, distance_S, real_N)


def _moved_copies(
    image_SCHW: Tensor, train: Slices, real_N: Tensor, neighbours: int, held_out: tuple[Tensor, Tensor]
) -> Tensor:
    """bool (S,): copies that were mirrored or shifted."""
    known_ND, patient_N = standardised(train.clean_NCHW), train.patient_N
    distance_S, nearest_S = nearest_moved(image_SCHW, known_ND)
    ratio_S = distance_S / around(standardised(image_SCHW), known_ND, neighbours, patient_N, patient_N[nearest_S])
    apart_M, _ = nearest_moved(held_out[0], standardised(held_out[1]))
    usual_M = apart_M / around(standardised(held_out[0]), known_ND, neighbours)
    return (ratio_S < COPY * min(float(usual_M.median()), 1.0)) & (distance_S < real_N[nearest_S])


def nearest_moved(image_SCHW: Tensor, known_ND: Tensor) -> tuple[Tensor, Tensor]:
    """(distance_S, index_S) of the known row nearest to each image when it is mirrored or shifted, over all ways."""
    found = [nearest(standardised(moved_SCHW), known_ND) for moved_SCHW in _moved(image_SCHW)]
    distance_S, way_S = torch.stack([distance for distance, _ in found]).min(0)
    return distance_S, torch.stack([index for _, index in found]).gather(0, way_S[None])[0]


def _moved(image_SCHW: Tensor) -> Iterator[Tensor]:
    """Every shift by whole pixels, as it is and mirrored, without the one that is no change; edges are repeated."""
    height, width = image_SCHW.shape[-2:]
    for mirrored in (False, True):
        seen_SCHW = image_SCHW.flip(-1) if mirrored else image_SCHW
        wide_SCHW = F.pad(seen_SCHW.float(), (SHIFT_PX,) * 4, mode="replicate")
        for down, right in product(range(2 * SHIFT_PX + 1), repeat=2):
            if mirrored or (down, right) != (SHIFT_PX, SHIFT_PX):
                yield wide_SCHW[..., down : down + height, right : right + width]


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
