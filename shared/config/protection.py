"""What protects a site in a campaign: whether single updates are seen, and what they may tell of a patient or a site.

Agreed by all sites, so that no one can be given less than was approved. Combinations that cannot keep what they say are
refused by CampaignConfig with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.config.limits import require

FEWEST_UNSEEN = 2
"""With one site the sum is its update."""
LARGEST_RANGE = 1024.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SecAggConfig:
    """Secure aggregation: whether the coordinator learns single updates, or their sum alone (shared/secagg)."""

    kind: Literal["masked", "visible_updates"] = "visible_updates"
    minimum_cohort: int = 3
    """Fewest sites whose sum is ever opened; sites refuse to open one of fewer. With 2 each of them learns the other's
    update from the sum and its own."""
    range: float = 4.0
    """Largest magnitude of a value of a difference, in weights; a site refuses to send a larger one (it would wrap
    around), but for its share of the noise of privacy=site, of which the mean alone has to fit. The quantisation
    step is `range` over 2^39 times the largest total weight."""

    @property
    def masked(self) -> bool:
        return self.kind == "masked"

    def __post_init__(self) -> None:
        require(
            self.minimum_cohort >= FEWEST_UNSEEN,
            "secagg.minimum_cohort must be 2 or more: the sum of one site is its update",
            self.minimum_cohort,
        )
        require(0 < self.range <= LARGEST_RANGE, f"secagg.range must lie in (0, {LARGEST_RANGE:g}]", self.range)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyConfig:
    """Differential privacy (shared/privacy): whose part in the weights is hidden, and how well.

    patient: all slices of a patient are one unit; their gradients are summed, clipped once and noised once, step by
    step. site: a site's whole update is the unit; it is clipped once a round, and every site adds its share of the
    noise. (epsilon, delta) is for the whole campaign. What is measured on test patients, counts and versions are not
    covered by it; see docs/security.md.
    """

    kind: Literal["none", "patient", "site"] = "none"
    epsilon: float = 8.0
    delta: float = 1e-5
    """kind=patient: below 1 / training patients; a site that has more of them does not train."""
    clip_norm: float = 1.0
    """L2 norm that one unit's contribution is cut to: of the summed gradient of a patient, or of a site's update."""
    noise_multiplier: float | None = None
    """Standard deviation of the noise over clip_norm; null: the least that keeps epsilon over the whole campaign."""
    patients: float = 4.0
    """kind=patient: expected number of patients in a step; each is drawn independently (Poisson sampling)."""
    slices: int = 2
    """kind=patient: slices of a drawn patient in a step, at most."""
    trained: Literal["all", "lastblocks", "norms"] = "all"
    """Which weights are trained and noised: a smaller part drowns less. The others stay as they began."""

    @property
    def on(self) -> bool:
        return self.kind != "none"

    def __post_init__(self) -> None:
        require(0 < self.epsilon <= 1e4, "privacy.epsilon must lie in (0, 10000]", self.epsilon)
        require(0 < self.delta < 0.1, "privacy.delta must lie in (0, 0.1)", self.delta)
        require(self.clip_norm > 0, "privacy.clip_norm must be above 0", self.clip_norm)
        require(self.patients > 0, "privacy.patients must be above 0", self.patients)
        require(self.slices >= 1, "privacy.slices must be 1 or more", self.slices)
        if self.noise_multiplier is not None:
            require(self.noise_multiplier > 0, "privacy.noise_multiplier must be above 0", self.noise_multiplier)
