"""The recogniser's own steps: the warm-up of an enhancer's campaign, and training alone.

Warm-up: early in training the recogniser is random and its gradient on the enhancer means nothing; Liu et al.
(https://arxiv.org/abs/1910.09185) start from a trained recogniser for the same reason. It learns on clean images while
the enhancer follows its own loss only; `frozen` keeps what it has learnt here. The two networks share nothing in this
step but the batch.

Alone (enhance=none): no enhancer; the recogniser learns on the images as they come, and here alone on synthetic ones
beside them (augment.mix=patches). With mix=images they stand among the real ones in both steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from client.train.gradprom import Gradients, MainLoss, fidelity, flat, learned, trained
from client.train.terms import RecognitionTerms, Share, Sums, supervised
from shared.batch import Batch
from shared.config import CampaignConfig
from shared.enhance.consistency import enhanced_image
from shared.networks import Networks


def warmup_gradients(
    networks: Networks,
    part: Batch,
    share: Share,
    campaign: CampaignConfig,
    main_loss: MainLoss | None = None,
    recognition: RecognitionTerms | None = None,
) -> Gradients:
    """g of the enhancer and the recogniser's gradient on clean images; there is no task gradient."""
    enhanced_BCHW = enhanced_image(networks.enhancer, part).float()
    enhance_loss = share.images * (main_loss or fidelity(campaign))(enhanced_BCHW, part.clean_BCHW)
    g_D = flat(torch.autograd.grad(enhance_loss, trained(networks.enhancer)))

    r_D, recognise_loss, sums = _on(part.clean_BCHW, networks, part, share, recognition or supervised(campaign))
    return Gradients(g_D, (), r_D, enhance_loss.detach(), recognise_loss, None, sums)


def alone_gradients(
    networks: Networks,
    part: Batch,
    share: Share,
    campaign: CampaignConfig,
    main_loss: MainLoss | None = None,
    recognition: RecognitionTerms | None = None,
) -> Gradients:
    """The recogniser's gradient on the images as they come; the enhancer has no weights."""
    r_D, recognise_loss, sums = _on(part.degraded_BCHW, networks, part, share, recognition or supervised(campaign))
    nothing = torch.zeros_like(recognise_loss)
    return Gradients(r_D.new_zeros(0), (), r_D, nothing, recognise_loss, None, sums)


def _on(
    image_BCHW: Tensor, networks: Networks, part: Batch, share: Share, recognition: RecognitionTerms
) -> tuple[Tensor, Tensor, Sums]:
    terms = recognition(networks.recogniser, image_BCHW, part, share)
    loss = torch.stack(terms.losses).sum()
    return flat(learned(loss, trained(networks.recogniser))), loss.detach(), terms.sums
