"""Networks and slices in, scores per image and per patient out; summed up they may leave the site.

Keys are `<state>.<metric>`; the state is that of the image the metric was taken on: clean, degraded or enhanced.

    psnr_db, ssim, rmse           per image, degraded and enhanced; with `_region` inside the true foreground
    dice, dice.<mask name>        per image with a mask; conventions in shared.recognise.metrics
    jaccard, precision, recall    likewise, as mask_ssim: SSIM between the predicted and the true map of a class
    hd_mm, ahd_mm, hd95_mm        likewise, if asked for; see shared.recognise.surfaces; `_px` where no spacing is known
    missed                        with them: share of an image's classes that have no distance
    accuracy                      per patient with a diagnosis, 0 or 1
    auc, f1, f1.<diagnosis name>  one value per site: sites' values can only be averaged, not pooled

Enhanced images are clamped to [0, 1] before anything looks at them, as they are when they are written to DICOM.

An image is judged once. Without an enhancer (enhance=none) the enhanced image is the degraded one: what is recognised
in it stands under `enhanced`, how it differs from the clean one under `degraded`. Without a degradation either
(degrade=none) there is one image, and all that there is stands under `enhanced`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.batches import evaluation_batches
from client.dataset import Slices
from client.reading import BATCH_SIZE, Values, images_of, reading, recognised
from shared.batch import Batch
from shared.config import CampaignConfig, MachineConfig
from shared.images.quality import psnr_db_B, rmse_B, ssim_B
from shared.metrics import moments, one_per_test
from shared.networks import Networks
from shared.recognise.metrics import correct_P, mask_ssim_BK, mean_over_classes, of_all_patients, overlaps, per_patient
from shared.recognise.surfaces import missed_B, surface_distances
from shared.types import Metrics

STATES = ("clean", "degraded", "enhanced")
_UNITS = ("_mm", "_px")


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Everything that evaluation measured; stays at the site."""

    values: Mapping[str, Values]
    """Per image (in the order of `identity`, NaN where undefined) or per patient; `auc` and `f1` hold one."""
    identity: tuple[str, ...]
    """Of each image: which picture belongs to which value."""
    patients: Mapping[str, tuple[Values, npt.NDArray[np.int64]]] = field(default_factory=dict)
    """State -> (probabilities_PN, diagnosis_P) of the patients with a diagnosis: what AUC and F1 over several sites
    need, in a simulation that may hold them together."""


def evaluate(
    networks: Networks, slices: Slices, campaign: CampaignConfig, machine: MachineConfig, *, surfaces: bool = False
) -> Scores:
    """Judge both networks on every slice; weights and modes are as before when it returns.

    `surfaces`: distances between outlines too, some 1 ms per image, class and state.
    """
    columns: dict[str, list[Tensor]] = {}
    spacings = torch.split(_spacing_N2(slices, campaign), BATCH_SIZE) if surfaces else itertools.repeat(None)
    with reading(networks, machine) as device, torch.inference_mode():
        for batch, spacing_B2 in zip(evaluation_batches(slices, campaign, BATCH_SIZE), spacings, strict=False):
            moved = batch.to(device, channels_last=machine.channels_last)
            for key, value in _batch_scores(networks, moved, campaign, machine, spacing_B2).items():
                columns.setdefault(key, []).append(value.cpu())
    values = {key: torch.cat(parts).double().numpy() for key, parts in columns.items()}
    images = {key: value for key, value in values.items() if not key.endswith(".probabilities")}
    if surfaces:  # every image of a store has a spacing, or none has
        images = {key: value for key, value in images.items() if not key.endswith(_UNITS) or np.isfinite(value).any()}
    patients = _patients(values, slices)
    return Scores({**images, **_patient_scores(patients, campaign.diagnoses)}, slices.identity, patients)


def summarise(scores: Scores) -> Metrics:
    """Moments of every key, with quantiles where there is more than one value of a whole test: what a site reports."""
    figures = {key: moments(values) for key, values in scores.values.items()}
    return {
        key: replace(figure, quantiles=()) if one_per_test(key.partition(".")[2]) else figure
        for key, figure in figures.items()
    }


def judged_states(campaign: CampaignConfig) -> tuple[str, ...]:
    """The states that are different images: what recognition is judged on."""
    degraded, enhanced = campaign.degrade.kind != "none", campaign.enhance.kind != "none"
    there = (degraded or enhanced, degraded and enhanced, True)
    return tuple(state for state, judged in zip(STATES, there, strict=True) if judged)


def _batch_scores(
    networks: Networks, batch: Batch, campaign: CampaignConfig, machine: MachineConfig, spacing_B2: Tensor | None
) -> dict[str, Tensor]:
    images = images_of(networks, batch, machine)
    scores = _quality_scores(images, batch, campaign)
    for state in judged_states(campaign):
        recognition = recognised(networks.recogniser, images[state], machine)
        if recognition.mask_logits_BKHW is not None:
            found = _mask_scores(recognition.mask_logits_BKHW, batch, campaign.masks, spacing_B2)
            scores.update({f"{state}.{name}": values for name, values in found.items()})
        if recognition.diagnosis_logits_BN is not None:
            scores[f"{state}.probabilities"] = recognition.diagnosis_logits_BN.double().softmax(1)
    return scores


def _quality_scores(images: Mapping[str, Tensor], batch: Batch, campaign: CampaignConfig) -> dict[str, Tensor]:
    """How what was made of the clean image differs from it; nothing for a state that nothing was done for."""
    scores: dict[str, Tensor] = {}
    region_BHW = batch.mask_BHW > 0
    for state, kind in (("degraded", campaign.degrade.kind), ("enhanced", campaign.enhance.kind)):
        if kind == "none":
            continue
        for name, metric in (("psnr_db", psnr_db_B), ("ssim", ssim_B), ("rmse", rmse_B)):
            scores[f"{state}.{name}"] = metric(batch.clean_BCHW, images[state])
            if campaign.data.masks:
                scores[f"{state}.{name}_region"] = metric(batch.clean_BCHW, images[state], region_BHW)
    return scores


def _mask_scores(
    logits_BKHW: Tensor, batch: Batch, names: Sequence[str], spacing_B2: Tensor | None
) -> dict[str, Tensor]:
    has_mask_B11 = batch.has_mask_B[:, None, None]
    # Without a mask nothing was there and nothing was found: no class has a score.
    predicted_BHW, truth_BHW = logits_BKHW.argmax(1) * has_mask_B11, batch.mask_BHW * has_mask_B11
    of_classes = overlaps(predicted_BHW, truth_BHW, len(names))
    of_classes["mask_ssim"] = mask_ssim_BK(predicted_BHW, truth_BHW, len(names))
    dice_by_class = {
        f"dice.{name.replace(' ', '_')}": of_classes["dice"][:, column] for column, name in enumerate(names)
    }
    if spacing_B2 is None:
        return {**_means(of_classes), **dice_by_class}
    of_classes |= _distances(predicted_BHW, truth_BHW, len(names), spacing_B2)
    return {**_means(of_classes), **dice_by_class, "missed": missed_B(predicted_BHW, truth_BHW, len(names))}


def _means(of_classes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(mean_over_classes(scores_BK.double().cpu().numpy()))
        for name, scores_BK in of_classes.items()
    }


def _distances(predicted_BHW: Tensor, truth_BHW: Tensor, num_masks: int, spacing_B2: Tensor) -> dict[str, Tensor]:
    """In mm for images whose spacing is known, else in pixels: NaN under the unit that an image does not have."""
    known_B1 = (spacing_B2 > 0).all(1, keepdim=True)
    units_B2 = torch.where(known_B1, spacing_B2, 1.0)
    distances: dict[str, Tensor] = {}
    for name, values_BK in surface_distances(predicted_BHW, truth_BHW, num_masks, units_B2).items():
        distances[f"{name}_mm"] = values_BK.masked_fill(~known_B1, torch.nan)
        distances[f"{name}_px"] = values_BK.masked_fill(known_B1, torch.nan)
    return distances


def _spacing_N2(slices: Slices, campaign: CampaignConfig) -> Tensor:
    """Row and column spacing of each slice in mm, 0 where it is not known."""
    agreed = campaign.data.ingest.spacing_mm
    if agreed is not None:
        return torch.tensor(agreed[1:]).expand(len(slices), 2)
    return torch.zeros(len(slices), 2) if slices.spacing_N2 is None else slices.spacing_N2


def _patients(values: Mapping[str, Values], slices: Slices) -> dict[str, tuple[Values, npt.NDArray[np.int64]]]:
    patient_N, diagnosis_N = slices.patient_N.numpy(), slices.diagnosis_N.numpy()
    return {
        state: per_patient(values[f"{state}.probabilities"], patient_N, diagnosis_N)
        for state in STATES
        if f"{state}.probabilities" in values
    }


def _patient_scores(
    patients: Mapping[str, tuple[Values, npt.NDArray[np.int64]]], names: Sequence[str]
) -> dict[str, Values]:
    scores: dict[str, Values] = {}
    for state, (probabilities_PN, diagnosis_P) in patients.items():
        scores[f"{state}.accuracy"] = correct_P(probabilities_PN, diagnosis_P)
        for name, value in of_all_patients(probabilities_PN, diagnosis_P, names).items():
            scores[f"{state}.{name}"] = np.array([value])
    return scores
