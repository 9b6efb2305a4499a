"""Predicted and true labels in, overlap per image and class, accuracy, F1 and AUC out.

Masks: a class that is in neither the truth nor the prediction of an image has no score there (NaN, left out of every
mean); one that is in exactly one of them scores 0. An image's score is the mean over the foreground classes that it has
one for. Diagnosis is judged per patient: the mean of the softmax over the patient's slices. Distances between outlines
are in shared.recognise.surfaces.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared.images.quality import ssim_B


def dice_BK(predicted_BHW: Tensor, truth_BHW: Tensor, num_masks: int) -> Tensor:
    """Dice of each foreground class (columns 0.. are codes 1..) in each image, float32; NaN where absent in both."""
    return overlaps(predicted_BHW, truth_BHW, num_masks)["dice"]


def overlaps(predicted_BHW: Tensor, truth_BHW: Tensor, num_masks: int) -> dict[str, Tensor]:
    """`dice`, `jaccard`, `precision` and `recall` of each foreground class in each image, (B, num_masks) float32.

    Of pixels: 2TP / (2TP + FP + FN), TP / (TP + FP + FN), TP / (TP + FP), TP / (TP + FN). Where only one of prediction
    and truth has the class, all four are 0, precision of an empty prediction and recall of an empty truth among them.
    """
    predicted_BKHW, truth_BKHW = (one_hot_BKHW(codes_BHW, num_masks) for codes_BHW in (predicted_BHW, truth_BHW))
    hit_BK = (predicted_BKHW & truth_BKHW).sum((2, 3)).float()
    predicted_BK, truth_BK = predicted_BKHW.sum((2, 3)).float(), truth_BKHW.sum((2, 3)).float()
    absent_BK = predicted_BK + truth_BK == 0

    def share(hits_BK: Tensor, of_BK: Tensor) -> Tensor:
        return (hits_BK / of_BK.clamp(min=1)).masked_fill(absent_BK, torch.nan)

    return {
        "dice": share(2 * hit_BK, predicted_BK + truth_BK),
        "jaccard": share(hit_BK, predicted_BK + truth_BK - hit_BK),
        "precision": share(hit_BK, predicted_BK),
        "recall": share(hit_BK, truth_BK),
    }


def mask_ssim_BK(predicted_BHW: Tensor, truth_BHW: Tensor, num_masks: int) -> Tensor:
    """SSIM between the predicted and the true map (0 or 1) of each foreground class, float32; NaN where absent in both.

    As MultiMix reports it (https://arxiv.org/abs/2010.14731), whole image, of the decided classes. A class in only one
    of them keeps the value that SSIM has for it: background that is alike counts, so a missed class is not 0 here.
    """
    predicted_BKHW, truth_BKHW = (one_hot_BKHW(codes_BHW, num_masks) for codes_BHW in (predicted_BHW, truth_BHW))
    ssim_N = ssim_B(predicted_BKHW.flatten(0, 1)[:, None].float(), truth_BKHW.flatten(0, 1)[:, None].float())
    absent_BK = ~(predicted_BKHW | truth_BKHW).any(3).any(2)
    return ssim_N.view(-1, num_masks).masked_fill(absent_BK, torch.nan)


def one_hot_BKHW(codes_BHW: Tensor, num_masks: int) -> Tensor:
    """bool maps of the foreground classes, (B, num_masks, H, W): without the background."""
    return codes_BHW[:, None] == torch.arange(1, num_masks + 1, device=codes_BHW.device)[None, :, None, None]


def mean_over_classes(scores_BK: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each image's mean over the classes it has a score for; NaN where it has none."""
    counted = np.isfinite(scores_BK).sum(1)
    total = np.nansum(scores_BK, axis=1)
    means: npt.NDArray[np.float64] = np.full(len(total), np.nan)
    np.divide(total, counted, out=means, where=counted > 0)
    return means


def per_patient(
    probabilities_BN: npt.NDArray[np.float64], patient_B: npt.NDArray[np.int64], diagnosis_B: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Mean probabilities and the diagnosis of each patient that has one, in order of the patient's index."""
    known = diagnosis_B >= 0
    patients, first, inverse = np.unique(patient_B[known], return_index=True, return_inverse=True)
    sums = np.zeros((len(patients), probabilities_BN.shape[1]))
    np.add.at(sums, inverse, probabilities_BN[known])
    counts = np.bincount(inverse, minlength=len(patients))
    means: npt.NDArray[np.float64] = sums / counts[:, None]
    return means, diagnosis_B[known][first]


def correct_P(probabilities_PN: npt.NDArray[np.float64], diagnosis_P: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """1 where the most probable diagnosis is the true one, else 0: the mean is the accuracy."""
    if not len(diagnosis_P):
        return np.zeros(0)
    correct_P: npt.NDArray[np.float64] = (probabilities_PN.argmax(1) == diagnosis_P).astype(np.float64)
    return correct_P


def auc(probabilities_PN: npt.NDArray[np.float64], diagnosis_P: npt.NDArray[np.int64]) -> float:
    """Area under the ROC curve, one diagnosis against the rest, averaged over the diagnoses that have both.

    The rank statistic of Mann and Whitney, ties counted half. With two diagnoses it is the usual AUC. NaN where all
    patients share one diagnosis.
    """
    areas = [
        _rank_auc(probabilities_PN[:, code], diagnosis_P == code)
        for code in range(probabilities_PN.shape[1])
        if 0 < int((diagnosis_P == code).sum()) < len(diagnosis_P)
    ]
    return float(np.mean(areas)) if areas else float("nan")


def f1_K(probabilities_PN: npt.NDArray[np.float64], diagnosis_P: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """F1 of each diagnosis, 2TP / (2TP + FP + FN) over patients; NaN where nobody has it and nobody is said to."""
    codes = np.arange(probabilities_PN.shape[1])[:, None]
    said_KP, has_KP = probabilities_PN.argmax(1) == codes, diagnosis_P == codes
    sizes_K = said_KP.sum(1) + has_KP.sum(1)
    scores_K: npt.NDArray[np.float64] = np.full(len(codes), np.nan)
    np.divide(2 * (said_KP & has_KP).sum(1), sizes_K, out=scores_K, where=sizes_K > 0)
    return scores_K


def of_all_patients(
    probabilities_PN: npt.NDArray[np.float64], diagnosis_P: npt.NDArray[np.int64], names: Sequence[str]
) -> dict[str, float]:
    """`auc`, `f1` (macro: the mean over diagnoses that have an F1) and `f1.<diagnosis>`: one value for these patients.

    Over several sites they are measured on all patients together; a mean of the sites' values is another figure.
    """
    f1_of_each_K = f1_K(probabilities_PN, diagnosis_P)
    scores = {"auc": auc(probabilities_PN, diagnosis_P), "f1": float(mean_over_classes(f1_of_each_K[None])[0])}
    for name, value in zip(names, f1_of_each_K, strict=True):
        scores[f"f1.{name.replace(' ', '_')}"] = float(value)
    return scores


def _rank_auc(scores_P: npt.NDArray[np.float64], positive_P: npt.NDArray[np.bool_]) -> float:
    _, inverse, counts = np.unique(scores_P, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2
    positives, negatives = int(positive_P.sum()), int((~positive_P).sum())
    rank_sum = float(mean_ranks[inverse][positive_P].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
