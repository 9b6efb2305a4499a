"""What the enhancement study was set up to show, fixed before it ran (but for MARGIN_DB): one entry per kind of claim.

simulation/study/claims.py holds the claims against the rows; a page lists here the kinds for which no cell was run yet.
"""

from __future__ import annotations

from collections.abc import Mapping

LARGE_LAMBDA = 1.0
"""From here on the objectives differ in what they can lose."""
MARGIN_DB = 0.1
"""A loss of PSNR that is too small to matter. Set while the study ran, before its cells of all seeds were there."""
NOT_CONTRADICTED = "lambda"
"""Claims that say only that a loss was not shown. The wider the interval the easier they are to keep, so that pages
count them apart from those that hold."""

PROMISES: Mapping[str, str] = {
    "rivals": "GradProm is above plain, joint, frozen and estr on every data set, in PSNR, SSIM and a judge's score",
    "mark": "The paper's margin over frozen at sigma 0.1: +1.231 dB and +0.009 SSIM",
    "composite": "The paper's margin on composite noise: +0.384 dB (baseline not named there; frozen here)",
    "lambda": "At every lambda: that GradProm loses no PSNR against joint and frozen is not contradicted, the upper "
    "end of the interval reaches 0 (no proof: the fewer the seeds, the easier to keep)",
    "margin": "At every lambda GradProm's PSNR is less than 0.1 dB below that of joint and frozen: the lower end of "
    "the interval lies above -0.1 dB (the fewer the seeds, the harder to keep; one seed cannot show it)",
    "large": "At lambda 1 and above GradProm's PSNR is above that of joint and frozen",
    "main-loss": "At lambda 0.03 the main loss still falls to plain's, within 1 %",
    "ascent": "With SGD no step of GradProm has <change of weights, g> >= 0, g the gradient of the main loss: none is "
    "uphill to first order, on its own batch",
    "federated": "Federated GradProm is within 0.2 dB and 0.01 Dice of pooled, and above the mean local model",
    "promotion": "A gate at the coordinator brings PSNR, for at most 1.3 of the traffic",
    "region": "TOD-Net gains more inside the region than over the whole image",
    "downstream": "TOD-Net raises the Dice of all four downstream networks",
    "no-harm": "TOD-Net on clean images costs none of the four more than 0.005 Dice",
}
