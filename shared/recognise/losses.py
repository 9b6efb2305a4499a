"""What the recogniser said and what is known in, the recognition loss out.

    mask        soft Dice (Milletari et al. 2016) over the foreground classes plus cross-entropy, on images with a mask
    diagnosis   cross-entropy, on images with a diagnosis

Dice is taken per image, not over the batch: every loss is then a sum over images divided by the number of labelled
images, and micro batches add up to exactly the loss of the whole batch. It is averaged over the classes that the image
shows: a term for absent classes would teach the recogniser, long before it can find a small lesion, that saying nothing
is safe. What is falsely found there costs cross-entropy.

Volumes (BCDHW, masks BDHW) are images with one axis more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.batch import Batch
from shared.config import ObjectiveConfig
from shared.recognise.recognition import Recognition

DICE_SMOOTHING_PX = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """How many images of a whole batch carry each label: what a micro batch's sums are divided by."""

    masks: Tensor
    diagnoses: Tensor
    undiagnosed: int = 1
    """Images of the stream that pseudo-labels are made for, at least 1."""


def labelled(batch: Batch) -> Labelled:
    """0-dim tensors on the batch's device, at least 1."""
    undiagnosed = 0 if batch.streams is None else batch.streams.undiagnosed
    masks, diagnoses = batch.has_mask_B.sum(), batch.diagnosed_B.sum()
    return Labelled(masks.clamp(min=1), diagnoses.clamp(min=1), max(1, undiagnosed))


def recognition_loss(
    recognition: Recognition, batch: Batch, objective: ObjectiveConfig, of_whole: Labelled | None = None
) -> Tensor:
    """The sum of `supervised_losses`."""
    return torch.stack(supervised_losses(recognition, batch, objective, of_whole or labelled(batch))).sum()


def recognition_losses(
    recognition: Recognition,
    batch: Batch,
    objective: ObjectiveConfig,
    of_whole: Labelled,
    recogniser: nn.Module,
    share: float,
) -> list[Tensor]:
    """What the objective asks of an enhanced image: the labels, or what `recogniser` says of the clean one."""
    if objective.recognition == "supervised":
        return supervised_losses(recognition, batch, objective, of_whole)
    with torch.no_grad():
        of_clean = recogniser(batch.clean_BCHW)
    return soft_target_losses(recognition, of_clean, objective, share)


def soft_target_losses(
    recognition: Recognition, of_clean: Recognition, objective: ObjectiveConfig, share: float = 1.0
) -> list[Tensor]:
    """Mean squared difference of the probabilities, weighted: masks, then diagnosis. No label is needed.

    Liu et al. https://arxiv.org/abs/1910.09185 (unsupervised RA: MSE of softmax). `of_clean` is a target, so no
    gradient flows into it; `share` is this micro batch's part of its batch.
    """
    losses = []
    for weight, said, target in (
        (objective.mask_weight, recognition.mask_logits_BKHW, of_clean.mask_logits_BKHW),
        (objective.diagnosis_weight, recognition.diagnosis_logits_BN, of_clean.diagnosis_logits_BN),
    ):
        if said is not None and target is not None:
            losses.append(weight * share * F.mse_loss(said.float().softmax(1), target.float().softmax(1)))
    return losses


def supervised_losses(
    recognition: Recognition, batch: Batch, objective: ObjectiveConfig, of_whole: Labelled
) -> list[Tensor]:
    """The weighted mask and diagnosis loss, each where its head is; 0 with a gradient of 0 where nothing is labelled.

    `of_whole` counts the labels of the batch that this micro batch is part of. No label is looked at on the host:
    unlabelled images are weighted 0, and nothing waits for the device.
    """
    terms = []
    if recognition.mask_logits_BKHW is not None:
        loss_B = mask_loss_B(recognition.mask_logits_BKHW.float(), batch.mask_BHW)
        terms.append(objective.mask_weight * (loss_B * batch.has_mask_B).sum() / of_whole.masks)
    if recognition.diagnosis_logits_BN is not None:
        known_B = batch.diagnosis_B >= 0
        loss_B = F.cross_entropy(
            recognition.diagnosis_logits_BN.float(), batch.diagnosis_B.clamp(min=0), reduction="none"
        )
        terms.append(objective.diagnosis_weight * (loss_B * known_B).sum() / of_whole.diagnoses)
    return terms


def mask_loss_B(logits_BKHW: Tensor, mask_BHW: Tensor) -> Tensor:
    """Soft Dice plus cross-entropy of each image; what it says of an image without a mask means nothing."""
    log_probabilities_BKHW = F.log_softmax(logits_BKHW, dim=1)
    cross_entropy_BHW = F.nll_loss(log_probabilities_BKHW, mask_BHW, reduction="none")
    cross_entropy_B = cross_entropy_BHW.mean(tuple(range(1, mask_BHW.ndim)))
    return soft_dice_loss_B(log_probabilities_BKHW.exp(), mask_BHW) + cross_entropy_B


def soft_dice_loss_B(probabilities_BKHW: Tensor, mask_BHW: Tensor, *, of_absent: bool = False) -> Tensor:
    """1 - (2 |p t| + s) / (|p| + |t| + s), averaged over the foreground classes that each image shows; 0 if none.

    With `of_absent`, over all foreground classes: what is said of an absent one is then wrong, as far as s lets it.
    """
    classes, space = probabilities_BKHW.shape[1], tuple(range(2, probabilities_BKHW.ndim))
    truth_BKHW = F.one_hot(mask_BHW, classes).movedim(-1, 1)[:, 1:].to(probabilities_BKHW.dtype)
    found_BKHW = probabilities_BKHW[:, 1:]
    overlap_BK = (found_BKHW * truth_BKHW).sum(space)
    sizes_BK = found_BKHW.sum(space) + truth_BKHW.sum(space)
    loss_BK = 1 - (2 * overlap_BK + DICE_SMOOTHING_PX) / (sizes_BK + DICE_SMOOTHING_PX)
    if of_absent:
        return loss_BK.mean(1)
    shown_BK = truth_BKHW.amax(space)
    return (loss_BK * shown_BK).sum(1) / shown_BK.sum(1).clamp(min=1)
