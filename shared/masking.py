"""What both ends of a masked round must agree on beside the protocol: what counts how much, and on which grid.

Counts are visible and weights follow from them, so that the sum that is opened is the same weighted sum that the
coordinator makes of visible updates (server/collect.py), in whole numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from shared.config import CampaignConfig
from shared.secagg.fixed_point import Grid, grid_for
from shared.types import Arrays
from shared.weights import arrays_digest, part_of


def start_digest(weights: Arrays, frozen_digest: str) -> str:
    """SHA-256 of what a round is trained from: the weights that travel, and what the phase does not train."""
    return hashlib.sha256(f"wardround start 1\n{arrays_digest(weights)}\n{frozen_digest}".encode()).hexdigest()


def weights_of(
    names: Iterable[str], num_samples: int, images: Mapping[str, int], campaign: CampaignConfig
) -> dict[str, int]:
    """What each array of an update counts in its mean: the images that moved its part of the networks; samples for what
    belongs to no part, and for what recognition added; 1 instead of any count under strategy.weight_by=equal."""
    equal = campaign.strategy.weight_by == "equal"
    counts = {name: images[part] if (part := part_of(name)) else num_samples for name in names}
    return {name: int(count > 0) if equal else count for name, count in counts.items()}


def most_samples(campaign: CampaignConfig) -> int:
    """The most images that an update may count."""
    return campaign.training.local_steps * campaign.images_per_step


def grid_of(campaign: CampaignConfig, sites: int) -> Grid:
    """The grid of a session of so many sites: as fine as no sum of theirs can overflow."""
    equal = campaign.strategy.weight_by == "equal"
    return grid_for(campaign.secagg.range, sites * (1 if equal else most_samples(campaign)))
