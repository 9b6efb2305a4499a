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

from client.train.selfreg import selfreg_loss
from shared.batch import Batch
from shared.config import CampaignConfig
from shared.recognise.losses import Labelled, recognition_losses
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
    """The losses on labels, or (objective.recognition=unsupervised) on what the recogniser says of the clean image."""
    recognition = recogniser(image_BCHW)
    objective = campaign.objective
    losses = recognition_losses(recognition, part, objective, share.labelled, recogniser, share.images)
    every_B = torch.ones_like(part.has_mask_B)
    known_B = part.diagnosis_B >= 0
    if objective.recognition == "unsupervised":
        masked_B = diagnosed_B = every_B
    else:
        masked_B, diagnosed_B = part.has_mask_B, known_B
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


def regularised(
    loss: Tensor, recognition: Recognition, campaign: CampaignConfig, share: Share, rng: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """SelfReg's term, detached, and the loss with it. It is a mean over images: a micro batch has its share."""
    regular = share.images * selfreg_loss(recognition, campaign.selfreg, rng)
    return regular.detach(), loss + regular
