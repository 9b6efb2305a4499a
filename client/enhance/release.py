"""An installed release in, what its networks say of a batch of planes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from client.enhance.reasons import NotEnhanced, Why
from client.enhance.tiles import enhanced_in_tiles, fits_whole, stride_px
from client.reading import recognised
from shared.config import CampaignConfig, MachineConfig
from shared.errors import RefusedError
from shared.images.intensity import pad_or_crop, restored
from shared.networks import Networks, placed

if TYPE_CHECKING:
    from client.installed import Installed

AT_ONCE = 1 << 18
"""Pixels of one batch: a slice of 512 x 512, or many small ones."""


@dataclass(frozen=True, slots=True, eq=False)
class InUse:
    """A release ready to work, and what DICOM objects and reports say of it."""

    networks: Networks
    campaign: CampaignConfig
    machine: MachineConfig
    device: torch.device
    name: str
    version: int
    digest: str
    personal: str
    """How its weights were adapted at this site; "" where they are as released."""

    @property
    def words(self) -> str:
        """One line; the digest is that of the signed manifest."""
        adapted = f", adapted at this site ({self.personal})" if self.personal else ", weights as released"
        return f"release {self.name} v{self.version}, sha256 {self.digest}{adapted}"


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Of F planes on the campaign's grid; on the CPU."""

    correction_FCHW: Tensor
    """enhanced - image, both inside [0, 1] where the campaign clips."""
    found_FHW: Tensor | None
    """uint8 codes of the campaign's masks."""
    probabilities_FK: Tensor | None
    """float64, of the campaign's diagnoses."""


def in_use(installed: Installed, machine: MachineConfig) -> InUse:
    """Raises RefusedError for a release without an enhancer."""
    campaign = installed.campaign
    if campaign.enhance.kind == "none":
        raise RefusedError("the installed release has no enhancer (enhance=none); install one that has")
    networks = installed.networks()
    device = placed(networks, machine)
    for network in networks.all.values():
        network.eval()
    method = "" if installed.personal is None else str(installed.personal.get("method", "yes"))
    manifest = installed.manifest
    return InUse(networks, campaign, machine, device, manifest.name, manifest.version, installed.digest, method)


def answer(release: InUse, image_FCHW: Tensor) -> Answer:
    """What the networks make of planes (float32, on the campaign's scale)."""
    batch = max(1, AT_ONCE // (image_FCHW.shape[-2] * image_FCHW.shape[-1]))
    parts = [_answer(release, part) for part in torch.split(image_FCHW, batch)]
    found = [part.found_FHW for part in parts if part.found_FHW is not None]
    probabilities = [part.probabilities_FK for part in parts if part.probabilities_FK is not None]
    return Answer(
        torch.cat([part.correction_FCHW for part in parts]),
        torch.cat(found) if found else None,
        torch.cat(probabilities) if probabilities else None,
    )


@torch.inference_mode()
def _answer(release: InUse, image_FCHW: Tensor) -> Answer:
    enhanced_FCHW = enhanced(release, image_FCHW)
    recognition = recognised(release.networks.recogniser, field(release, enhanced_FCHW), release.machine)
    masks, logits = recognition.mask_logits_BKHW, recognition.diagnosis_logits_BN
    found = None
    if masks is not None:
        codes_FHW = masks.argmax(1).byte()
        # What lies outside the field that the recogniser has learnt with is background.
        found = restored(codes_FHW, torch.zeros_like(enhanced_FCHW[:, 0], dtype=torch.uint8)).cpu()
    return Answer(
        enhanced_FCHW.cpu() - image_FCHW,
        found,
        None if logits is None else logits.double().softmax(1).cpu(),
    )


@torch.inference_mode()
def enhanced(release: InUse, image_FCHW: Tensor) -> Tensor:
    """The enhancer's answer inside [0, 1], as it is judged; on the release's device.

    Sizes that the network's levels do not divide are padded with the border's own pixels and cut back. An image that is
    brighter than the scale's end (a campaign that does not clip) may stay so. Raises NotEnhanced for one that is too
    large for attention.
    """
    config, machine = release.campaign.enhance, release.machine
    height, width = image_FCHW.shape[-2:]
    stride = stride_px(config)
    moved = image_FCHW.to(release.device)
    if machine.channels_last:
        moved = moved.contiguous(memory_format=torch.channels_last)
    padded = F.pad(moved, (0, -width % stride, 0, -height % stride), mode="replicate")
    whole = fits_whole(config, height, width)
    if not whole and config.attention:
        raise NotEnhanced(Why.TOO_LARGE)
    with torch.autocast(release.device.type, torch.bfloat16, enabled=machine.precision == "bfloat16"):
        network = release.networks.enhancer
        answered = network(padded) if whole else enhanced_in_tiles(network, padded, config)
    result: Tensor = answered[..., :height, :width].float()
    if release.campaign.data.ingest.intensity.clip:
        return result.clamp(0, 1)
    return torch.maximum(torch.minimum(result, moved.clamp(min=1)), moved.clamp(max=0))


def field(release: InUse, image_FCHW: Tensor) -> Tensor:
    """Cut or padded about the centre to the size that the recogniser has learnt with and was judged on."""
    return pad_or_crop(image_FCHW, release.campaign.data.image_size)
