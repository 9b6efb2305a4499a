"""A release, its adaptation and test slices in, before and after as pictures out: small enough for report.json.

new    a test image of the new scanner: clean, as acquired, enhanced by the release, enhanced after the adaptation
old    the same of an old scanner: what the adaptation has forgotten can be seen here
"""

from __future__ import annotations

import torch
from torch import Tensor

from client.dataset import Slices
from client.reading import read, taken
from shared.config import CampaignConfig, MachineConfig
from shared.images.quality import psnr_db_B
from shared.networks import Networks
from simulation.study.generation_pictures import largest
from simulation.study.grid import Cell
from simulation.study.personal_release import Hospitals, campaign_of_new, planned_of
from simulation.study.pictures import Colours, Picture, beside, grey, uri_of

WIDTH = 128
"""Pixels of a panel, about."""


def personal_pictures(
    cell: Cell, release: Networks, adapted: Networks, hospitals: Hospitals, machine: MachineConfig
) -> list[Picture]:
    """One of each kind: of the test slice with most of its last class. Where nothing is adapted there is no after."""
    models = [release] if planned_of(cell).method in ("none", "alone") else [release, adapted]
    alone = planned_of(cell).alone
    old = hospitals.old.datas[0]
    shown = (
        ("new", hospitals.new.site, hospitals.new.test, campaign_of_new(cell)),
        ("old", old.site, old.test, cell.config.campaign),
    )
    return [_picture(kind, site, test, models, campaign, machine, alone=alone) for kind, site, test, campaign in shown]


def _picture(
    kind: str,
    site: str,
    test: Slices,
    models: list[Networks],
    campaign: CampaignConfig,
    machine: MachineConfig,
    *,
    alone: bool,
) -> Picture:
    place = largest(test)
    assert place is not None, "a site has a test patient"
    chosen = taken(test, [place])
    clean_BCHW = chosen.clean_NCHW.float()
    readings = [read(networks, chosen, campaign, machine) for networks in models]
    images = [readings[0]["degraded"].image_NCHW, *(each["enhanced"].image_NCHW for each in readings)]
    names = ["as acquired", "alone" if alone else "by the release", "after the adaptation"]
    words = [
        f"{name} ({float(psnr_db_B(clean_BCHW, image)):.2f} dB)" for name, image in zip(names, images, strict=False)
    ]
    caption = f"{site}, the {kind} scanner: clean, {', '.join(words)}."
    panels = [_panel(image_BCHW[0]) for image_BCHW in (clean_BCHW, *images)]
    return {"kind": kind, "caption": caption, "uri": uri_of(beside(panels))}


def _panel(image_CHW: Tensor) -> Colours:
    return grey(torch.as_tensor(image_CHW).float().clamp(0, 1), WIDTH)
