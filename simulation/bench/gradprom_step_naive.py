"""The GradProm step against the form one would write first; cases out.

    ours    one enhancer forward, two vector-Jacobian products, one recogniser forward and backward:  5 Fe + 3 Fr
    rival   two enhancer forwards and two backwards, one recogniser forward and backward:             6 Fe + 3 Fr

F is the cost of a forward pass, a backward pass counts 2 F. Both forms end in the same gate, clipping and optimiser
step, run in turn in one process on one thread, and are compared by the median of their processor times: on one thread
that is the wall time, less what other programs on the machine took. The networks are stacks of one convolution block,
so that Fe : Fr is the case's ratio by construction; the forward times that were measured stand beside it. The target
is 1.05 of the counted limit (5 Fe + 3 Fr) / (6 Fe + 3 Fr).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from client.train import gradprom
from client.train.gradprom import Gradients, Optimisers, Share
from shared.batch import Batch
from shared.blocks import built, conv_block
from shared.config import (
    CampaignConfig,
    DataConfig,
    DegradeConfig,
    EnhancerConfig,
    IngestConfig,
    IntensityConfig,
    MachineConfig,
    ObjectiveConfig,
    RecogniserConfig,
    RoundsConfig,
    StrategyConfig,
    TrainingConfig,
)
from shared.enhance.losses import enhancement_loss
from shared.networks import Networks, placed
from shared.recognise.losses import labelled, recognition_loss
from shared.recognise.networks import Recognition
from shared.seeding import generator
from simulation.bench import Case

SLACK = 1.05
WIDTH, SIDE, BATCH = 32, 32, 8
BLOCKS = {"1:1": (4, 4), "1:2": (3, 6), "2:1": (6, 3)}
"""Enhancer and recogniser blocks of each case."""
REPETITIONS, WARM_UP = 40, 4

Form = Callable[[Networks, Batch, Share, CampaignConfig], Gradients]


class StackEnhancer(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem = conv_block(1, WIDTH)
        self.blocks = nn.Sequential(*(conv_block(WIDTH, WIDTH) for _ in range(blocks)))
        self.end = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        enhanced_BCHW: Tensor = image_BCHW + self.end(self.blocks(self.stem(image_BCHW)))
        return enhanced_BCHW


class StackRecogniser(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem = conv_block(1, WIDTH)
        self.blocks = nn.Sequential(*(conv_block(WIDTH, WIDTH) for _ in range(blocks)))
        self.end = nn.Conv2d(WIDTH, 3, 1)

    def forward(self, image_BCHW: Tensor) -> Recognition:
        features_BCHW = self.blocks(self.stem(image_BCHW))
        return Recognition(self.end(features_BCHW), None, [features_BCHW])


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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_case(name, *blocks) for name, blocks in BLOCKS.items()]
    finally:
        torch.set_num_threads(threads)


def _case(name: str, enhancer_blocks: int, recogniser_blocks: int) -> Case:
    times = measured(enhancer_blocks, recogniser_blocks, repetitions=REPETITIONS)
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
    campaign, batch = _campaign(), _batch()
    sides = [_side(campaign, enhancer_blocks, recogniser_blocks) for _ in range(2)]
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
    seconds: dict[str, list[float]] = {name: [] for name in watched}
    for repetition in range(WARM_UP + repetitions):
        # Every other time in reverse, so that neither form always finds the other's caches.
        for name in list(watched)[:: 1 if repetition % 2 else -1]:
            began = time.process_time()
            watched[name]()
            seconds[name].append(time.process_time() - began)
    return Times(**{name: statistics.median(values[WARM_UP:]) for name, values in seconds.items()})


def _side(campaign: CampaignConfig, enhancer_blocks: int, recogniser_blocks: int) -> tuple[Networks, Optimisers]:
    networks = Networks(
        built(lambda: StackEnhancer(enhancer_blocks), 0, "bench", "enhancer"),
        built(lambda: StackRecogniser(recogniser_blocks), 0, "bench", "recogniser"),
    )
    placed(networks, MachineConfig(device="cpu", threads=1))  # as training does
    optimisers = Optimisers(
        gradprom.make_optimiser(networks.enhancer, campaign), gradprom.make_optimiser(networks.recogniser, campaign)
    )
    return networks, optimisers


def _batch() -> Batch:
    rng = generator(0, "bench", "gradprom-step-naive")
    clean_BCHW = torch.rand(BATCH, 1, SIDE, SIDE, generator=rng)
    degraded_BCHW = clean_BCHW + 0.1 * torch.randn(clean_BCHW.shape, generator=rng)
    mask_BHW = torch.randint(0, 3, (BATCH, SIDE, SIDE), generator=rng)
    return Batch(degraded_BCHW, clean_BCHW, mask_BHW, torch.ones(BATCH, dtype=torch.bool), torch.full((BATCH,), -1))


def _campaign() -> CampaignConfig:
    window = IntensityConfig(rule="window", low=-160, high=240)
    return CampaignConfig(
        name="bench",
        seed=0,
        data=DataConfig(
            kind="phantom", ingest=IngestConfig(modalities=("CT",), intensity=window), masks=("organ", "lesion")
        ),
        degrade=DegradeConfig(kind="gaussian"),
        enhance=EnhancerConfig(kind="cnn3"),
        recognise=RecogniserConfig(kind="unet"),
        objective=ObjectiveConfig(kind="gradprom"),
        training=TrainingConfig(),
        strategy=StrategyConfig(kind="fedavg"),
        rounds=RoundsConfig(),
    )
