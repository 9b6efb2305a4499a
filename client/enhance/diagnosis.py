"""Probabilities of a series' planes and the release's calibration in; a score in words, as JSON beside the images, out.

What identifies: the UID of the derived series alone, which is new and leads to the source only through this hospital's
own archive. No patient's value, no UID of the source, no date of the study. The file stays at the hospital, beside the
images that it is about.

Calibration: the release's held-out patients, of all sites, in ten bins of their highest probability. A bin says in how
many of them the most probable diagnosis was the true one; with fewer than LEAST patients it says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

RESEARCH_ONLY = "Research only: not a medical device, not for diagnosis or treatment of a patient."
LEAST = 10


def score(
    probabilities_FK: npt.NDArray[np.float64],
    names: Sequence[str],
    calibration: Mapping[str, Any] | None,
    *,
    series_uid: str,
    release: str,
    digest: str,
) -> dict[str, Any]:
    """The JSON file's content; a series' probabilities are the mean over its planes, as in the evaluation."""
    means = probabilities_FK.mean(0)
    top = int(means.argmax())
    return {
        "series_instance_uid": series_uid,
        "probabilities": {name: round(float(value), 4) for name, value in zip(names, means, strict=True)},
        "most_probable": names[top],
        "planes": len(probabilities_FK),
        "calibration": calibrated(float(means[top]), names[top], calibration),
        "release": release,
        "release_sha256": digest,
        "statement": RESEARCH_ONLY,
    }


def calibrated(probability: float, name: str, calibration: Mapping[str, Any] | None) -> dict[str, Any]:
    """What such a score was worth for the release's held-out patients."""
    bins = list((calibration or {}).get("bins") or ())
    if not bins:
        return {"words": "The release has no calibration: nothing is known of how far such a score can be trusted."}
    one = bins[min(int(probability * len(bins)), len(bins) - 1)]
    count, share = int(one["count"]), float(one["correct"])
    low, high = (100 * place / len(bins) for place in (bins.index(one), bins.index(one) + 1))
    if count < LEAST:
        words = (
            f"Only {count} held-out patients of the release had a highest score of {low:.0f} to {high:.0f} %: too few "
            "to say how far such a score can be trusted."
        )
        return {"patients": count, "words": words}
    words = (
        f"Of {count} held-out patients of the release whose highest score was {low:.0f} to {high:.0f} %, "
        f"{100 * share:.0f} % had what was scored highest; here that is {name!r}."
    )
    return {"patients": count, "share_correct": round(share, 4), "words": words}
