"""Task-driven generation under the gate: recognition steers the ControlNet where it agrees with the denoising loss.

Ours; nothing of it is published. The rule is that of client/train/gradprom.py (Zhang and Cheng 2025,
https://arxiv.org/abs/2501.01114), with a generator in the place of the enhancer.

    theta    weights of the ControlNet
    e        what denoiser and ControlNet tell of noisy latents
    g        gradient of the denoising loss on theta
    x0       the image that e amounts to: clean latents (shared/generate/schedule.py), decoded
    v        gradient on theta of the recognition loss of x0 against the slice's own mask and diagnosis
    d        g + lambda |g| / |v| passed(v): client/train/gates.py; with gate=none all of v passes

Only images noised up to generate.task.latest_time have a v: the estimate of a later one shows no anatomy. Both losses
reach theta through e alone, so one forward and two vector-Jacobian products give both gradients.

The recogniser is the site's own, trained on its real images once and then frozen; it never travels. Sites' recognisers
differ, as their v do; what they have in common is the gate, and the average.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from client.dataset import Slices
from client.train.alone import alone
from client.train.emitdiff import Found, mse_B, predicted_with_hint
from client.train.gradprom import Direction, direction, learned, vector_jacobian_D
from client.train.shown import Latents
from shared.batch import Batch
from shared.config import CampaignConfig, LearnConfig, MachineConfig, ObjectiveConfig
from shared.generate.networks import Generator
from shared.generate.schedule import clean_estimate, noised
from shared.networks import build_networks
from shared.recognise.losses import Labelled, labelled, supervised_losses

RECOGNISER_STEPS = 300
"""Of the site's own recogniser, with the batches and the learning rate of the ControlNet's phase."""


def both_gradients(
    generator: Generator,
    recogniser: nn.Module,
    theta: list[nn.Parameter],
    campaign: CampaignConfig,
    part: Latents,
    share: float,
    of_whole: Labelled,
) -> Found:
    """`share` is the part's share of its batch, `of_whole` counts the labels of the batch's early images."""
    prediction = campaign.generate.prediction
    noisy_BCHW, target_BCHW = noised(part.latent_BCHW, part.noise_BCHW, part.time_B, prediction)
    predicted_BCHW = predicted_with_hint(generator, noisy_BCHW, part)
    cut_BCHW = predicted_BCHW.detach().float().requires_grad_(True)  # cut here; both losses begin at what was told
    loss = share * mse_B(cut_BCHW, target_BCHW).mean()
    (towards_target_BCHW,) = torch.autograd.grad(loss, cut_BCHW)
    early_E = part.early_B.nonzero()[:, 0]
    task_loss, v_D = torch.zeros_like(loss), None
    if len(early_E):
        at_E = early_E.to(noisy_BCHW.device)
        latent_ECHW = clean_estimate(noisy_BCHW[at_E], cut_BCHW[at_E], part.time_B[at_E], prediction)
        task_loss = recognition_loss(recogniser, generator.decode(latent_ECHW), part, at_E, campaign, of_whole)
        (towards_task_BCHW,) = learned(task_loss, [cut_BCHW])
        v_D = vector_jacobian_D(towards_task_BCHW, predicted_BCHW, theta, keep_graph=True)
    g_D = vector_jacobian_D(towards_target_BCHW, predicted_BCHW, theta)
    return Found(g_D, loss.detach(), torch.zeros_like(g_D) if v_D is None else v_D, task_loss.detach())


def recognition_loss(
    recogniser: nn.Module,
    image_ECHW: Tensor,
    part: Latents,
    at_E: Tensor,
    campaign: CampaignConfig,
    of_whole: Labelled,
) -> Tensor:
    """Of estimates of the part's images `at_E`, with the labels that their slices have."""
    batch = Batch(image_ECHW, image_ECHW, part.mask_BHW[at_E], part.has_mask_B[at_E], part.diagnosis_B[at_E])
    terms = supervised_losses(recogniser(image_ECHW), batch, campaign.objective, of_whole)
    return torch.stack(terms).sum()


def labels_of_early(shown: Latents) -> Labelled:
    """What the recognition losses of a whole batch are divided by."""
    at_E = shown.early_B.nonzero()[:, 0].to(shown.mask_BHW.device)
    image_ECHW = shown.latent_BCHW[at_E]
    return labelled(
        Batch(image_ECHW, image_ECHW, shown.mask_BHW[at_E], shown.has_mask_B[at_E], shown.diagnosis_B[at_E])
    )


def steered(found: Found, campaign: CampaignConfig, blocks: list[int]) -> Direction:
    """d from g and v; `blocks` are the sizes of theta's tensors. Of a v of 0 or not finite nothing passes."""
    task = campaign.generate.task
    gated = task.gate != "none"
    objective = ObjectiveConfig(
        kind="gradprom" if gated else "joint",
        task_weight=task.weight,
        gate=task.gate if task.gate != "none" else "global",
    )
    assert found.v_D is not None
    return direction(found.g_D, [found.v_D], objective, blocks)


def task_recogniser(slices: Slices, campaign: CampaignConfig, machine: MachineConfig, site: str) -> nn.Module:
    """A recogniser of the campaign's architecture, trained on these slices as they are (no degradation, no enhancer)
    for RECOGNISER_STEPS steps; frozen. The same in every round and process; trained once in each process."""
    asked = alone(
        campaign,
        replace(campaign.training, local_steps=RECOGNISER_STEPS, adam_states="one"),
        data=replace(campaign.data, labels=None),  # the slices are scarce already
        objective=replace(
            ObjectiveConfig(kind="plain"),
            mask_weight=campaign.objective.mask_weight,
            diagnosis_weight=campaign.objective.diagnosis_weight,
        ),
        learn=LearnConfig(segment=campaign.learn.segment, diagnose=campaign.learn.diagnose),
    )
    return _task_recogniser(slices, asked, machine, site)


@lru_cache(maxsize=32)
def _task_recogniser(slices: Slices, campaign: CampaignConfig, machine: MachineConfig, site: str) -> nn.Module:
    from client.train.local import train_round

    networks = build_networks(campaign)
    train_round(networks, slices, campaign, machine, site=site, round=1, steps=campaign.training.local_steps)
    return networks.recogniser.eval().requires_grad_(False)


def forget() -> None:
    """Let go of all recognisers and of the slices that they learnt on."""
    _task_recogniser.cache_clear()
