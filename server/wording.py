"""How each metric key of the contract is shown to people: heading, unit, decimals, what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shown:
    heading: str
    meaning: str
    decimals: int = 3
    unit: str = ""
    higher_is_better: bool = True


METRICS: Mapping[str, Shown] = {
    "psnr_db": Shown("PSNR", "closeness to the clean image; +6 dB halves the error", 2, "dB"),
    "ssim": Shown("SSIM", "likeness of local structure; 1 is identical"),
    "rmse": Shown("RMSE", "typical error per pixel, on the 0 to 1 scale", 4, higher_is_better=False),
    "psnr_db_region": Shown("PSNR in region", "PSNR inside the labelled region only", 2, "dB"),
    "ssim_region": Shown("SSIM in region", "SSIM inside the labelled region only"),
    "rmse_region": Shown("RMSE in region", "RMSE inside the labelled region only", 4, higher_is_better=False),
    "dice": Shown("Dice", "overlap of predicted and true outline; 1 is perfect"),
    "jaccard": Shown("Jaccard", "shared area over joint area of predicted and true outline; 1 is perfect"),
    "precision": Shown("precision", "share of the predicted area that is right"),
    "recall": Shown("recall", "share of the true area that was found"),
    "mask_ssim": Shown("mask SSIM", "likeness of predicted and true map of a class, empty surroundings included"),
    "judge_dice": Shown("judge Dice", "Dice of an independent recogniser that was trained on clean images only"),
    **{
        f"{key}_{unit}": Shown(heading, meaning, 2, unit, higher_is_better=False)
        for unit in ("mm", "px")
        for key, heading, meaning in (
            ("hd95", "HD95", "95 % of either outline is nearer than this to the other; found classes only"),
            ("hd", "HD", "Hausdorff: largest distance between predicted and true outline; found classes only"),
            ("ahd", "average HD", "mean distance between predicted and true outline; found classes only"),
        )
    },
    "missed": Shown(
        "no distance", "share of classes that only prediction or truth has: no distance counts them", 3, "", False
    ),
    "accuracy": Shown("accuracy", "share of patients with the right diagnosis"),
    "f1": Shown("F1", "balance of found and rightly named patients, mean over the diagnoses"),
    "auc": Shown("AUC", "probability that a sick patient ranks above a healthy one"),
    "seconds": Shown("training time", "seconds of training", 0, "s", higher_is_better=False),
    "bytes_up": Shown("bytes up", "sent by all sites to the coordinator", 0, "B", higher_is_better=False),
    "samples_seen": Shown("images seen", "images drawn in training, repeats counted", 0),
}
HD95 = (
    "HD95 is the distance within which 95 % of the predicted outline lies from the true one, and of the true one from "
    "the predicted, in mm (in pixels where the spacing is not known): 0 is perfect, and a class that only one of them "
    "shows has none."
)
QUALITY = (
    *("psnr_db", "ssim", "rmse", "psnr_db_region", "dice", "jaccard", "judge_dice"),
    *("hd95_mm", "hd95_px", "missed", "accuracy", "f1", "auc"),
)
"""The metrics that say how good a model is; the others say it in more detail, or what it cost."""


def shown(key: str, value: float, *, unit: bool = False) -> str:
    """A number as people read it, with its unit if asked: `26.31 dB`, `0.842`, `1.2 MB`, `3 min 05 s`."""
    if key == "bytes_up":
        return bytes_shown(value)
    if key == "seconds":
        return duration_shown(value)
    metric = METRICS[key]
    text = f"{value:,.{metric.decimals}f}"
    return f"{text} {metric.unit}" if unit and metric.unit else text


def bytes_shown(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def duration_shown(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
