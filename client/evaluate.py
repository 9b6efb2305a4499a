"""Networks and slices in, scores per image and per patient out; summed up they may leave the site.

Keys are `<state>.<metric>`; the state is that of the image the metric was taken on: clean, degraded or enhanced.

    psnr_db, ssim, rmse           per image, degraded and enhanced; with `_region` inside the true foreground
    dice, dice.<mask name>        per image with a mask; conventions in shared.recognise.metrics
    accuracy                      per patient with a diagnosis, 0 or 1
    auc                           one value per site: sites' AUCs can only be averaged, not pooled

Enhanced images are clamped to [0, 1] before anything looks at them, as they are when they are written to DICOM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.batches import evaluation_batch, evaluation_batches
from client.dataset import Slices
from shared.batch import Batch
from shared.config import CampaignConfig, MachineConfig
from shared.enhance.consistency import enhanced_image
from shared.images.quality import psnr_db_B, rmse_B, ssim_B
from shared.metrics import moments
from shared.networks import Networks, placed
from shared.recognise.metrics import auc, correct_P, dice_BK, mean_over_classes, per_patient
from shared.types import Metrics

BATCH_SIZE = 32

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Everything that evaluation measured; stays at the site."""

    values: Mapping[str, Values]
    """Per image (in the order of `identity`, NaN where undefined) or per patient; `auc` holds one value."""
    identity: tuple[str, ...]
    """Of each image: which picture belongs to which value."""
    patients: Mapping[str, tuple[Values, npt.NDArray[np.int64]]] = field(default_factory=dict)
    """State -> (probabilities_PN, diagnosis_P) of the patients with a diagnosis: what an AUC over several sites needs,
    in a simulation that may hold them together."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Pictures: what a few slices look like before and after, and what the recogniser finds in them."""

    clean_NCHW: Tensor
    degraded_NCHW: Tensor
    enhanced_NCHW: Tensor
    mask_NHW: Tensor
    has_mask_N: Tensor
    found_NHW: Mapping[str, Tensor]
    """Predicted mask codes on the clean, degraded and enhanced image; empty for a campaign without masks."""
    identity: tuple[str, ...]


def evaluate(networks: Networks, slices: Slices, campaign: CampaignConfig, machine: MachineConfig) -> Scores:
    """Judge both networks on every slice; weights and modes are as before when it returns."""
    columns: dict[str, list[Tensor]] = {}
    with _judging(networks, machine) as device:
        for batch in evaluation_batches(slices, campaign, BATCH_SIZE):
            moved = batch.to(device, channels_last=machine.channels_last)
            for key, value in _batch_scores(networks, moved, campaign, machine).items():
                columns.setdefault(key, []).append(value.cpu())
    values = {key: torch.cat(parts).double().numpy() for key, parts in columns.items()}
    images = {key: value for key, value in values.items() if not key.endswith(".probabilities")}
    patients = _patients(values, slices) if campaign.data.diagnoses else {}
    return Scores({**images, **_patient_scores(patients)}, slices.identity, patients)


def summarise(scores: Scores) -> Metrics:
    """Moments and quantiles of every key: what a site reports."""
    return {key: moments(values) for key, values in scores.values.items()}


def predict(
    networks: Networks, slices: Slices, indices: Sequence[int], campaign: CampaignConfig, machine: MachineConfig
) -> Prediction:
    """Enhanced images and predicted masks of the given slices, with the degradation that `evaluate` uses."""
    with _judging(networks, machine) as device:
        batch = evaluation_batch(slices, campaign, torch.tensor(list(indices), dtype=torch.int64))
        states = _states(networks, batch.to(device, channels_last=machine.channels_last), machine)
        found = {}
        if campaign.data.masks:
            for state, image_BCHW in states.items():
                logits_BKHW, _ = _recognised(networks, image_BCHW, machine)
                assert logits_BKHW is not None
                found[state] = logits_BKHW.argmax(1).byte().cpu()
    return Prediction(
        clean_NCHW=batch.clean_BCHW,
        degraded_NCHW=batch.degraded_BCHW,
        enhanced_NCHW=states["enhanced"].float().cpu(),
        mask_NHW=batch.mask_BHW.byte(),
        has_mask_N=batch.has_mask_B,
        found_NHW=found,
        identity=tuple(slices.identity[index] for index in indices),
    )


@contextmanager
def _judging(networks: Networks, machine: MachineConfig) -> Iterator[torch.device]:
    """Inference on the machine's device; afterwards each network is in the mode that it was in."""
    device = placed(networks, machine)
    modes = [(network, network.training) for network in (networks.enhancer, networks.recogniser)]
    try:
        for network, _ in modes:
            network.eval()
        with torch.inference_mode():
            yield device
    finally:
        for network, training in modes:
            network.train(training)


def _states(networks: Networks, batch: Batch, machine: MachineConfig) -> dict[str, Tensor]:
    with _autocast(batch.clean_BCHW, machine):
        enhanced_BCHW = enhanced_image(networks.enhancer, batch).float().clamp(0, 1)
    return {"clean": batch.clean_BCHW, "degraded": batch.degraded_BCHW, "enhanced": enhanced_BCHW}


def _recognised(networks: Networks, image_BCHW: Tensor, machine: MachineConfig) -> tuple[Tensor | None, Tensor | None]:
    with _autocast(image_BCHW, machine):
        mask_logits_BKHW, diagnosis_logits_BN, _ = networks.recogniser(image_BCHW)
    return mask_logits_BKHW, diagnosis_logits_BN


def _autocast(tensor: Tensor, machine: MachineConfig) -> torch.autocast:
    return torch.autocast(tensor.device.type, torch.bfloat16, enabled=machine.precision == "bfloat16")


def _batch_scores(
    networks: Networks, batch: Batch, campaign: CampaignConfig, machine: MachineConfig
) -> dict[str, Tensor]:
    scores: dict[str, Tensor] = {}
    region_BHW = batch.mask_BHW > 0
    for state, image_BCHW in _states(networks, batch, machine).items():
        if state != "clean":
            for name, metric in (("psnr_db", psnr_db_B), ("ssim", ssim_B), ("rmse", rmse_B)):
                scores[f"{state}.{name}"] = metric(batch.clean_BCHW, image_BCHW)
                if campaign.data.masks:
                    scores[f"{state}.{name}_region"] = metric(batch.clean_BCHW, image_BCHW, region_BHW)
        mask_logits_BKHW, diagnosis_logits_BN = _recognised(networks, image_BCHW, machine)
        if mask_logits_BKHW is not None:
            scores.update(_dice_scores(state, mask_logits_BKHW, batch, campaign.data.masks))
        if diagnosis_logits_BN is not None:
            scores[f"{state}.probabilities"] = diagnosis_logits_BN.double().softmax(1)
    return scores


def _dice_scores(state: str, logits_BKHW: Tensor, batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
    dice_of_classes_BK = dice_BK(logits_BKHW.argmax(1), batch.mask_BHW, len(names))
    dice_of_classes_BK[~batch.has_mask_B] = torch.nan
    mean_B = torch.from_numpy(mean_over_classes(dice_of_classes_BK.double().cpu().numpy()))
    scores = {f"{state}.dice": mean_B}
    for column, name in enumerate(names):
        scores[f"{state}.dice.{name.replace(' ', '_')}"] = dice_of_classes_BK[:, column]
    return scores


def _patients(values: Mapping[str, Values], slices: Slices) -> dict[str, tuple[Values, npt.NDArray[np.int64]]]:
    patient_N, diagnosis_N = slices.patient_N.numpy(), slices.diagnosis_N.numpy()
    return {
        state: per_patient(values[f"{state}.probabilities"], patient_N, diagnosis_N)
        for state in ("clean", "degraded", "enhanced")
        if f"{state}.probabilities" in values  # else there are no slices at all
    }


def _patient_scores(patients: Mapping[str, tuple[Values, npt.NDArray[np.int64]]]) -> dict[str, Values]:
    scores: dict[str, Values] = {}
    for state, (probabilities_PN, diagnosis_P) in patients.items():
        scores[f"{state}.accuracy"] = correct_P(probabilities_PN, diagnosis_P)
        scores[f"{state}.auc"] = np.array([auc(probabilities_PN, diagnosis_P)])
    return scores
