"""Which weights a campaign with privacy trains: privacy.trained = all, lastblocks or norms.

    all         every weight
    lastblocks  enhancer: the last LAST_BLOCKS convolutions with what follows each, and the end, as an adaptation's
                method=lastblocks has them; recogniser: the heads and the finest stage of the decoder
    norms       scales and shifts of the norms (as FedBN's, https://arxiv.org/abs/2102.07623, and read the other way
                round: these alone travel)

Noise is drawn per weight and the signal is not, so a part of a hundredth of the weights drowns ten times less.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from shared.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from shared.config import CampaignConfig, MachineConfig
    from shared.networks import Networks

LAST_BLOCKS = 1
_HEADS = ("up.0.", "mask_head.", "mask_heads.", "diagnosis_head.")
"""Of every recogniser: its decoder counts its stages from the finest."""


@contextmanager
def only_trained(networks: Networks, campaign: CampaignConfig, machine: MachineConfig) -> Iterator[MachineConfig]:
    """Inside, only what the campaign trains wants a gradient. Gives the machine to train on: where a beginning is left
    out not in channels-last memory, in which torch's GroupNorm crashes when its weights need a gradient and its input
    does not. Raises ConfigError where nothing is left to train, RefusedError for BatchNorm."""
    names = trained_names(networks, campaign)
    parameters = [
        (f"{part}.{name}", parameter)
        for part, network in networks.all.items()
        for name, parameter in network.named_parameters()
    ]
    wanted = [parameter.requires_grad for _, parameter in parameters]
    try:
        for name, parameter in parameters:
            parameter.requires_grad_(name in names)
        yield machine if campaign.privacy.trained == "all" else replace(machine, channels_last=False)
    finally:
        for (_, parameter), before in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(before)


def trained_names(networks: Networks, campaign: CampaignConfig) -> frozenset[str]:
    """Names of arrays (shared.weights) that the campaign trains; the others travel as a difference of 0."""
    for network in networks.all.values():
        _refuse_batch_norm(network)
    if campaign.privacy.trained == "all":
        return frozenset(
            _named("enhancer", networks.enhancer, ("",)) + _named("recogniser", networks.recogniser, ("",))
        )
    if campaign.privacy.trained == "norms":
        parts = {"enhancer": _norms(networks.enhancer), "recogniser": _norms(networks.recogniser)}
    else:
        parts = {"enhancer": _last_blocks(networks.enhancer, campaign.data.channels), "recogniser": _HEADS}
    chosen: list[str] = []
    for part, prefixes in parts.items():
        network = networks.all[part]
        names = _named(part, network, prefixes)
        if not names and any(True for _ in network.parameters()):
            raise ConfigError(
                f"privacy.trained={campaign.privacy.trained} leaves nothing of the {part} to train; choose all"
            )
        chosen += names
    return frozenset(chosen)


def trained_counts(networks: Networks, campaign: CampaignConfig) -> tuple[int, int]:
    """How many weights the campaign trains of the enhancer and of the recogniser."""
    names = trained_names(networks, campaign)
    counts = {
        part: sum(each.numel() for name, each in networks.all[part].named_parameters() if f"{part}.{name}" in names)
        for part in ("enhancer", "recogniser")
    }
    return counts["enhancer"], counts["recogniser"]


def _named(part: str, network: nn.Module, prefixes: tuple[str, ...]) -> list[str]:
    return [f"{part}.{name}" for name, _ in network.named_parameters() if name.startswith(prefixes)]


def _norms(network: nn.Module) -> tuple[str, ...]:
    from shared.enhance.kernels import NORMS

    return tuple(f"{name}." for name, module in network.named_modules() if isinstance(module, NORMS))


def _last_blocks(enhancer: nn.Module, channels: int) -> tuple[str, ...]:
    from shared.enhance.kernels import last_modules, wiring

    if not any(True for _ in enhancer.parameters()):
        return ()
    return tuple(f"{name}." for name in last_modules(enhancer, wiring(enhancer, channels), LAST_BLOCKS))


def _refuse_batch_norm(network: nn.Module) -> None:
    from torch.nn.modules.batchnorm import _BatchNorm

    from shared.errors import RefusedError

    if any(isinstance(module, _BatchNorm) for module in network.modules()):
        raise RefusedError(
            "differential privacy needs networks in which no image meets another, and this one has BatchNorm, whose "
            "statistics no clipping bounds; choose networks with GroupNorm"
        )
