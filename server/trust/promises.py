"""What the trust study was set up to show, fixed before its full budget ran: one entry per kind of claim.

simulation/study/trust_claims.py holds the claims against the rows; a page lists those for which no cell was run.
"""

from __future__ import annotations

from collections.abc import Mapping

MOST_LOST_DICE = 0.03
"""What three malicious hospitals of ten may cost where the aggregation is robust, against FedAvg without an attack."""
COLLAPSED_DICE = 0.1
"""What they cost FedAvg, at least, where it collapses."""
MOST_LOST_DB = 0.05
"""What secure aggregation may change of PSNR: rounding to its grid, and nothing else."""
MOST_BYTES = 1.3
"""Bytes sent with secure aggregation over those sent without."""

PROMISES: Mapping[str, str] = {
    "kept": f"With trimmed mean and with multi-Krum, 3 malicious hospitals of 10 cost at most {MOST_LOST_DICE:g} Dice "
    "against FedAvg without an attack, by the mean",
    "collapse": f"With FedAvg, scaled and flipped updates and false labels cost more than {COLLAPSED_DICE:g} Dice, "
    "by the mean",
    "backdoor": "Trimmed mean and multi-Krum leave the backdoor a lower rate of success than FedAvg, by the mean",
    "budget": "No campaign spends more epsilon than was agreed",
    "smaller": "At the same epsilon, training the last blocks or the norms alone costs less PSNR than training all "
    "weights, by the mean",
    "masked": f"Secure aggregation changes PSNR by at most {MOST_LOST_DB:g} dB, by the mean",
    "bytes": f"Secure aggregation sends at most {MOST_BYTES:g} times the bytes of visible updates",
}
