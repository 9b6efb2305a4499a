"""Networks and slices in; where the recogniser looked, in every state of the image and behind each diagnosis, out.

    saliency     |d score / d image|, the largest over the channels
                 Simonyan, Vedaldi, Zisserman. Deep Inside Convolutional Networks. 2014. https://arxiv.org/abs/1312.6034
    activation   Grad-CAM, ReLU(sum over k of mean(d score / d A_k) * A_k), A the deepest features
                 Selvaraju et al. Grad-CAM. 2017. https://arxiv.org/abs/1610.02391
                 of a segmentation: Seg-Grad-CAM. Vinogradova, Dibrov, Myers. 2020. https://arxiv.org/abs/2002.11434
    error        |image - clean|, the mean over the channels

Two tasks, two scores: `masks` sums the logits of the foreground that was predicted on that very image; `diagnosis` is
the logit of one diagnosis, the same for all states of the image: the true one, else the one that the clean image is
read as. A saliency bridge is part of the network that is explained, but no gradient goes through its saliency.

    behind       what stands behind a diagnosis: |d highest class score / d image|; where there is a saliency bridge, as
                 it entered the decoder (shared/recognise/saliency.py)

The recogniser hands out its features with its answer, so the gradient is asked for by name: no hook is registered and
no parameter gets a `.grad`. A simulation shows what comes of this; a deployed site's pictures never leave it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from client.batches import evaluation_batch
from client.dataset import Slices
from client.reading import Reading, images_of, reading, recognised, states_of
from shared.config import CampaignConfig, MachineConfig
from shared.networks import Networks
from shared.recognise.recognition import Recognition
from shared.recognise.saliency import bridged, saliency_from_graph

Images = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Maps:
    """One task's maps on one state of N images, and what can be checked about them."""

    saliency_NHW: Images
    """In logits per unit of the campaign's intensity scale."""
    activation_NHW: Images
    """0 to 1, where 1 is the largest value of the slice over all of its states."""
    saliency_inside_N: Images
    """Share of the map's sum that lies inside the true foreground; NaN without a foreground, or for a map of zeros."""
    activation_inside_N: Images


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Of N slices, in the order asked for."""

    maps: Mapping[str, Mapping[str, Maps]]
    """Task (masks, diagnosis: those that the campaign has) -> state of the image (those it has) -> maps."""
    error_NHW: Mapping[str, Images]
    """Of the degraded and of the enhanced image where there are such, on the campaign's intensity scale."""
    area_N: Images
    """Share of the image that the true foreground covers: what a map that looks nowhere in particular has inside it.
    NaN without a foreground."""
    asked_N: npt.NDArray[np.int64]
    """Code of the diagnosis whose logit was explained; -1 in a campaign without diagnoses."""


def explain(
    networks: Networks, slices: Slices, indices: Sequence[int], campaign: CampaignConfig, machine: MachineConfig
) -> Explanation:
    """Explain the given slices, with the degradation that `evaluate` uses; networks and modes are as before."""
    chosen = torch.tensor(list(indices), dtype=torch.int64)
    raw: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    with reading(networks, machine) as device:
        batch = evaluation_batch(slices, campaign, chosen).to(device, channels_last=machine.channels_last)
        with torch.no_grad():
            every = images_of(networks, batch, machine)
        images = {state: every[state] for state in states_of(campaign)}
        asked_N = _asked(networks.recogniser, images["clean"], slices.diagnosis_N[chosen].to(device), machine)
        for state, image_NCHW in images.items():
            for task, maps in _maps(networks.recogniser, image_NCHW, asked_N, machine).items():
                raw.setdefault(task, {})[state] = maps
    foreground_NHW = slices.mask_NHW[chosen] > 0
    return Explanation(
        maps={task: _judged(of_states, foreground_NHW) for task, of_states in raw.items()},
        error_NHW={
            state: (image_NCHW - images["clean"]).abs().mean(1).cpu().numpy()
            for state, image_NCHW in images.items()
            if state != "clean"
        },
        area_N=_inside(torch.ones_like(foreground_NHW, dtype=torch.float32), foreground_NHW),
        asked_N=asked_N.cpu().numpy(),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Behind:
    """What stands behind one diagnosis, on one slice that is read as it."""

    code: int
    index: int
    """Of the slice among those asked about."""
    probability: float
    """That the recogniser gives to the diagnosis."""
    saliency_HW: Images
    """At the size at which it entered the decoder; without a bridge, the image's own."""
    bridge: bool


def behind_diagnoses(
    networks: Networks, slices: Slices, read_as: Reading, campaign: CampaignConfig, machine: MachineConfig
) -> tuple[Behind, ...]:
    """For each diagnosis the slice of median probability among those that are read as it; none where none is.

    `read_as` is what client.reading.read says of these slices in the campaign's judged state.
    """
    found = []
    for code in range(len(campaign.diagnoses)):
        index = typical(read_as, code)
        if index is not None:
            assert read_as.probabilities_NK is not None
            saliency_HW, bridge = saliency_behind(networks, read_as.image_NCHW[index], machine)
            probability = float(read_as.probabilities_NK[index, code])
            found.append(Behind(code, index, probability, saliency_HW, bridge))
    return tuple(found)


def typical(read_as: Reading, code: int) -> int | None:
    """Of the slices that are read as `code`, the one whose probability is the median; None if there is no such."""
    if read_as.probabilities_NK is None:
        return None
    said = np.flatnonzero(read_as.probabilities_NK.argmax(1) == code)
    ranked = said[np.argsort(read_as.probabilities_NK[said, code], kind="stable")]
    return int(ranked[len(ranked) // 2]) if ranked.size else None


def saliency_behind(networks: Networks, image_CHW: Tensor, machine: MachineConfig) -> tuple[Images, bool]:
    """The saliency of the diagnosis that an image is read as, and whether a bridge took it into the decoder."""
    recogniser = networks.recogniser
    bridge = getattr(recogniser, "saliency", None)  # kinds without a bridge have no such attribute
    with reading(networks, machine) as device, torch.enable_grad():
        image_1CHW = image_CHW[None].to(device).detach().requires_grad_()
        if bridge is None:
            logits_1N = recognised(recogniser, image_1CHW, machine).diagnosis_logits_BN
            assert logits_1N is not None, "asked of campaigns with diagnoses only"
            return saliency_from_graph(logits_1N.float(), image_1CHW)[0, 0].cpu().numpy(), False
        encoding = recogniser.encode(image_1CHW)  # type: ignore[operator]
        saliency_11HW = saliency_from_graph(encoding.diagnosis_logits_BN, image_1CHW)
        entered = bridged(image_1CHW, saliency_11HW, encoding.skips[-1], bridge)
    return entered[0, -1].cpu().numpy(), True


def _asked(recogniser: nn.Module, clean_NCHW: Tensor, diagnosis_N: Tensor, machine: MachineConfig) -> Tensor:
    """The true diagnosis where it is known, else the one that the clean image is read as."""
    with torch.no_grad():
        logits_NK = recognised(recogniser, clean_NCHW, machine).diagnosis_logits_BN
    if logits_NK is None:
        return torch.full_like(diagnosis_N, -1)
    return torch.where(diagnosis_N >= 0, diagnosis_N, logits_NK.argmax(1))


def _maps(
    recogniser: nn.Module, image_NCHW: Tensor, asked_N: Tensor, machine: MachineConfig
) -> dict[str, tuple[Tensor, Tensor]]:
    """Task -> (saliency_NHW, activation_NHW), both as they come."""
    maps = {}
    with torch.enable_grad():
        image_NCHW = image_NCHW.detach().requires_grad_()
        recognition = recognised(recogniser, image_NCHW, machine)
        deepest_NCHW = recognition.features[0]
        for task, score in scores(recognition, asked_N).items():
            by_image_NCHW, by_features_NCHW = torch.autograd.grad(
                score, (image_NCHW, deepest_NCHW), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            activation_NHW = grad_cam(deepest_NCHW.detach(), by_features_NCHW, tuple(image_NCHW.shape[-2:]))
            maps[task] = (by_image_NCHW.abs().amax(1).float().cpu(), activation_NHW.cpu())
    return maps


def scores(recognition: Recognition, asked_N: Tensor) -> dict[str, Tensor]:
    """Task -> the score that is explained, 0-dim: the sum over the images, of which each depends on its own alone."""
    found: dict[str, Tensor] = {}
    if recognition.mask_logits_BKHW is not None:
        logits_NHW, codes_NHW = recognition.mask_logits_BKHW.float().max(1)
        found["masks"] = (logits_NHW * (codes_NHW > 0)).sum()
    if recognition.diagnosis_logits_BN is not None:
        found["diagnosis"] = recognition.diagnosis_logits_BN.float().gather(1, asked_N[:, None]).sum()
    return found


def grad_cam(features_NCHW: Tensor, gradient_NCHW: Tensor, size: tuple[int, ...]) -> Tensor:
    """Features weighted by the mean of their gradient, what speaks for the score only, up-sampled to `size`."""
    weights_NC11 = gradient_NCHW.float().mean((2, 3), keepdim=True)
    map_N1HW = (weights_NC11 * features_NCHW.float()).sum(1, keepdim=True).relu()
    return F.interpolate(map_N1HW, size=size, mode="bilinear", align_corners=False)[:, 0]


def _judged(of_states: Mapping[str, tuple[Tensor, Tensor]], foreground_NHW: Tensor) -> dict[str, Maps]:
    """One scale per slice over its states, so that before and after can be compared."""
    largest_N = torch.stack([activation_NHW.amax((1, 2)) for _, activation_NHW in of_states.values()]).amax(0)
    scale_N11 = torch.where(largest_N > 0, largest_N, 1.0)[:, None, None]
    return {
        state: Maps(
            saliency_NHW.numpy(),
            (activation_NHW / scale_N11).numpy(),
            _inside(saliency_NHW, foreground_NHW),
            _inside(activation_NHW / scale_N11, foreground_NHW),
        )
        for state, (saliency_NHW, activation_NHW) in of_states.items()
    }


def _inside(map_NHW: Tensor, foreground_NHW: Tensor) -> Images:
    inside_N = (map_NHW * foreground_NHW).sum((1, 2)) / map_NHW.sum((1, 2))  # 0 / 0 is NaN: nowhere was looked at
    share_N: Images = torch.where(foreground_NHW.any(2).any(1), inside_N, torch.nan).numpy()
    return share_N
