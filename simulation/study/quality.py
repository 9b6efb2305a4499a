"""A generator and real images with masks in, how good what it draws is out: does it follow its mask, does it look real.

    mask_dice          Dice of a judge on drawn images against the masks that they were asked for; real_dice: the same
                       judge on the real images that these masks are of
    feature_distance   squared Fréchet distance of a judge's features (shared/generate/quality.py) of drawn images and
                       of real training images; real_distance: the same for the real images instead of the drawn ones

The judge (simulation/study/judges.py) learned on the real training images of all sites. Hints are those of test images,
which neither the generator nor the judge has seen. These images serve no training.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from client.dataset import Slices
from client.generate.asks import Asks, asked_apart
from client.generate.draw import drawn_batch
from shared.config import CampaignConfig, MachineConfig
from shared.generate.networks import Generator
from shared.generate.quality import feature_distance, features_of
from shared.generate.sampling import BATCH_SIZE
from shared.networks import placed
from shared.recognise.metrics import dice_BK, mean_over_classes
from shared.recognise.recognition import Recognition

MOST_REFERENCE = 1024
"""Real training images that the distance is taken to, evenly over all."""


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """S images that were drawn to be judged."""

    image_SCHW: Tensor
    asks: Asks
    seconds: float


def drawn_to_be_judged(
    generator: Generator, slices: Slices, campaign: CampaignConfig, machine: MachineConfig, images: int
) -> Judged:
    """`images` images (or as many as `draw.variants` of each slice make), evenly over the slices that have a mask."""
    asks = asked_apart(slices, campaign, images)
    began = time.perf_counter()
    image_SCHW = drawn(generator, slices, asks, campaign, machine)
    return Judged(image_SCHW, asks, time.perf_counter() - began)


def drawn(generator: Generator, slices: Slices, asks: Asks, campaign: CampaignConfig, machine: MachineConfig) -> Tensor:
    """(S, C, H, W) in [0, 1] on the CPU, batch by batch."""
    device = placed(generator, machine)
    batches = [asks.rows(slice(start, start + BATCH_SIZE)) for start in range(0, len(asks), BATCH_SIZE)]
    images = [drawn_batch(generator, slices, batch, campaign, machine, device) for batch in batches]
    return torch.cat([slices.clean_NCHW[:0].float(), *images])


def quality_of(
    found: Judged, slices: Slices, training: Slices, judge: nn.Module, campaign: CampaignConfig
) -> dict[str, float]:
    """Figures by the keys of a row; those of masks are left out where the campaign has none."""
    judge.cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # kept or just trained: to the bit
    real_SCHW = slices.clean_NCHW[found.asks.source_S].float()
    place_R = torch.linspace(0, len(training) - 1, min(MOST_REFERENCE, len(training))).round().long()
    reference_RF = features_of(judge, training.clean_NCHW[place_R].float())
    figures = {
        "feature_distance": feature_distance(reference_RF, features_of(judge, found.image_SCHW)),
        "real_distance": feature_distance(reference_RF, features_of(judge, real_SCHW)),
        "images_per_s": len(found.asks) / max(found.seconds, 1e-9),
    }
    if campaign.masks:
        mask_SHW = slices.mask_NHW[found.asks.source_S].long()
        on_drawn = _dice(judge, found.image_SCHW, mask_SHW, campaign, "mask_dice")
        on_real = _dice(judge, real_SCHW, mask_SHW, campaign, "real_dice")
        figures |= {**on_drawn, **{key: value for key, value in on_real.items() if key == "real_dice"}}
        if on_real.get("real_dice", 0.0) > 0 and "mask_dice" in on_drawn:
            figures["mask_share"] = on_drawn["mask_dice"] / on_real["real_dice"]
    return figures


def _dice(
    judge: nn.Module, image_SCHW: Tensor, mask_SHW: Tensor, campaign: CampaignConfig, key: str
) -> dict[str, float]:
    names = campaign.masks
    logits = [_read(judge, part).mask_logits_BKHW for part in torch.split(image_SCHW, BATCH_SIZE)]
    found_SHW = torch.cat([part_BKHW.argmax(1).cpu() for part_BKHW in logits if part_BKHW is not None])
    dice_SK = dice_BK(found_SHW, mask_SHW, len(names)).double().cpu().numpy()
    columns = {key: mean_over_classes(dice_SK)}
    columns |= {f"{key}.{name}": dice_SK[:, place] for place, name in enumerate(names)}
    return {name: float(np.nanmean(values_S)) for name, values_S in columns.items() if np.isfinite(values_S).any()}


def _read(judge: nn.Module, image_BCHW: Tensor) -> Recognition:
    device = next(judge.parameters()).device
    with torch.inference_mode():
        recognition: Recognition = judge(image_BCHW.to(device))
    return recognition
