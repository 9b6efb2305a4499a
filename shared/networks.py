"""A campaign in, its networks out: what every site trains and the coordinator averages."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from shared.config import CampaignConfig, MachineConfig
from shared.enhance.networks import build_enhancer
from shared.errors import ConfigError
from shared.recognise.networks import build_recogniser
from shared.recognise.saliency import bridge_of

if TYPE_CHECKING:
    from shared.generate.networks import Generator


@dataclass(frozen=True, slots=True, eq=False)
class Networks:
    """All networks, on one device. The value is frozen; the weights inside are what training moves."""

    enhancer: nn.Module
    recogniser: nn.Module
    critic: nn.Module | None = None
    """The adversary of a WGAN objective; it travels and is averaged like the others, so that sites keep no state."""
    prior: MaskPrior | None = None
    """learn.mask_ssl=federated: the mean map over all sites that have masks; no optimiser moves it."""

    @property
    def all(self) -> dict[str, nn.Module]:
        critic = {} if self.critic is None else {"critic": self.critic}
        prior = {} if self.prior is None else {"prior": self.prior}
        return {"enhancer": self.enhancer, "recogniser": self.recogniser, **critic, **prior}


class MaskPrior(nn.Module):
    """The mean of masks over patients, (K, H, W): at each pixel the share of each class; 0 everywhere while unknown.

    It travels as weights do: a site answers with the difference between its own mean map and the one that came.
    """

    def __init__(self, num_masks: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.map_KHW: Tensor
        self.register_buffer("map_KHW", torch.zeros(1 + num_masks, *size))

    @property
    def known(self) -> bool:
        return bool(self.map_KHW.any())


def build_networks(campaign: CampaignConfig) -> Networks:
    """The campaign's networks on the CPU with weights drawn from `campaign.seed`; no global generator is touched."""
    data = campaign.data
    return Networks(
        enhancer=build_enhancer(campaign.enhance, data.channels, campaign.seed),
        recogniser=build_recogniser(
            campaign.recognise,
            data.channels,
            len(campaign.masks),
            len(campaign.diagnoses),
            campaign.seed,
            bridge=bridge_of(campaign.learn),
        ),
        critic=_critic(campaign) if campaign.objective.adversarial else None,
        prior=MaskPrior(len(campaign.masks), data.image_size) if _shares_prior(campaign) else None,
    )


def _shares_prior(campaign: CampaignConfig) -> bool:
    return bool(campaign.masks) and campaign.learn.mask_ssl == "federated"


def _critic(campaign: CampaignConfig) -> nn.Module:
    from shared.enhance.critic import build_critic

    data = campaign.data
    return build_critic(campaign.objective.critic, data.channels, data.image_size, campaign.seed)


def placed(networks: Networks | Generator, machine: MachineConfig) -> torch.device:
    """Move the networks (in place) to the machine's device and memory format; fixes the number of threads.

    The number of threads is part of what makes a run repeat bit for bit: sums are split by thread.
    Raises ConfigError when the device does not exist here.
    """
    device = resolved_device(machine)
    if torch.get_num_threads() != machine.threads:
        torch.set_num_threads(machine.threads)
    if device.type == "cpu":
        keep_freed_memory()
    last = machine.channels_last if isinstance(networks, Networks) else generator_channels_last(machine, device)
    memory_format = torch.channels_last if last else torch.contiguous_format
    for network in networks.all.values():
        network.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    return device


def generator_channels_last(machine: MachineConfig, device: torch.device) -> bool:
    """The memory order of a generator's networks and of what they read: on CPUs never channels last, which costs a step
    on their small maps 3 to 9 % (bench controlnet-step)."""
    return machine.channels_last and device.type != "cpu"


def keep_freed_memory() -> None:
    """Let glibc keep up to 256 MB of freed memory, where there is glibc.

    A step on the CPU frees and takes the same megabytes again; handed back to the kernel in between, they come back as
    page faults, which cost a fifth of a step. The numbers are those of malloc.h; others than glibc ignore them.
    """
    if not sys.platform.startswith("linux"):
        return
    trim_threshold, mmap_threshold = -1, -3
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(mmap_threshold, 32 * 2**20)
    mallopt(trim_threshold, 256 * 2**20)


def resolved_device(machine: MachineConfig) -> torch.device:
    """`auto` takes the first GPU, else the CPU; raises ConfigError for a device that is not here."""
    if machine.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(machine.device)
    except RuntimeError:
        raise ConfigError(f"machine.device must be auto, cpu, cuda, cuda:N or mps, got {machine.device!r}") from None
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device.type, False):
        raise ConfigError(f"machine.device={machine.device} is not on this machine; choose machine.device=cpu or auto")
    return device
