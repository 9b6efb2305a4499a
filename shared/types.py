"""The nouns that travel between rooms; all frozen.

Shape suffixes, here and everywhere: B batch, C channel, D slices, H rows, W columns, K mask classes (0 is background),
N diagnoses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Arrays: TypeAlias = dict[str, npt.NDArray[np.float32]]
"""Named float32 arrays in a fixed order: weights, or a difference of weights."""

Action: TypeAlias = Literal["handshake", "offer", "train", "unmask", "evaluate"]
"""offer and unmask stand before and after `train` in a round under secure aggregation (shared/secagg)."""


@dataclass(frozen=True, slots=True)
class Moments:
    """What a site tells about a metric over its images: enough to pool means and spreads exactly over sites.

    `quantiles` are the 5, 25, 50, 75 and 95 % points over the site's images (empty where they were not taken); they
    are shown per site and never pooled.
    """

    count: int
    total: float
    total_sq: float
    quantiles: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else float("nan")

    @property
    def std(self) -> float:
        """Population standard deviation over images."""
        if not self.count:
            return float("nan")
        return float(max(self.total_sq / self.count - self.mean**2, 0.0) ** 0.5)


Metrics: TypeAlias = Mapping[str, Moments]
"""Metric key with its unit (`psnr_db`, `ssim`, `rmse`, `dice`, `accuracy`, ...) -> moments over images or patients."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Coordinator to site: what to do in one round, and the weights to do it with."""

    campaign: str
    action: Action
    round: int  # 1-based; the closing evaluation carries rounds + 1
    config_digest: str
    architecture_digest: str
    weights: Arrays = field(default_factory=dict)
    """Of a handshake in a generator's phase: what the phase does not train. Sites keep it, and it does not travel
    again."""
    frozen_digest: str = ""
    """SHA-256 of what the phase does not train (shared.weights.arrays_digest); empty where there is nothing."""
    manifest_digest: str = ""
    """SHA-256 of the signed manifest that the campaign runs under (shared/manifest.py); empty where it has none."""
    secagg: Mapping[str, Any] = field(default_factory=dict)
    """Under secure aggregation, as JSON values: `terms` of the session; to train also the `offers` of its sites, to
    unmask its `survivors`. Read with checks by client/protect.py."""


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """Site to coordinator: the weight difference of one round and what was measured beside it.

    `evaluation` judges the weights that came in with the plan, not those that the difference leads to; its keys are
    metric keys prefixed by the state of the image: `degraded.psnr_db`, `enhanced.psnr_db`, `clean.dice`, ...

    `added` is the part of `difference` that recognition added to the enhancer, for every one of its arrays where the
    campaign promotes (strategy.promotion), else empty. It crosses the wire in 16 bits: what the coordinator takes for
    the other part is the difference less what arrived, so that the two add up to the difference however it was rounded.
    """

    site: str
    round: int
    num_samples: int  # images that the local steps drew; the weight of this update
    difference: Arrays
    training: Mapping[str, float] = field(default_factory=dict)
    evaluation: Metrics = field(default_factory=dict)
    added: Arrays = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)
    """Part of the network (shared.weights.PARTS) -> images whose loss moved it: what the part is averaged by.
    At least every part that the difference has, which are those that the message tells; 0 where the site has no
    label for one."""
    noise_multiplier: float = 0.0
    """What the site's ledger was charged for noise on the whole update (privacy=site); stays at the site."""


@dataclass(frozen=True, slots=True)
class Offered:
    """Site to coordinator, before a masked round: its offer (shared.secagg.protocol.Offer) as JSON values."""

    site: str
    round: int
    offer: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Revealed:
    """Site to coordinator, after a masked round: its reveal (shared.secagg.protocol.Reveal) as JSON values."""

    site: str
    round: int
    reveal: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SiteCard:
    """A site's answer to the handshake: who it is, what it runs, how much it holds. Counts only."""

    site: str
    config_digest: str
    architecture_digest: str
    version: str
    counts: Mapping[str, int]  # patients, series, slices, masks, diagnoses.<name>, train_patients, test_patients
    audit: tuple[int, str] = (0, "0" * 64)
    """Number and SHA-256 of the last entry of the site's audit log: kept by the coordinator in its own."""
