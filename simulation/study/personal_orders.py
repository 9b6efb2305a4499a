"""Networks and test slices of the new scanner in, what only repeated acquisitions tell out.

    lesion_bias    100 (mean_r mu_r - T) / T in percent: mu_r the mean of the enhanced lesion in acquisition r, T its
                   true mean; the mean over slices that show the last mask class
    noise_cov      100 (1/N) sum_j sigma_j / mean, in percent: sigma_j the standard deviation of pixel j of the first
                   mask class (the organ) over the acquisitions; the mean over slices that show it

Both as in Chen, Asma, Chan, MICCAI 2021 (https://arxiv.org/abs/2109.14729), with their ten acquisitions; intensities
are those of the campaign's scale, 0 to 1. `adapted_to_each` adapts online: to one study at a time, from two
acquisitions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from client.batches import evaluation_batches
from client.dataset import Slices
from client.evaluate import evaluate
from client.reading import BATCH_SIZE, images_of, reading, taken
from client.train.adapt import adapt_online
from shared.config import CampaignConfig, MachineConfig
from shared.images.quality import psnr_db_B, rmse_B, ssim_B
from shared.networks import Networks
from shared.seeding import derived_seed
from simulation.rows import metrics_of
from simulation.study.cell import Say
from simulation.study.grid import Cell
from simulation.study.personal_release import Hospitals, campaign_of_new, degraded, planned_of

ACQUISITIONS = 10
MOST_STUDIES = 4
"""Studies that a cell adapts to online, each on its own."""
MOST_OLD = 64
"""Slices of the old scanners that each adapted network is judged on."""
_LEAST = 4
"""Pixels of a structure, for its mean to say anything."""


def orders_of(
    networks: Networks, slices: Slices, campaign: CampaignConfig, machine: MachineConfig
) -> dict[str, dict[str, float]]:
    """Setting of a row -> figures; those are left out for which no slice shows the structure."""
    images: dict[str, list[Tensor]] = {"degraded": [], "personalised": []}
    for number in range(ACQUISITIONS):
        again = acquired_again(campaign, number)
        seen = _images(networks, slices, again, machine)
        images["degraded"].append(seen["degraded"])
        images["personalised"].append(seen["enhanced"])
    lesion_NHW, organ_NHW = slices.mask_NHW == len(campaign.masks), slices.mask_NHW == 1
    found = {}
    for setting, each in images.items():
        image_RNHW = torch.stack(each)[:, :, 0].double()
        bias = lesion_bias(image_RNHW, slices.clean_NCHW[:, 0].double(), lesion_NHW)
        figures = {"lesion_bias": bias, "noise_cov": noise_cov(image_RNHW, organ_NHW)}
        found[setting] = {key: value for key, value in figures.items() if np.isfinite(value)}
    return found


def acquired_again(campaign: CampaignConfig, number: int) -> CampaignConfig:
    """The campaign whose evaluation degradations are another, independent draw."""
    return replace(campaign, seed=derived_seed(campaign.seed, "acquisition", number))


def lesion_bias(image_RNHW: Tensor, clean_NHW: Tensor, region_NHW: Tensor) -> float:
    """In percent; NaN where no slice shows the region in four pixels or more."""
    values = []
    for place in _shown(region_NHW):
        region_HW = region_NHW[place]
        truth = float(clean_NHW[place][region_HW].mean())
        if truth > 0:
            values.append(100 * (float(image_RNHW[:, place, region_HW].mean()) - truth) / truth)
    return float(np.mean(values)) if values else float("nan")


def noise_cov(image_RNHW: Tensor, region_NHW: Tensor) -> float:
    """In percent; NaN where no slice shows the region in four pixels or more."""
    values = []
    for place in _shown(region_NHW):
        pixel_RP = image_RNHW[:, place, region_NHW[place]]
        middle = float(pixel_RP.mean())
        if middle > 0:
            values.append(100 * float(pixel_RP.std(dim=0).mean()) / middle)
    return float(np.mean(values)) if values else float("nan")


def _shown(region_NHW: Tensor) -> list[int]:
    return torch.nonzero(region_NHW.flatten(1).sum(1) >= _LEAST)[:, 0].tolist()


def _images(networks: Networks, slices: Slices, campaign: CampaignConfig, machine: MachineConfig) -> dict[str, Tensor]:
    """degraded and enhanced (N, C, H, W) on the CPU."""
    parts: dict[str, list[Tensor]] = {"degraded": [], "enhanced": []}
    with reading(networks, machine) as device, torch.inference_mode():
        for batch in evaluation_batches(slices, campaign, BATCH_SIZE):
            images = images_of(networks, batch.to(device, channels_last=machine.channels_last), machine)
            for state, of_state in parts.items():
                of_state.append(images[state].cpu())
    return {state: torch.cat(of_state) for state, of_state in parts.items()}


# --------------------------------------------------------------------------------------------------------------- online


@dataclass(frozen=True, slots=True)
class Online:
    """Domain -> setting -> figures, means over the studies; domain -> slices that were judged."""

    figures: Mapping[str, Mapping[str, Mapping[str, float]]]
    slices: Mapping[str, int]


def adapted_to_each(cell: Cell, release: Networks, hospitals: Hospitals, machine: MachineConfig, say: Say) -> Online:
    """The first test studies of the new scanner, acquired twice: adapted to from both (none: not at all), then judged
    on both against the clean image."""
    campaign, personal, test = campaign_of_new(cell), planned_of(cell), hospitals.new.test
    old = hospitals.old.together.test
    places = torch.linspace(0, len(old) - 1, min(MOST_OLD, len(old))).round().long()
    old = taken(old, places.tolist())
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    count = 0
    patients = sorted(set(test.patient_N.tolist()))[:MOST_STUDIES]
    for number, patient in enumerate(patients, start=1):
        say(f"online: study {number} of {len(patients)}")
        study = taken(test, torch.nonzero(test.patient_N == patient)[:, 0].tolist())
        twice = [acquired_again(campaign, each) for each in range(2)]
        networks = release
        if personal.adapt.method != "none":
            first, second = (degraded(study, each) for each in twice)
            networks, _ = adapt_online(release, first, second, campaign, personal.adapt, machine)
        for state, figures in _of_study(networks, study, twice, machine).items():
            found.setdefault(("new", state), []).append(figures)
        values = evaluate(networks, old, cell.config.campaign, machine).values
        for state, setting in (("degraded", "degraded"), ("enhanced", "personalised")):
            kept = {key: value for key, value in metrics_of([values], state).items() if key in _QUALITY}
            found.setdefault(("old", setting), []).append(kept)
        count += len(study)
    means: dict[str, dict[str, dict[str, float]]] = {"new": {}, "old": {}}
    for (domain, setting), each in found.items():
        means[domain][setting] = {key: float(np.mean([one[key] for one in each])) for key in each[0]}
    return Online(means, {"new": count, "old": len(old)})


_QUALITY = ("psnr_db", "ssim", "rmse")


def _of_study(
    networks: Networks, study: Slices, twice: list[CampaignConfig], machine: MachineConfig
) -> dict[str, dict[str, float]]:
    """Means over the slices of both acquisitions."""
    found: dict[str, dict[str, float]] = {}
    images = [_images(networks, study, each, machine) for each in twice]
    for state, setting in (("degraded", "degraded"), ("enhanced", "personalised")):
        image_NCHW = torch.cat([each[state] for each in images])
        clean_NCHW = torch.cat([study.clean_NCHW] * 2)
        measures = {"psnr_db": psnr_db_B, "ssim": ssim_B, "rmse": rmse_B}
        found[setting] = {name: float(measure(clean_NCHW, image_NCHW).mean()) for name, measure in measures.items()}
    return found
