"""What a release must have passed before a coordinator signs it. Frozen; recorded in the release itself."""

from __future__ import annotations

from dataclasses import dataclass

from shared.config.limits import LARGEST_WEIGHT, require


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseConfig:
    """Acceptance gates, each asked of every site and over all of them; margins in the metric's unit."""

    least_gain_db: float = 0.0
    """Mean PSNR of enhanced images over that of the degraded ones: more than this."""
    harm_dice: float = 0.01
    """No harm: what segmentation of a clean image may lose when it is enhanced, mean Dice."""
    harm_accuracy: float = 0.02
    harm_psnr_db: float = 30.0
    """No harm: least PSNR between a clean image and itself enhanced."""
    erased: float = 0.05
    """No invention: share of lesions found before that may be missed after."""
    invented_per_image: float = 0.05
    """No invention: false positive lesions after, where there was none before, per image."""
    sensitivity_loss: float = 0.02
    """Share of all lesions found before, less the share found after."""
    calibration_error: float = 0.25
    """Expected calibration error of the diagnosis."""
    least_patients: int = 5
    """Of a site: with fewer in a gate its figure is shown and decides nothing."""

    def __post_init__(self) -> None:
        names = ("least_gain_db", "harm_dice", "harm_accuracy", "harm_psnr_db", "erased", "invented_per_image",
                 "sensitivity_loss", "calibration_error")  # fmt: skip
        for name in names:
            require(0 <= getattr(self, name) <= LARGEST_WEIGHT, f"{name} must be 0 or more", getattr(self, name))
        require(self.least_patients >= 1, "least_patients must be 1 or more", self.least_patients)
