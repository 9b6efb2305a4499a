"""What the enhancement study was set up to show, fixed before it ran: one entry per kind of claim.

simulation/study/claims.py holds the claims against the rows; a page lists here the kinds for which no cell was run yet.
"""

from __future__ import annotations

from collections.abc import Mapping

PROMISES: Mapping[str, str] = {
    "rivals": "GradProm is above plain, joint, frozen and estr on every data set, in PSNR, SSIM and a judge's score",
    "mark": "The paper's margin over frozen at sigma 0.1: +1.231 dB and +0.009 SSIM",
    "composite": "The paper's margin on composite noise: +0.384 dB (baseline not named there; frozen here)",
    "lambda": "At every lambda GradProm's PSNR shows no significant loss against joint and frozen",
    "large": "At lambda 1 and above GradProm's PSNR is above that of joint and frozen",
    "main-loss": "At lambda 0.03 the main loss still falls to plain's, within 1 %",
    "ascent": "With SGD no step of GradProm goes up the main loss",
    "federated": "Federated GradProm is within 0.2 dB and 0.01 Dice of pooled, and above the mean local model",
    "promotion": "A gate at the coordinator brings PSNR, for at most 1.3 of the traffic",
    "region": "TOD-Net gains more inside the region than over the whole image",
    "downstream": "TOD-Net raises the Dice of all four downstream networks",
    "no-harm": "TOD-Net on clean images costs none of the four more than 0.005 Dice",
}
