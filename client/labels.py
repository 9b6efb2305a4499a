"""Training slices and a label budget in, the same slices with no more labels than that out: studies of scarcity.

Which labels stay follows from a hash of the seed and the slice's identity alone, so every process keeps the same ones,
and a larger budget keeps what a smaller one kept.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shared.config import LabelsConfig

if TYPE_CHECKING:
    from client.dataset import Slices


def scarce(slices: Slices, budget: LabelsConfig, seed: int) -> Slices:
    """`slices` with at most `budget.masks` masks and `budget.diagnoses` of the diagnosed patients; the rest of the
    labels are taken away, not the images."""
    if budget.masks is not None:
        kept_N = _kept_masks(slices, budget.masks, seed)
        slices = replace(slices, has_mask_N=kept_N, mask_NHW=slices.mask_NHW * kept_N[:, None, None])
    if budget.diagnoses is not None:
        kept_N = _kept_diagnoses(slices, budget.diagnoses, seed)
        slices = replace(slices, diagnosis_N=torch.where(kept_N, slices.diagnosis_N, -1))
    return slices


def _kept_masks(slices: Slices, count: int, seed: int) -> Tensor:
    """Slices that show something, one of each patient before a second of any: as many patients as there are masks."""
    shown_N = slices.has_mask_N & (slices.mask_NHW > 0).flatten(1).any(1)
    of_patient: dict[int, list[int]] = {}
    for index in sorted(shown_N.nonzero()[:, 0].tolist(), key=lambda index: _hash(seed, slices.identity[index])):
        of_patient.setdefault(int(slices.patient_N[index]), []).append(index)
    turns = sorted(
        (turn, place, index) for place, own in enumerate(of_patient.values()) for turn, index in enumerate(own)
    )
    kept_N = torch.zeros_like(slices.has_mask_N)
    kept_N[[index for _, _, index in turns[:count]]] = True
    return kept_N


def _kept_diagnoses(slices: Slices, share: float, seed: int) -> Tensor:
    """Of each diagnosis the share of its patients, rounded, and one at least."""
    kept: list[int] = []
    for code in sorted({code for code in slices.diagnosis_N.tolist() if code >= 0}):
        patients = {
            int(patient): _hash(seed, slices.identity[index])
            for index, patient in reversed(list(enumerate(slices.patient_N.tolist())))
            if int(slices.diagnosis_N[index]) == code
        }
        count = max(1, round(share * len(patients))) if share > 0 else 0
        kept += sorted(patients, key=lambda patient: patients[patient])[:count]
    return torch.isin(slices.patient_N, torch.tensor(kept, dtype=slices.patient_N.dtype))


def _hash(seed: int, identity: str) -> str:
    return hashlib.sha256(f"{seed}\x1flabels\x1f{identity}".encode()).hexdigest()
