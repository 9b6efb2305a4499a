"""What recognition's loss is made of: the interface of learn=, and learn=supervised.

A training step asks for the terms of the images that it shows to the recogniser, enhanced or clean, and does not know
how they come about: client/train/multimix.py makes them of labelled and unlabelled streams.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from client.train.selfreg import selfreg_loss
from shared.batch import Batch
from shared.config import CampaignConfig
from shared.recognise.losses import Labelled, recognition_losses, supervised_losses
from shared.recognise.recognition import Recognition

Sums = Mapping[str, Tensor]
"""Counts and sums over images: those of micro batches and of steps add up."""


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What part of a whole batch a micro batch is: losses are divided by the whole's counts, so that they add up."""

    images: float
    labelled: Labelled


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """Of one batch or a part of one."""

    losses: tuple[Tensor, ...]
    """Weighted; one for each auxiliary task (masks, diagnosis) that there is something to learn of."""
    sums: Sums
    """images.<part> (shared.weights.PARTS): images whose loss moved that part of the recogniser, one without a label as
    the share that its loss has beside a labelled one's; losses that stand in
    the record; what the form of `learn` counts beside them. Detached."""


class RecognitionTerms(Protocol):
    def __call__(self, recogniser: nn.Module, image_BCHW: Tensor, part: Batch, share: Share) -> Terms: ...


def supervised(campaign: CampaignConfig, rng: torch.Generator | None = None) -> RecognitionTerms:
    """learn=supervised; `rng` draws the channels of selfreg.consistency=random."""
    return partial(supervised_terms, campaign=campaign, rng=rng)


def supervised_terms(
    recogniser: nn.Module,
    image_BCHW: Tensor,
    part: Batch,
    share: Share,
    *,
    campaign: CampaignConfig,
    rng: torch.Generator | None = None,
) -> Terms:
    """The losses on labels, or (objective.recognition=unsupervised) on what the recogniser says of the clean image.

    Where synthetic images stand beside the real ones, both are shown, and count as one image.
    """
    objective = campaign.objective
    if part.synthetic_BCHW is None:
        recognition = recogniser(image_BCHW)
        losses = recognition_losses(recognition, part, objective, share.labelled, recogniser, share.images)
    else:
        assert objective.recognition == "supervised", "CampaignConfig refuses augment.mix=patches without labels"
        recognition = recogniser(torch.cat([image_BCHW, part.synthetic_BCHW]))
        losses = merged_losses(recognition, part, campaign, share.labelled)
    every_B = torch.ones_like(part.has_mask_B)
    if objective.recognition == "unsupervised":
        masked_B = diagnosed_B = every_B
    else:
        masked_B, diagnosed_B = part.has_mask_B, part.diagnosed_B
    if recognition.mask_logits_BKHW is None:
        masked_B = ~every_B
    if recognition.diagnosis_logits_BN is None:
        diagnosed_B = ~every_B
    sums = {
        "images.encoder": (masked_B | diagnosed_B).sum(),
        "images.decoder": masked_B.sum(),
        "images.diagnosis": diagnosed_B.sum(),
    }
    if campaign.selfreg.on:
        regular, losses[0] = regularised(losses[0], recognition, campaign, share, rng)
        sums["loss_selfreg"] = regular
    return Terms(tuple(losses), sums)


def merged_losses(recognition: Recognition, part: Batch, campaign: CampaignConfig, of_whole: Labelled) -> list[Tensor]:
    """augment.mix=patches, of what is said of the real images followed by their synthetic partners (2 B of them):

        L_mask      = DiceCE(f(x) r + f(x~) (1 - r), y), the logits f merged cell by cell
        L_diagnosis = alpha CE(c(x), z) + (1 - alpha) CE(c(x~), z~), where only one of z and z~ is known that one alone

    Zhang et al., https://arxiv.org/abs/2310.12868, for masks; the diagnosis is ours. With r and alpha of 1 both are the
    supervised losses of the real images.
    """
    assert part.real_cells_BHW is not None
    assert part.synthetic_diagnosis_B is not None
    losses = []
    if recognition.mask_logits_BKHW is not None:
        real_BKHW, synthetic_BKHW = recognition.mask_logits_BKHW.chunk(2)
        merged_BKHW = torch.where(part.real_cells_BHW[:, None], real_BKHW, synthetic_BKHW)
        losses += supervised_losses(Recognition(merged_BKHW, None, []), part, campaign.objective, of_whole)
    if recognition.diagnosis_logits_BN is not None:
        diagnosis_2B = torch.cat([part.diagnosis_B, part.synthetic_diagnosis_B])
        known_B, known_too_B = part.diagnosis_B >= 0, part.synthetic_diagnosis_B >= 0
        shares_2B = torch.cat([campaign.augment.real * known_B, (1 - campaign.augment.real) * known_too_B])
        together_B = shares_2B.view(2, -1).sum(0)
        loss_2B = F.cross_entropy(recognition.diagnosis_logits_BN.float(), diagnosis_2B.clamp(min=0), reduction="none")
        loss_B = (shares_2B * loss_2B).view(2, -1).sum(0) / torch.where(together_B > 0, together_B, 1.0)
        losses.append(campaign.objective.diagnosis_weight * loss_B.sum() / of_whole.diagnoses)
    return losses


def regularised(
    loss: Tensor, recognition: Recognition, campaign: CampaignConfig, share: Share, rng: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """SelfReg's term, detached, and the loss with it. It is a mean over images: a micro batch has its share."""
    regular = share.images * selfreg_loss(recognition, campaign.selfreg, rng)
    return regular.detach(), loss + regular
