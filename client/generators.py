"""A generator's networks as they arrive in, kept beside the store, and out again: what phases do not train.

    <store>-generators/<campaign digest>/<network>.safetensors    one file per network, replaced as a whole
                                         /campaign.json            the campaign that they were made for

The frozen networks of a phase come once, with its handshake; what a phase has trained comes with its closing
evaluation. After the last phase the folder holds the whole generator, and the site draws with it when it likes, without
asking anybody. Two processes may keep the same network at the same time: the last one stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from shared.checkpoint import write_atomically
from shared.config import CampaignConfig, campaign_digest, save_campaign
from shared.errors import DataError
from shared.types import Arrays
from shared.weights import UNKNOWN_TYPES

if TYPE_CHECKING:
    from shared.generate.networks import Generator

CAMPAIGN = "campaign.json"


def generator_folder(generators: Path, campaign: CampaignConfig) -> Path:
    """Of a campaign as it was approved, not of one of its phases."""
    assert campaign.generate.phase == "all"
    return generators / campaign_digest(campaign)


def keep(folder: Path, campaign: CampaignConfig, arrays: Arrays) -> None:
    """Write `arrays` (names `<network>.<parameter>`), a file for each network in them; raises DataError where the disk
    does not take them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / CAMPAIGN).exists():
            partial = folder / f".partial-{os.getpid()}-{CAMPAIGN}"
            save_campaign(campaign, partial)
            partial.replace(folder / CAMPAIGN)  # whole or not there: nobody would write it again
        for part in dict.fromkeys(_of(name) for name in arrays):
            own = {name: np.asarray(values, order="C") for name, values in arrays.items() if _of(name) == part}
            write_atomically(folder / f"{part}.safetensors", save(own))
    except OSError:
        raise DataError(
            "the generator's networks cannot be kept at this site; check the permissions of its folder of generators "
            "and the disk"
        ) from None


def kept(folder: Path, parts: Iterable[str]) -> Arrays:
    """The arrays of the named networks; raises DataError for one that is not there or cannot be read."""
    arrays: Arrays = {}
    for part in parts:
        missing = DataError(
            f"the generator's {part} is not at this site, or cannot be read; it comes with the campaign's next round"
        )
        try:
            found = load_file(folder / f"{part}.safetensors")
        except (OSError, SafetensorError, *UNKNOWN_TYPES):
            raise missing from None
        if any(values.dtype != np.float32 for values in found.values()):  # numpy may know more types than it began with
            raise missing
        arrays |= found
    return arrays


def kept_generator(generators: Path, campaign: CampaignConfig) -> Generator:
    """The whole generator of a campaign that has finished its phases, on the CPU.

    Raises DataError where a network is missing, damaged or of another architecture.
    """
    from shared.generate.networks import load_parts

    generator = built_generator(campaign)
    parts = tuple(generator.all)
    load_parts(generator, kept(generator_folder(generators, campaign), parts), parts)
    return generator


def built_generator(campaign: CampaignConfig) -> Generator:
    """As a site builds it, whose weights all come from the coordinator or from where they are kept: generate.start is
    a place at the coordinator, and no file that somebody else has named is read."""
    from shared.generate.networks import build_generator

    return build_generator(replace(campaign, generate=replace(campaign.generate, start=None)))


def _of(name: str) -> str:
    return name.partition(".")[0]
