"""SelfReg's cost; cases out.

    random    semantic consistency, forward and backward to seven maps of 32 to 256 channels
              ours    the mean form: nothing is drawn, no channel is copied; its gradient is written down
              rival   the random form, as released
    step      a whole training step of the U-Net: forward, losses on labels, gradients, clipping, optimiser
              ours    with both parts of SelfReg at their published weights
              rival   without

The maps are those of the released U-Net (five levels, bilinear, so that the deepest has as many channels as the level
above) at half its width and 64 x 64 pixels, in the memory order of training. Networks and step:
simulation/bench/recognisers.py; clock: simulation/bench/steps.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from client.train.selfreg import scr
from client.train.terms import supervised
from shared.batch import Batch
from shared.config import RecogniserConfig, SelfRegConfig
from shared.seeding import generator
from simulation.bench import Case, recognisers, steps

TARGETS = {"random": 0.45, "step": 1.05}
WEIGHT = 0.015
MAPS = ((64, 32), (128, 16), (256, 8), (256, 4), (128, 8), (64, 16), (32, 32))
"""(channels, side) of encoder blocks 2 to 4, the deepest, and decoder blocks from coarse to fine."""
TEACHER = (32, 64)
Pair = tuple[Callable[[], object], Callable[[], object]]


def run() -> list[Case]:
    """Both cases."""
    with steps.one_thread():
        return [_case("random", *consistency()), _case("step", *step())]


def consistency() -> Pair:
    """Ours and the rival; both return the gradients of the seven maps."""
    rng = generator(0, "bench", "selfreg")
    *students, teacher_BCHW = (
        torch.randn(recognisers.STREAM, channels, side, side, generator=rng)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for channels, side in (*MAPS, TEACHER)
    )

    def gradients(drawn: torch.Generator | None) -> tuple[Tensor, ...]:
        return torch.autograd.grad(scr(students, teacher_BCHW, drawn), students)

    return partial(gradients, None), partial(gradients, rng)


def step() -> Pair:
    """Ours and the rival, each on a network of its own."""
    network = RecogniserConfig(kind="unet")
    clean_BCHW, mask_BHW = recognisers.images(recognisers.STREAM)
    has_mask_B, diagnosis_B = torch.ones(len(clean_BCHW), dtype=torch.bool), torch.arange(len(clean_BCHW)) % 2
    batch = Batch(clean_BCHW, clean_BCHW, mask_BHW, has_mask_B, diagnosis_B)
    batch = batch.to(torch.device("cpu"), channels_last=recognisers.MACHINE.channels_last)

    def stepping(selfreg: SelfRegConfig) -> Callable[[], None]:
        side = recognisers.built(recognisers.campaign(network, selfreg=selfreg))
        return lambda: recognisers.step(side, batch, supervised(side.campaign))

    return stepping(SelfRegConfig(consistency_weight=WEIGHT, distillation_weight=WEIGHT)), stepping(SelfRegConfig())


def _case(name: str, ours: Callable[[], object], rival: Callable[[], object]) -> Case:
    times = steps.medians({"ours": ours, "rival": rival}, repetitions=steps.REPETITIONS)
    ratio = times["ours"] / times["rival"]
    target = TARGETS[name]
    return {"bench": "selfreg", "case": name} | times | {"ratio": ratio, "target": target, "holds": ratio <= target}
