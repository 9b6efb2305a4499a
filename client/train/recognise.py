"""Warm-up: the recogniser learns on clean images while the enhancer follows its own loss only.

Early in training the recogniser is random and its gradient on the enhancer means nothing; Liu et al.
(https://arxiv.org/abs/1910.09185) start from a trained recogniser for the same reason. `frozen` keeps what it has
learnt here. The two networks share nothing in this step but the batch.
"""

from __future__ import annotations

import torch

from client.train.gradprom import Gradients, MainLoss, Share, fidelity, flat, trained
from shared.batch import Batch
from shared.config import CampaignConfig
from shared.enhance.consistency import enhanced_image
from shared.networks import Networks
from shared.recognise.losses import recognition_loss


def warmup_gradients(
    networks: Networks, part: Batch, share: Share, campaign: CampaignConfig, main_loss: MainLoss | None = None
) -> Gradients:
    """g of the enhancer and the recogniser's gradient on clean images; there is no task gradient."""
    enhanced_BCHW = enhanced_image(networks.enhancer, part).float()
    enhance_loss = share.images * (main_loss or fidelity(campaign))(enhanced_BCHW, part.clean_BCHW)
    g_D = flat(torch.autograd.grad(enhance_loss, trained(networks.enhancer)))

    recognition = networks.recogniser(part.clean_BCHW)
    recognise_loss = recognition_loss(recognition, part, campaign.objective, share.labelled)
    r_D = flat(torch.autograd.grad(recognise_loss, trained(networks.recogniser)))
    return Gradients(g_D, (), r_D, enhance_loss.detach(), recognise_loss.detach())
