"""The main loss of the WGAN objectives: a critic's score and a fidelity; and the critic's own step.

Zhang, Chao, Xu, Niu, Wang, Yan. Task-Oriented Low-Dose CT Image Denoising. MICCAI 2021.
https://arxiv.org/abs/2103.13557.

    G    networks.enhancer      x       degraded_BCHW     G(x)    enhanced_BCHW
    D    networks.critic        x*      clean_BCHW
    T    networks.recogniser    L_t     recognition loss of T(G(x)), T fixed after the warm-up

    L_D = mean D(G(x)) - mean D(x*)  (+ gradient penalty)       D's step, then its constraint (shared/enhance/critic.py)
    L_G = - a mean D(G(x)) + b L_fidelity  + lambda L_t         a, b: critic.adversarial_weight, fidelity_weight

L_fidelity is training.enhance_loss, or for vgg-wgan the distance of VGG-19 features (Yang et al. 2018,
https://arxiv.org/abs/1708.00961). The published form is a = 1, b = 0.5, lambda = 1. The released trainer has L_t
commented out and so trains MSE-WGAN; here gradprom.gradients adds it, plainly (todnet) or through the gate
(todnet-gated), whose main gradient g is then that of the first two terms.

L_fidelity is a mean of small squares on [0, 1], and near the end its gradient is short; a score's is not. Where a = 1
drowns the fidelity, a smaller critic.adversarial_weight is the first thing to try.

In each batch: G forward once, one RMSprop step of D on G(x) cut off from G, one score of G(x) by the D that has moved,
through which only G's gradient flows. The released code runs G twice; the numbers are the same, because G keeps no
statistics. Micro batches each give D a step of its own, and a step that is repeated for want of memory moves D again.

D starts every federated round with a fresh RMSprop, whose first steps are up to ten learning rates long: its mean of
squares begins at 0 and is not corrected. D's learning rate stays where it is while G's follows the schedule.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from client.train.gradprom import MainLoss, fidelity, not_finite, trained
from client.train.optimiser import Optimiser, RMSprop
from shared.config import CampaignConfig
from shared.config.campaign import CriticConfig
from shared.enhance.critic import clip_weights, gradient_penalty
from shared.enhance.perceptual import SMALLEST_PX, load_vgg19, perceptual_loss
from shared.errors import ConfigError


def main_loss(
    critic: nn.Module, optimiser: Optimiser, campaign: CampaignConfig, rng: torch.Generator, gaps: list[Tensor]
) -> MainLoss:
    """A loss that trains `critic` by one step each time that it is asked.

    `rng` draws where the gradient penalty looks; `gaps` receives the critic's estimate of the Wasserstein distance
    between clean and enhanced images (up to its Lipschitz constant), before each of its steps.
    Raises ConfigError or DataError where vgg-wgan's weights cannot be used. The loss raises DataError where the weights
    of a spectral critic are not finite.
    """
    config = campaign.objective.critic
    fidelity_of = _fidelity(campaign, next(critic.parameters()).device)

    def loss(enhanced_BCHW: Tensor, clean_BCHW: Tensor) -> Tensor:
        # In float32: scores of a clipped critic are small differences, and autocast would go on using the weights that
        # it cast before the critic's step.
        with torch.autocast(enhanced_BCHW.device.type, enabled=False), _eigenvalues_found():
            gaps.append(critic_step(critic, optimiser, enhanced_BCHW.detach(), clean_BCHW, config, rng))
            with _fixed(critic):
                score: Tensor = critic(enhanced_BCHW).mean()
        return config.fidelity_weight * fidelity_of(enhanced_BCHW, clean_BCHW) - config.adversarial_weight * score

    return loss


def critic_step(
    critic: nn.Module,
    optimiser: Optimiser,
    enhanced_BCHW: Tensor,
    clean_BCHW: Tensor,
    config: CriticConfig,
    rng: torch.Generator,
) -> Tensor:
    """One step down L_D, and the constraint. Returns mean D(x*) - mean D(G(x)) as it was before; no gradient stays."""
    weights = trained(critic)
    gap = critic(clean_BCHW).mean() - critic(enhanced_BCHW).mean()
    loss = -gap
    if config.constraint == "penalty":
        loss = loss + gradient_penalty(critic, clean_BCHW, enhanced_BCHW, rng)
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        weight.grad = gradient
    optimiser.step()
    for weight in weights:
        weight.grad = None
    if config.constraint == "clip":
        clip_weights(critic)
    found: Tensor = gap.detach()
    return found


def critic_optimiser(critic: nn.Module, campaign: CampaignConfig) -> Optimiser:
    return RMSprop(trained(critic), learning_rate=campaign.objective.critic.learning_rate)


@contextlib.contextmanager
def _fixed(critic: nn.Module) -> Iterator[None]:
    """A graph made inside holds the critic's weights as constants."""
    weights = trained(critic)
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


@contextlib.contextmanager
def _eigenvalues_found() -> Iterator[None]:
    """The spectral critic's eigenvalues have no answer for weights that are not finite, and say it by an exception."""
    try:
        yield
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # public, but not in its `__all__`
        raise not_finite() from None


def _fidelity(campaign: CampaignConfig, device: torch.device) -> MainLoss:
    if campaign.objective.kind != "vgg-wgan":
        return fidelity(campaign)
    assert campaign.objective.vgg_weights is not None, "refused by ObjectiveConfig"
    if min(campaign.data.image_size) < SMALLEST_PX:
        raise ConfigError(
            f"objective=vgg-wgan needs images of {SMALLEST_PX} pixels or more along each axis, got "
            f"data.image_size={list(campaign.data.image_size)}; choose objective=mse-wgan"
        )
    vgg = load_vgg19(campaign.objective.vgg_weights).to(device)
    return lambda enhanced_BCHW, clean_BCHW: perceptual_loss(vgg, enhanced_BCHW, clean_BCHW)
