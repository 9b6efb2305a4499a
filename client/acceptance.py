"""Networks and slices in, what acceptance gates ask for out: gain, harm, inventions, calibration, how images look.

Counts, sums and sums of squares, without quantiles; they ride on the closing evaluation of a campaign and are what
`wardround-site validate` shows. Before is what is read in an image as it came in (degraded), after in the enhanced one.

    accept.gain.psnr_db                        per image: PSNR enhanced less degraded
    accept.harm.psnr_db                        per image: clean against itself enhanced
    accept.harm.dice_before, .dice_after       per image with a mask: clean, and clean enhanced; also .<mask name>
    accept.harm.accuracy_before, .._after      per patient with a diagnosis: likewise
    accept.lesions.before, .after, .erased     per true lesion (shared.recognise.lesions) of the last class, 0 or 1
    accept.false.before, .after, .invented     per image with a mask: components that hold no true lesion
    accept.calibration.count<b>, .confidence<b>, .correct<b>
                                               per patient with a diagnosis: bin b of ten over the top probability
    describe.<name>                            per image as it came in (shared.images.descriptors)

A figure over all of the site's test images, masks or diagnoses leaves, as the evaluation's own of the same images do.
One over a part of them (a mask's class, lesions, false positives, a bin), or that describes them, would tell about
single patients: of fewer than LEAST_PATIENTS it stays here. Bins of the calibration with fewer are put together with
their neighbours until they hold as many; the expected calibration error over bins that were put together is at most
that over the bins apart. Without an enhancer calibration and descriptions are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.batches import evaluation_batches
from client.dataset import Slices
from client.reading import BATCH_SIZE, Values, images_of, reading, recognised
from shared.acceptance import BINS
from shared.batch import Batch
from shared.config import CampaignConfig, MachineConfig
from shared.images.descriptors import descriptors
from shared.images.quality import psnr_db_B
from shared.metrics import moments
from shared.networks import Networks
from shared.recognise.lesions import lesions
from shared.recognise.metrics import correct_P, dice_BK, mean_over_classes, per_patient
from shared.recognise.recognition import Recognition
from shared.types import Metrics, Moments

LEAST_PATIENTS = 3
KEYS = ("accept.", "describe.")
"""What the names of these figures begin with."""
OVER_ALL = frozenset(
    f"accept.{name}"
    for name in ("gain.psnr_db", "harm.psnr_db", "harm.dice_before", "harm.dice_after", "harm.accuracy_before",
                 "harm.accuracy_after")
)  # fmt: skip
"""Those that leave, however few the patients."""

Patients: TypeAlias = npt.NDArray[np.int64]
Measured: TypeAlias = dict[str, tuple[Values, Patients]]
"""Key -> values, NaN where undefined, and the patient that each is of."""


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """What is kept of the images of one batch, on the CPU."""

    columns: Mapping[str, Values]
    """Key -> one value per image."""
    probabilities: Mapping[str, Values]
    """State -> (B, diagnoses)."""
    lesions: Sequence[tuple[int, Values]]
    """Of each true lesion: its image's place in the batch; found before, found after, erased."""


def accepted(networks: Networks, slices: Slices, campaign: CampaignConfig, machine: MachineConfig) -> Metrics:
    """The figures above for these slices; networks and modes are as before when it returns."""
    seen = []
    with reading(networks, machine) as device, torch.inference_mode():
        for batch in evaluation_batches(slices, campaign, BATCH_SIZE):
            seen.append(_seen(networks, batch.to(device, channels_last=machine.channels_last), campaign, machine))
    if not seen:
        return {}
    measured = _measured(seen, slices)
    probabilities = {
        state: np.concatenate([one.probabilities[state] for one in seen]) for state in seen[0].probabilities
    }
    measured |= _accuracies(probabilities, slices)
    bins = _calibration(probabilities["enhanced"], slices) if "enhanced" in probabilities else {}
    return {**_moments(measured), **bins}


# ------------------------------------------------------------------------------------------- reading


def _seen(networks: Networks, batch: Batch, campaign: CampaignConfig, machine: MachineConfig) -> _Seen:
    images = images_of(networks, batch, machine)
    clean_BCHW, degraded_BCHW = images["clean"], images["degraded"]
    columns = {f"describe.{name}": values_B for name, values_B in descriptors(degraded_BCHW).items()}
    enhances = campaign.enhance.kind != "none"
    if not campaign.masks:  # nobody asks what is diagnosed in the degraded image
        del images["degraded"]
    if not enhances:
        images = {"enhanced": images["enhanced"]}
    else:
        # What was measured of the clean image is measured of it here, too: an enhancer that must not contradict it.
        as_it_is = replace(batch, degraded_BCHW=clean_BCHW)
        images["kept"] = images_of(networks, as_it_is, machine)["enhanced"]
        before_B = psnr_db_B(clean_BCHW, degraded_BCHW)
        columns["accept.gain.psnr_db"] = psnr_db_B(clean_BCHW, images["enhanced"]) - before_B
        columns["accept.harm.psnr_db"] = psnr_db_B(clean_BCHW, images["kept"])
    read = {state: recognised(networks.recogniser, image_BCHW, machine) for state, image_BCHW in images.items()}
    found = {state: _codes(recognition) for state, recognition in read.items()} if campaign.masks else {}
    of_lesions: list[tuple[int, Values]] = []
    if enhances and campaign.masks:
        for key, state in (("dice_before", "clean"), ("dice_after", "kept")):
            columns |= _dice(f"accept.harm.{key}", found[state], batch, campaign.masks)
        false, of_lesions = _lesions(found["degraded"], found["enhanced"], batch, len(campaign.masks))
        columns |= false
    return _Seen(
        {key: values_B.double().cpu().numpy() for key, values_B in columns.items()},
        {state: _probabilities(read[state]) for state in read} if campaign.diagnoses else {},
        of_lesions,
    )


def _codes(recognition: Recognition) -> Tensor:
    assert recognition.mask_logits_BKHW is not None
    return recognition.mask_logits_BKHW.argmax(1)


def _probabilities(recognition: Recognition) -> Values:
    assert recognition.diagnosis_logits_BN is not None
    probabilities_BN: Values = recognition.diagnosis_logits_BN.double().softmax(1).cpu().numpy()
    return probabilities_BN


def _dice(key: str, found_BHW: Tensor, batch: Batch, masks: Sequence[str]) -> dict[str, Tensor]:
    """Mean over the classes and each class, NaN for images without a mask."""
    dice_BK = _masked_dice_BK(found_BHW, batch, len(masks))
    of_each = {f"{key}.{name.replace(' ', '_')}": dice_BK[:, column] for column, name in enumerate(masks)}
    return {key: torch.from_numpy(mean_over_classes(dice_BK.double().cpu().numpy())), **of_each}


def _masked_dice_BK(found_BHW: Tensor, batch: Batch, num_masks: int) -> Tensor:
    return dice_BK(found_BHW, batch.mask_BHW, num_masks).masked_fill(~batch.has_mask_B[:, None], torch.nan)


def _lesions(
    before_BHW: Tensor, after_BHW: Tensor, batch: Batch, code: int
) -> tuple[dict[str, Tensor], list[tuple[int, Values]]]:
    """False positives per image with a mask (NaN without); true lesions one by one."""
    truth, before, after = ((codes == code).cpu().numpy() for codes in (batch.mask_BHW, before_BHW, after_BHW))
    false_B3 = torch.full((batch.size, 3), torch.nan, dtype=torch.float64)
    of_lesions = []
    for place in torch.nonzero(batch.has_mask_B).flatten().tolist():
        one = lesions(truth[place], before[place], after[place])
        false_B3[place] = torch.tensor([one.false_before, one.false_after, one.invented], dtype=torch.float64)
        flags_L3 = np.stack([one.before_L, one.after_L, one.erased_L], axis=1).astype(np.float64)
        of_lesions += [(place, flags_3) for flags_3 in flags_L3]
    names = ("before", "after", "invented")
    return {f"accept.false.{name}": false_B3[:, column] for column, name in enumerate(names)}, of_lesions


# ------------------------------------------------------------------------------------------- summing up


def _measured(seen: Sequence[_Seen], slices: Slices) -> Measured:
    patient_N = slices.patient_N.numpy()
    measured = {key: (np.concatenate([one.columns[key] for one in seen]), patient_N) for key in seen[0].columns}
    places = [number * BATCH_SIZE + place for number, one in enumerate(seen) for place, _ in one.lesions]
    flags = [flags_3 for one in seen for _, flags_3 in one.lesions]
    if flags:
        flags_L3 = np.stack(flags)
        for column, name in enumerate(("before", "after", "erased")):
            measured[f"accept.lesions.{name}"] = (flags_L3[:, column], patient_N[places])
    return measured


def _accuracies(probabilities: Mapping[str, Values], slices: Slices) -> Measured:
    accuracies: Measured = {}
    for name, state in (("before", "clean"), ("after", "kept")):
        if state in probabilities:
            correct = correct_P(*_of_patients(probabilities[state], slices))
            accuracies[f"accept.harm.accuracy_{name}"] = (correct, np.arange(len(correct)))
    return accuracies


def _calibration(probabilities_NK: Values, slices: Slices) -> dict[str, Moments]:
    """Sums per bin of the top probability; nothing where there are fewer patients than a bin must have."""
    probabilities_PK, diagnosis_P = _of_patients(probabilities_NK, slices)
    if len(diagnosis_P) < LEAST_PATIENTS:
        return {}
    top_P, correct = probabilities_PK.max(1), correct_P(probabilities_PK, diagnosis_P)
    bin_P = merged_bins(np.minimum((top_P * BINS).astype(np.int64), BINS - 1))
    sums: dict[str, Moments] = {}
    for number in np.unique(bin_P).tolist():
        inside_P = bin_P == number
        for name, values in (("count", np.ones(len(top_P))), ("confidence", top_P), ("correct", correct)):
            sums[f"accept.calibration.{name}{number}"] = replace(moments(values[inside_P]), quantiles=())
    return sums


def merged_bins(bin_P: Patients) -> Patients:
    """Each patient's bin, where bins of fewer than LEAST_PATIENTS are put together with their upper neighbours, and
    what is left at the end with the lower one; a group has the number of its fullest bin."""
    counts = np.bincount(bin_P, minlength=BINS)
    groups: list[list[int]] = [[]]
    for number in np.flatnonzero(counts).tolist():
        if counts[groups[-1]].sum() >= LEAST_PATIENTS:
            groups.append([])
        groups[-1].append(number)
    if len(groups) > 1 and counts[groups[-1]].sum() < LEAST_PATIENTS:
        last = groups.pop()
        groups[-1] += last
    name_of = np.arange(BINS)
    for group in groups:
        name_of[group] = group[int(counts[group].argmax())] if group else 0
    merged_P: Patients = name_of[bin_P]
    return merged_P


def _of_patients(probabilities_NK: Values, slices: Slices) -> tuple[Values, Patients]:
    return per_patient(probabilities_NK, slices.patient_N.numpy(), slices.diagnosis_N.numpy())


def _moments(measured: Measured) -> dict[str, Moments]:
    """Of figures that may leave; no quantiles, of which the outer ones are single images."""
    told = {}
    for key, (values, patients) in measured.items():
        behind = len(np.unique(patients[np.isfinite(values)]))
        if behind >= LEAST_PATIENTS or (behind and key in OVER_ALL):
            told[key] = replace(moments(values), quantiles=())
    return told
