"""What an operator asks for: the campaign's synthetic images drawn now, and a sheet of pictures to look at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from client.dataset import open_site
from client.generate.draw import OnProgress
from client.generate.manifest import KeptSet, synthetic_folder
from client.generate.pictures import write_sheet
from client.generate.synthetic import load_synthetic, site_set
from client.generators import kept_generator
from client.site import SiteSetup
from shared.config import CampaignConfig


def kept_or_drawn(
    setup: SiteSetup,
    campaign: CampaignConfig,
    *,
    variants: int | None = None,
    pictures: Path | None = None,
    on_progress: OnProgress | None = None,
) -> KeptSet:
    """The set that is kept, or drawn now and kept; what a guard refused has its report and no images or pictures.

    `variants` other than the campaign's make a set of their own. Raises ConfigError for a number of variants that no
    campaign could have, DataError for a store or a generator that cannot be used.
    """
    asked = campaign
    if variants is not None:
        draw = replace(campaign.generate.draw, variants=variants)
        asked = replace(campaign, generate=replace(campaign.generate, draw=draw))
    data = open_site(setup.store, setup.name, campaign)
    generator = kept_generator(setup.generators, campaign)
    kept = site_set(generator, data.train, asked, setup, held_out=data.validation, on_progress=on_progress)
    if pictures is not None and not kept.report["refused"]:
        synthetic = load_synthetic(synthetic_folder(setup.store), kept.digest, data.train)
        write_sheet(pictures / f"synthetic-{kept.digest[:12]}.png", data.train, synthetic, campaign, generator.hed)
    return kept
