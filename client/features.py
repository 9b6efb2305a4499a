"""A recogniser and an image in; how alike the channels of its blocks are, and where each block is active, out.

    similarity   cosine of every pair of channels over the image, C x C
    attention    the mean over the channels of |feature|^2, divided by its sum over the image
                 Zagoruyko, Komodakis. 2017. https://arxiv.org/abs/1612.03928
    gates        recognise=attention-unet: what each gate multiplies its skip with (shared/recognise/attention.py)

SelfReg-UNet (Zhu et al. 2024, https://arxiv.org/abs/2406.14896) finds channels of one block that say the same, and
shallow blocks that look elsewhere than deep ones: both can be seen here, before and after training. The features come
with the recogniser's answer; no hook is registered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from client.reading import reading, recognised
from shared.config import MachineConfig
from shared.networks import Networks
from shared.recognise.attention import AttentionUNetRecogniser
from shared.recognise.recognition import Recognition

MOST_CHANNELS = 32
"""More cannot be told apart in a picture; of more, channels at even distances are shown."""

Map = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Of one image; blocks in the order in which the network has them."""

    similarity: Mapping[str, Map]
    """shallow (the first encoder block), deep (the deepest), last (the last decoder block), those there are -> C x C,
    at most MOST_CHANNELS of them, -1 to 1; 0 for a channel that is 0 everywhere."""
    attention: Mapping[str, Map]
    """encoder 1..., deepest, decoder 1... -> (h, w) at the block's own size, sum 1; 0 for a block that is silent."""
    gates: Mapping[str, Map]
    """gate 1... from coarse to fine -> (h, w) at its skip's size, 0 to 1; empty for kinds without gates."""


def features_of(networks: Networks, image_CHW: Tensor, machine: MachineConfig) -> Features:
    """What the recogniser's blocks say of an image as it is given to it; networks and modes are as before."""
    with reading(networks, machine) as device, torch.no_grad():
        image_1CHW = image_CHW[None].to(device)
        recognition = recognised(networks.recogniser, image_1CHW, machine)
        gated = isinstance(networks.recogniser, AttentionUNetRecogniser)
        maps = networks.recogniser.attention_maps(image_1CHW) if gated else []  # type: ignore[operator]
    gates = {f"gate {number}": psi_B1HW[0, 0].float().cpu().numpy() for number, psi_B1HW in enumerate(maps, start=1)}
    compared = {name: similarity_CC(block_BCHW[0]) for name, block_BCHW in _ends(recognition).items()}
    looked = {name: attention_HW(block_BCHW[0]) for name, block_BCHW in blocks(recognition).items()}
    return Features(compared, looked, gates)


def blocks(recognition: Recognition) -> dict[str, Tensor]:
    """Every block's features by name, from the first encoder block to the last of the decoder."""
    deepest_BCHW, *decoder = recognition.features
    encoded = {f"encoder {number}": skip for number, skip in enumerate(recognition.skips, start=1)}
    return {**encoded, "deepest": deepest_BCHW, **{f"decoder {n}": block for n, block in enumerate(decoder, start=1)}}


def _ends(recognition: Recognition) -> dict[str, Tensor]:
    shallow = {"shallow": recognition.skips[0]} if recognition.skips else {}
    last = {"last": recognition.features[-1]} if len(recognition.features) > 1 else {}
    return {**shallow, "deep": recognition.features[0], **last}


def similarity_CC(features_CHW: Tensor, most: int = MOST_CHANNELS) -> Map:
    """Cosine of each channel with each, of at most `most` channels at even distances (both halves keep their part)."""
    channels = features_CHW.shape[0]
    shown = torch.arange(min(channels, most), device=features_CHW.device) * channels // min(channels, most)
    unit_CP = F.normalize(features_CHW[shown].flatten(1).double(), dim=1)
    cosine_CC: Map = (unit_CP @ unit_CP.T).clamp(-1, 1).float().cpu().numpy()
    return cosine_CC


def redundancy(similarity: Map) -> float:
    """Mean |cosine| over pairs of different channels: 1 where all say the same; NaN for a single channel."""
    channels = len(similarity)
    if channels < 2:
        return float("nan")
    apart = ~np.eye(channels, dtype=bool)
    return float(np.abs(similarity[apart]).mean())


def attention_HW(features_CHW: Tensor) -> Map:
    """Where a block is active: a map that sums to 1."""
    energy_HW = features_CHW.double().square().mean(0)
    total = energy_HW.sum()
    found_HW: Map = torch.where(total > 0, energy_HW / total, 0.0).float().cpu().numpy()
    return found_HW
