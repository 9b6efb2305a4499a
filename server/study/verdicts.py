"""A claim or a difference in, what a page says of it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.study.promises import NOT_CONTRADICTED
from server.study.tables import Score
from server.study.wording import NEUTRAL, shown_of, signed


def counted(claims: Sequence[Mapping[str, Any]]) -> str:
    """`3 of 4 claims hold; 2 of 2 not contradicted`: what was only not contradicted does not hold by that."""
    words = []
    for verb, chosen in (("hold", False), ("not contradicted", True)):
        found = [claim for claim in claims if (claim.get("promise") == NOT_CONTRADICTED) == chosen]
        noun = "" if chosen else " claims"
        if found:
            words.append(f"{sum(bool(claim['holds']) for claim in found)} of {len(found)}{noun} {verb}")
    return "; ".join(words) or "no claim could be examined"


def verdict_shown(claim: Mapping[str, Any]) -> str:
    if claim.get("promise") == NOT_CONTRADICTED:
        return "not contradicted" if claim["holds"] else "contradicted"
    return "holds" if claim["holds"] else "does not hold"


def target_sign(claim: Mapping[str, Any]) -> str:
    """Before a claim's target: what the value has to be."""
    if "at_most" in claim:
        return "≤ "
    above = claim.get("promise") == "margin" or (claim["target"] == 0 and claim.get("promise") != NOT_CONTRADICTED)
    return "> " if above else "≥ "


def certain(claim: Mapping[str, Any]) -> bool:
    """Whether the whole interval, and not only the mean, reaches the target."""
    if "low" not in claim:
        return False
    return bool(claim["high"] <= claim["target"] if "at_most" in claim else claim["low"] >= claim["target"])


def verdict_of(score: Score) -> str:
    """A word for the colour of a difference: good, bad, or nothing where the interval holds 0."""
    if score.difference is None or score.difference.verdict in ("open", "one seed"):
        return ""
    if score.metric in NEUTRAL:
        return ""
    better = (score.difference.verdict == "above") == shown_of(score.metric).higher_is_better
    return "good" if better else "bad"


def difference_shown(score: Score) -> tuple[str, str]:
    """`+0.12` and `[−0.30, +0.54]`, the latter empty for one seed."""
    found = score.difference
    assert found is not None
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f"[{signed(score.metric, found.low)}, {signed(score.metric, found.high)}]"
    return signed(score.metric, found.mean), interval
