"""A generator in, pictures of what it draws out: small enough for report.json (see simulation/study/pictures.py).

drawn     per site one test image, its edges, its mask as the ControlNet sees it, and images drawn for them
sampled   test images (above), and what a setting of drawing makes of their hints (below)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from client.dataset import SiteData, Slices
from client.generate.asks import Asks
from client.generate.draw import conditions
from shared.config import CampaignConfig, MachineConfig
from shared.generate.networks import Generator
from shared.generate.prompts import prompt_tokens, prompt_words
from shared.networks import placed
from shared.seeding import derived_seed
from simulation.study.pictures import GAP, Colours, Picture, beside, grey, uri_of
from simulation.study.quality import Judged, drawn

WIDTH = 112
"""Pixels of a panel, about."""
VARIANTS = 3
SAMPLED = 6


def drawn_pictures(
    generator: Generator, datas: Sequence[SiteData], campaign: CampaignConfig, machine: MachineConfig
) -> list[Picture]:
    """One per site that has a test image with a mask (in a campaign without masks: a test image)."""
    found = ((data.site, data.test, largest(data.test)) for data in datas)
    return [_drawn(generator, site, test, index, campaign, machine) for site, test, index in found if index is not None]


def largest(slices: Slices) -> int | None:
    """The slice with most of its last class, else with the largest mask: where there is most to be seen."""
    if not len(slices):
        return None
    shown_N = slices.mask_NHW.flatten(1).long()
    last_N = (shown_N == int(shown_N.max())).sum(1) * int(shown_N.max() > 0)
    return int(torch.argmax(last_N * shown_N.shape[1] + (shown_N > 0).sum(1)))


def _drawn(
    generator: Generator, site: str, test: Slices, index: int, campaign: CampaignConfig, machine: MachineConfig
) -> Picture:
    seeds = tuple(derived_seed(campaign.seed, "picture", site, number) for number in range(VARIANTS))
    source_S = torch.full((VARIANTS,), index)
    asks = Asks(source_S, test.diagnosis_N[source_S], torch.zeros(VARIANTS, dtype=torch.bool), seeds)
    hint_BCHW, _ = conditions(generator, test, asks.rows(slice(1)), campaign, placed(generator, machine))
    image_SCHW = drawn(generator, test, asks, campaign, machine)
    panels = [test.clean_NCHW[index], *torch.split(hint_BCHW[0].float().cpu(), 1), *image_SCHW]
    acquired = [test.acquired[index]] if test.acquired else []
    token_BW = prompt_tokens(campaign, acquired, test.diagnosis_N[index : index + 1])
    hints = ", ".join(hint_names(campaign))
    asked = f"; prompt “{prompt_words(campaign, token_BW[0])}”" if campaign.generate.text != "none" else ""
    caption = f"{site}: a test image, its {hints}, and {VARIANTS} images drawn for them{asked}."
    return {"kind": "drawn", "caption": caption, "uri": uri_of(beside([_panel(panel) for panel in panels]))}


def hint_names(campaign: CampaignConfig) -> list[str]:
    """What the channels of a hint show."""
    generate, names = campaign.generate, list[str]()
    if generate.contour == "merged":
        names.append("outlines" if generate.edges == "none" else "edges with outlines")
    elif generate.edges != "none":
        names.append("edges")
    names += ["outlines"] if generate.contour == "channel" else []
    if generate.contour == "filled" and campaign.data.masks:
        names += [f"mask of {name}" for name in ("background", *campaign.data.masks)]
    return names + (["box"] if generate.box else [])


def sampled_picture(found: Judged, slices: Slices) -> list[Picture]:
    """The first images that were judged, evenly over them: the same test images and seeds in every cell of a table."""
    if not len(found.asks):
        return []
    places = torch.linspace(0, len(found.asks) - 1, min(SAMPLED, len(found.asks))).round().long()
    real = [_panel(slices.clean_NCHW[int(found.asks.source_S[place])]) for place in places]
    ours = [_panel(found.image_SCHW[place]) for place in places]
    above, below = beside(real), beside(ours)
    both = np.concatenate([above, np.zeros((GAP, *above.shape[1:]), np.uint8), below])
    caption = f"Above {len(places)} test images, below what is drawn for their hints, from the same noise each time."
    return [{"kind": "sampled", "caption": caption, "uri": uri_of(both)}]


def _panel(image_CHW: Tensor) -> Colours:
    return grey(image_CHW.float().clamp(0, 1), WIDTH)
