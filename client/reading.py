"""Networks and slices in; what the recogniser reads in every slice out: masks, probabilities of diagnoses, Dice.

A campaign with an enhancer shows its images in three states; without one, degraded and clean are left, and without a
degradation either there is one image. `judged` is the state that a campaign is about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from client.batches import evaluation_batches
from client.dataset import Slices
from shared.batch import Batch
from shared.config import CampaignConfig, MachineConfig
from shared.enhance.consistency import enhanced_image
from shared.networks import Networks, placed
from shared.recognise.metrics import dice_BK, mean_over_classes
from shared.recognise.recognition import Recognition

BATCH_SIZE = 32

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """N slices in one state of the image, and what is read in them; all on the CPU."""

    image_NCHW: Tensor
    found_NHW: Tensor | None
    """uint8 codes of the predicted masks; None for a campaign without masks."""
    probabilities_NK: Values | None
    """Of the campaign's diagnoses; None without them."""


def states_of(campaign: CampaignConfig) -> tuple[str, ...]:
    """The states of an image that differ from each other, clean last."""
    if campaign.enhance.kind != "none":
        return ("degraded", "enhanced", "clean")
    return ("clean",) if campaign.degrade.kind == "none" else ("degraded", "clean")


def judged(campaign: CampaignConfig) -> str:
    """The state that the recogniser is judged on."""
    states = states_of(campaign)
    return states[-2] if len(states) > 1 else states[0]


def read(networks: Networks, slices: Slices, campaign: CampaignConfig, machine: MachineConfig) -> Mapping[str, Reading]:
    """State -> what is read in it, with the degradation that `evaluate` uses; networks and modes are as before."""
    parts: dict[str, list[Reading]] = {state: [] for state in states_of(campaign)}
    with reading(networks, machine) as device, torch.no_grad():
        for batch in evaluation_batches(slices, campaign, BATCH_SIZE):
            images = images_of(networks, batch.to(device, channels_last=machine.channels_last), machine)
            for state, of_state in parts.items():
                of_state.append(_read(images[state], recognised(networks.recogniser, images[state], machine)))
    return {state: joined(of_state) if of_state else _nothing(slices) for state, of_state in parts.items()}


@contextmanager
def reading(networks: Networks, machine: MachineConfig) -> Iterator[torch.device]:
    """Both networks as they judge, on the machine's device; afterwards each in the mode that it was in."""
    device = placed(networks, machine)
    modes = [(network, network.training) for network in (networks.enhancer, networks.recogniser)]
    try:
        for network, _ in modes:
            network.eval()
        yield device
    finally:
        for network, training in modes:
            network.train(training)


def images_of(networks: Networks, batch: Batch, machine: MachineConfig) -> dict[str, Tensor]:
    """Every state of a batch's images; enhanced ones are clamped, as they are when they are written to DICOM."""
    with torch.autocast(batch.clean_BCHW.device.type, torch.bfloat16, enabled=machine.precision == "bfloat16"):
        enhanced_BCHW = enhanced_image(networks.enhancer, batch).float().clamp(0, 1)
    return {"clean": batch.clean_BCHW, "degraded": batch.degraded_BCHW, "enhanced": enhanced_BCHW}


def recognised(recogniser: nn.Module, image_BCHW: Tensor, machine: MachineConfig) -> Recognition:
    with torch.autocast(image_BCHW.device.type, torch.bfloat16, enabled=machine.precision == "bfloat16"):
        recognition: Recognition = recogniser(image_BCHW)
    return recognition


def _read(image_BCHW: Tensor, recognition: Recognition) -> Reading:
    """What is kept of a batch: without the features, which are many times its size."""
    masks, logits_BK = recognition.mask_logits_BKHW, recognition.diagnosis_logits_BN
    return Reading(
        image_BCHW.cpu(),
        None if masks is None else masks.argmax(1).byte().cpu(),
        None if logits_BK is None else logits_BK.double().softmax(1).cpu().numpy(),
    )


def _nothing(slices: Slices) -> Reading:
    return Reading(slices.clean_NCHW, None, None)


def joined(readings: Sequence[Reading]) -> Reading:
    """Readings of one state, one after the other."""
    masks = [part.found_NHW for part in readings if part.found_NHW is not None]
    probabilities = [part.probabilities_NK for part in readings if part.probabilities_NK is not None]
    return Reading(
        torch.cat([part.image_NCHW for part in readings]),
        torch.cat(masks) if masks else None,
        np.concatenate(probabilities) if probabilities else None,
    )


def dice_of(read_as: Reading, slices: Slices, campaign: CampaignConfig) -> Values:
    """Each slice's mean Dice over the classes; NaN where there is no mask to compare with."""
    if read_as.found_NHW is None:
        return np.full(len(slices), np.nan)
    dice_NK = dice_BK(read_as.found_NHW, slices.mask_NHW, len(campaign.masks))
    dice_NK[~slices.has_mask_N] = torch.nan
    return mean_over_classes(dice_NK.double().numpy())


def true_probability(read_as: Reading, slices: Slices) -> Values:
    """What is given to each slice's true diagnosis; NaN where that is not known."""
    if read_as.probabilities_NK is None:
        return np.full(len(slices), np.nan)
    diagnosis_N = slices.diagnosis_N.numpy()
    given_N = read_as.probabilities_NK[np.arange(len(slices)), np.maximum(diagnosis_N, 0)]
    return np.where(diagnosis_N >= 0, given_N, np.nan)


def taken(slices: Slices, indices: Sequence[int]) -> Slices:
    """Some of the slices, in the order asked for; identities go with them, and so does their degradation. Synthetic
    images do not."""
    chosen = torch.tensor(list(indices), dtype=torch.int64)
    parts: dict[str, Any] = {
        each.name: value[chosen] for each in fields(slices) if isinstance(value := getattr(slices, each.name), Tensor)
    }
    identity = tuple(slices.identity[index] for index in indices)
    acquired = tuple(slices.acquired[index] for index in indices) if slices.acquired else ()
    return replace(slices, **parts, identity=identity, acquired=acquired, synthetic=None)
