"""What the benches of a training step share: networks whose costs stand in a given ratio, a batch, and the clock.

The networks are stacks of one convolution block, so that enhancer : recogniser is the case's ratio by construction;
the forward times that were measured stand beside it. Forms are run in turn in one process on one thread and compared
by the median of their processor times: on one thread that is the wall time, less what other programs took.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from client.train import gradprom
from client.train.gradprom import Optimisers
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
from shared.networks import Networks, placed
from shared.recognise.recognition import Recognition
from shared.seeding import generator

WIDTH, SIDE, BATCH = 32, 32, 8
BLOCKS = {"1:1": (4, 4), "1:2": (3, 6), "2:1": (6, 3)}
"""Enhancer and recogniser blocks of each case."""
REPETITIONS, WARM_UP = 40, 4


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


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread inside, as before outside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def side(
    campaign: CampaignConfig, enhancer_blocks: int, recogniser_blocks: int, *, channels_last: bool = True
) -> tuple[Networks, Optimisers]:
    """Networks and optimisers of one form; every form starts from the same weights."""
    networks = Networks(
        built(lambda: StackEnhancer(enhancer_blocks), 0, "bench", "enhancer"),
        built(lambda: StackRecogniser(recogniser_blocks), 0, "bench", "recogniser"),
    )
    placed(networks, MachineConfig(device="cpu", threads=1, channels_last=channels_last))  # as training does
    optimisers = Optimisers(
        gradprom.make_optimiser(networks.enhancer, campaign), gradprom.make_optimiser(networks.recogniser, campaign)
    )
    return networks, optimisers


def batch(seed: int = 0) -> Batch:
    """Smooth fields with noise on them; the mask is the field's own two levels, so that there is something to learn."""
    rng = generator(seed, "bench", "gradprom-step")
    coarse_BCHW = torch.randn(BATCH, 1, SIDE // 8, SIDE // 8, generator=rng)
    clean_BCHW = F.interpolate(coarse_BCHW, size=(SIDE, SIDE), mode="bicubic").sigmoid()
    degraded_BCHW = clean_BCHW + 0.1 * torch.randn(clean_BCHW.shape, generator=rng)
    mask_BHW = (clean_BCHW[:, 0] > 0.5).long() + (clean_BCHW[:, 0] > 0.7).long()
    return Batch(degraded_BCHW, clean_BCHW, mask_BHW, torch.ones(BATCH, dtype=torch.bool), torch.full((BATCH,), -1))


def medians(watched: Mapping[str, Callable[[], object]], *, repetitions: int) -> dict[str, float]:
    """Median seconds of processor time of each, over interleaved repetitions."""
    seconds: dict[str, list[float]] = {name: [] for name in watched}
    for repetition in range(WARM_UP + repetitions):
        # Every other time in reverse, so that neither form always finds the other's caches.
        for name in list(watched)[:: 1 if repetition % 2 else -1]:
            began = time.process_time()
            watched[name]()
            seconds[name].append(time.process_time() - began)
    return {name: statistics.median(values[WARM_UP:]) for name, values in seconds.items()}


def campaign() -> CampaignConfig:
    """Only its objective and training are read."""
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
