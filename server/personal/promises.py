"""What the personalisation study was set up to show, fixed before its full budget ran (rehearsal came in after a quick
trial): one entry per kind of claim.

simulation/study/personal_claims.py holds the claims against the rows; a page lists those for which no cell was run.
"""

from __future__ import annotations

from collections.abc import Mapping

GAIN_SHARE = 0.9
"""Of full fine-tuning's gain on the new scanner, what TGD has to reach."""
MOST_LOST_DB = 0.1
"""PSNR on the old scanners that TGD may lose."""

PROMISES: Mapping[str, str] = {
    "gain": f"On the new scanner TGD, and what is rehearsed, gains at least {GAIN_SHARE:g} of full fine-tuning's gain "
    "in PSNR, by the mean",
    "kept": f"On the old scanners TGD, and what is rehearsed, loses at most {MOST_LOST_DB:g} dB, by the mean",
    "forgets": "Full fine-tuning loses more PSNR on the old scanners than TGD, and than what is rehearsed, by the mean",
    "bias": "In the phantom the lesion bias is in the order of the paper, from the smallest: TGD, a model of the new "
    "scanner alone (v2), the last blocks (FT), the release (v1), by the means",
    "noise": "In the phantom the noise (CoV) is in the order of the paper, from the lowest: the release (v1), TGD, the "
    "last blocks (FT), a model of the new scanner alone (v2), by the means",
    "online": "Adapted to one study from two acquisitions of it, without a clean image, TGD brings PSNR on that study, "
    "by the mean",
}
