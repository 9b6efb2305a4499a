"""The GradProm step against the form one would write first; cases out.

    ours    one enhancer forward, two vector-Jacobian products, one recogniser forward and backward:  5 Fe + 3 Fr
    rival   two enhancer forwards and two backwards, one recogniser forward and backward:             6 Fe + 3 Fr

F is the cost of a forward pass, a backward pass counts 2 F. Both forms end in the same gate, clipping and optimiser
step. Networks and clock: simulation/bench/steps.py. The target is 1.05 of the counted limit
(5 Fe + 3 Fr) / (6 Fe + 3 Fr).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from client.train import gradprom
from client.train.gradprom import Gradients, Optimisers
from client.train.terms import Share
from shared.batch import Batch
from shared.config import CampaignConfig
from shared.enhance.losses import enhancement_loss
from shared.networks import Networks
from shared.recognise.losses import labelled, recognition_loss
from simulation.bench import Case, steps

SLACK = 1.05

Form = Callable[[Networks, Batch, Share, CampaignConfig], Gradients]


@dataclass(frozen=True, slots=True)
class Times:
    """Medians in seconds."""

    ours: float
    rival: float
    enhancer_forward: float
    recogniser_forward: float


def naive_gradients(networks: Networks, part: Batch, share: Share, campaign: CampaignConfig) -> Gradients:
    """The same gradients from an own forward and backward for each loss."""
    theta, phi = gradprom.trained(networks.enhancer), gradprom.trained(networks.recogniser)
    enhanced_BCHW = networks.enhancer(part.degraded_BCHW)
    enhance_loss = enhancement_loss(enhanced_BCHW, part.clean_BCHW, campaign.training.enhance_loss)
    g_D = gradprom.flat(torch.autograd.grad(enhance_loss, theta))
    recognition = networks.recogniser(networks.enhancer(part.degraded_BCHW))
    recognise_loss = recognition_loss(recognition, part, campaign.objective, share.labelled)
    found = torch.autograd.grad(recognise_loss, theta + phi)
    v_D, r_D = gradprom.flat(found[: len(theta)]), gradprom.flat(found[len(theta) :])
    return Gradients(g_D, (v_D,), r_D, enhance_loss.detach(), recognise_loss.detach())


def run() -> list[Case]:
    """One case per cost ratio."""
    with steps.one_thread():
        return [_case(name, *blocks) for name, blocks in steps.BLOCKS.items()]


def _case(name: str, enhancer_blocks: int, recogniser_blocks: int) -> Case:
    times = measured(enhancer_blocks, recogniser_blocks, repetitions=steps.REPETITIONS)
    fe, fr = (int(part) for part in name.split(":"))
    limit = (5 * fe + 3 * fr) / (6 * fe + 3 * fr)
    ratio = times.ours / times.rival
    return {
        "bench": "gradprom-step-naive",
        "case": name,
        "ours": times.ours,
        "rival": times.rival,
        "ratio": ratio,
        "target": SLACK * limit,
        "holds": ratio <= SLACK * limit,
        "limit": limit,
        "enhancer_forward_s": times.enhancer_forward,
        "recogniser_forward_s": times.recogniser_forward,
        "threads": 1,
    }


def measured(enhancer_blocks: int, recogniser_blocks: int, *, repetitions: int) -> Times:
    """Medians over interleaved repetitions, each form on networks and optimisers of its own."""
    campaign, batch = steps.campaign(), steps.batch()
    sides = [steps.side(campaign, enhancer_blocks, recogniser_blocks) for _ in range(2)]
    share = Share(1.0, labelled(batch))

    def step(form: Form, side: tuple[Networks, Optimisers]) -> None:
        networks, optimisers = side
        gradprom.update(networks, optimisers, form(networks, batch, share, campaign), campaign)

    watched: dict[str, Callable[[], object]] = {
        "ours": lambda: step(gradprom.gradients, sides[0]),
        "rival": lambda: step(naive_gradients, sides[1]),
        "enhancer_forward": lambda: sides[0][0].enhancer(batch.degraded_BCHW),
        "recogniser_forward": lambda: sides[0][0].recogniser(batch.degraded_BCHW),
    }
    return Times(**steps.medians(watched, repetitions=repetitions))
