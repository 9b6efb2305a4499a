"""One step of a generator's training: a batch in, the weights of its phase moved, what happened out.

The rules are those of client/train/local.py: a batch that does not fit in a GPU's memory is repeated in parts of half
the size, whose gradients add up to those of the whole; FedProx's pull is part of g, before the gate; clipping is of d.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor, nn

from client.train import gradprom
from client.train.emitdiff import Found, gradients
from client.train.optimiser import Optimiser
from client.train.shown import Latents, Pictures, parts, size_of
from client.train.taskdriven import both_gradients, labels_of_early, steered
from shared.config import CampaignConfig, MachineConfig
from shared.errors import ConfigError
from shared.generate.networks import Generator


@dataclass(frozen=True, slots=True, eq=False)
class StepRecord:
    """0-dim tensors on the device."""

    loss: Tensor
    finite: Tensor
    task: Mapping[str, Tensor]


def batch_gradients(
    generator: Generator,
    theta: list[nn.Parameter],
    campaign: CampaignConfig,
    machine: MachineConfig,
    batch: Pictures | Latents,
    recogniser: nn.Module | None,
    micro_size: int,
) -> tuple[Found, int]:
    """Of the whole batch, and the size of the parts that it fitted in memory with."""
    size = size_of(batch)

    def of_part(part: Pictures | Latents) -> Found:
        share = size_of(part) / size
        if recogniser is None:
            return gradients(generator, theta, campaign.generate, part, share)
        assert isinstance(part, Latents)
        assert isinstance(batch, Latents)
        return both_gradients(generator, recogniser, theta, campaign, part, share, labels_of_early(batch))

    def sum_of_parts() -> Found | None:
        device = batch.noise_BCHW.device
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=machine.precision == "bfloat16")
        with contextlib.suppress(torch.OutOfMemoryError), autocast:
            return reduce(operator.add, (of_part(part) for part in parts(batch, micro_size)))
        return None

    # The retry is outside of the function that failed: its frame would keep the failed step's tensors alive.
    while (total := sum_of_parts()) is None:
        if micro_size == 1:
            raise ConfigError("one image does not fit in the device's memory; choose generate.size=S or device=cpu")
        micro_size = max(1, min(micro_size, size) // 2)
        if batch.noise_BCHW.device.type == "cuda":
            torch.cuda.empty_cache()
    return total, micro_size


def update(
    theta: list[nn.Parameter],
    optimiser: Optimiser,
    found: Found,
    campaign: CampaignConfig,
    start_D: Tensor | None,
    *,
    check: bool,
) -> StepRecord:
    """Pull back (FedProx), gate, clip, step. With `check`, raises DataError before anything moves."""
    g_D = found.g_D
    if start_D is not None:
        g_D = g_D + campaign.strategy.proximal_mu * (gradprom.flat(theta) - start_D)
    d_D, task = g_D, dict[str, Tensor]()
    finite = torch.isfinite(found.loss)
    if found.v_D is not None and found.task_loss is not None:
        steer = steered(replace(found, g_D=g_D), campaign, [parameter.numel() for parameter in theta])
        d_D = steer.d_D
        finite = finite & torch.isfinite(found.v_D).all()
        added = torch.linalg.vector_norm(steer.added_D) / torch.linalg.vector_norm(g_D).clamp(min=_TINY)
        task = {"loss_task": found.task_loss, "gate_open_rate": steer.gate_open, "mean_cosine": steer.cosine,
                "added_share": added}  # fmt: skip
    d_D, norm_d = gradprom.clipped(d_D, campaign.training.clip_norm)
    finite = finite & torch.isfinite(norm_d)
    if check:
        gradprom.require_finite(finite)
    gradprom.assign(theta, d_D)
    optimiser.step()
    return StepRecord(found.loss, finite, task)


_TINY = torch.finfo(torch.float32).tiny


def means(records: list[StepRecord]) -> dict[str, float]:
    """Of each column over the steps."""
    found = {"loss": float(torch.stack([record.loss for record in records]).mean())}
    for name in records[0].task:
        found[name] = float(torch.stack([record.task[name] for record in records]).mean())
    return found
