"""What a plan says of a generator in, networks and synthetic images for the round out.

A handshake brings what its phase does not train; it is checked against the architecture and kept. A round names it by
its digest: a site that lost it, or has another, says so, and the coordinator brings it again.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from client.generators import built_generator, generator_folder, keep, kept
from client.site import SiteSetup
from shared.config import CampaignConfig, Phase, campaign_digest
from shared.errors import DataError, RefusedError
from shared.types import Plan
from shared.weights import arrays_digest

if TYPE_CHECKING:
    from client.dataset import SiteData, Slices, Synthetic
    from shared.generate.networks import Generator


def receive(plan: Plan, generators: Path, agreed: CampaignConfig, campaign: CampaignConfig) -> None:
    """Keep what a handshake brought; raises DataError where it is not what the phase needs, or not what it says."""
    from shared.generate.networks import frozen_parts, load_parts

    if not campaign.generate.on:
        raise DataError("a handshake brought a generator's networks in a campaign that has none")
    if arrays_digest(plan.weights) != plan.frozen_digest:
        raise DataError("the generator's networks arrived changed: their digest is not the plan's; send them again")
    generator = built_generator(campaign)
    load_parts(generator, plan.weights, frozen_parts(generator, campaign.generate.phase))
    keep(generator_folder(generators, agreed), agreed, plan.weights)


def load_frozen(generator: Generator, plan: Plan, generators: Path, agreed: CampaignConfig, phase: Phase) -> None:
    """Load what the phase does not train from where it is kept; RefusedError unless it is what the plan means."""
    from shared.generate.networks import frozen_parts, load_parts

    parts = frozen_parts(generator, phase)
    if not plan.frozen_digest and not parts:
        return
    frozen = kept(generator_folder(generators, agreed), parts)
    if arrays_digest(frozen) != plan.frozen_digest:
        raise RefusedError(
            f"the generator's networks at this site are not those of the {phase} phase; they come again with the "
            "next handshake"
        )
    load_parts(generator, frozen, parts)


def training_slices(
    plan: Plan, setup: SiteSetup, agreed: CampaignConfig, campaign: CampaignConfig, data: SiteData
) -> Slices:
    """The training split, with the site's synthetic images where the campaign trains with them.

    They are drawn when they are first asked for, which takes minutes, and kept on disk; see client/generate.
    Raises RefusedError where the generator at hand is not the plan's or a guard refuses it.
    """
    if not campaign.augment.generated:
        return data.train
    from client.generate.synthetic import site_synthetic

    key = (setup.name, setup.store, campaign_digest(agreed), plan.frozen_digest)
    if key not in _synthetic:
        generator = built_generator(campaign)
        load_frozen(generator, plan, setup.generators, agreed, "train")
        _synthetic[key] = site_synthetic(generator, data.train, agreed, setup, held_out=data.validation)
    return replace(data.train, synthetic=_synthetic[key])


_synthetic: dict[tuple[str, Path, str, str], Synthetic] = {}
"""By site, store, campaign and generator: images stay in the process between rounds, as the real ones do."""


def forget_synthetic() -> None:
    """Let go of the images; they stay on disk."""
    _synthetic.clear()
