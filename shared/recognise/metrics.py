"""Predicted and true labels in, Dice per image and class, accuracy and AUC out.

Conventions: a class that is in neither the truth nor the prediction of an image has no Dice there (NaN, left out of
every mean); one that is in exactly one of them scores 0. An image's Dice is the mean over the foreground classes that
it has a Dice for. Diagnosis is judged per patient: the mean of the softmax over the patient's slices.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def dice_BK(predicted_BHW: Tensor, truth_BHW: Tensor, num_masks: int) -> Tensor:
    """Dice of each foreground class (columns 0.. are codes 1..) in each image, float32; NaN where absent in both."""
    columns = []
    for code in range(1, num_masks + 1):
        predicted, truth = predicted_BHW == code, truth_BHW == code
        overlap_B = (predicted & truth).sum((1, 2))
        sizes_B = predicted.sum((1, 2)) + truth.sum((1, 2))
        columns.append(2 * overlap_B / sizes_B)  # 0 / 0 is NaN: absent in both
    return torch.stack(columns, dim=1).float()


def mean_over_classes(dice_of_classes_BK: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each image's mean over the classes it has a Dice for; NaN where it has none."""
    counted = np.isfinite(dice_of_classes_BK).sum(1)
    total = np.nansum(dice_of_classes_BK, axis=1)
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


def _rank_auc(scores_P: npt.NDArray[np.float64], positive_P: npt.NDArray[np.bool_]) -> float:
    _, inverse, counts = np.unique(scores_P, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2
    positives, negatives = int(positive_P.sum()), int((~positive_P).sum())
    rank_sum = float(mean_ranks[inverse][positive_P].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
