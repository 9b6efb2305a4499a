"""A run's round records in, "Updates of single sites" out: whose updates are unlike the others', round by round.

    sites_updates.<site>   norm (L2 of the update) and cosine (to the mean of the other sites' updates), by
                           server/collect.py; of visible updates only
    dropped.<site>         why an answer was not taken
    robust                 which sites the aggregation chose and dropped (server/strategies/robust.py)

A norm is told as its ratio to the round's median norm. What is unlike need not be malicious: a hospital with another
scanner, other patients or false units sends such updates as well. And what is like need not be honest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

Record = Mapping[str, Any]
LONG = 3.0
"""Times the median norm; in the middle of a site's rounds."""
AGAINST = 0.0
"""Cosine to the mean of the others; in the middle of a site's rounds."""
OFTEN = 0.5
"""Share of rounds."""

HIDDEN = (
    "The updates of single sites were masked (secagg=masked): the coordinator saw their sum alone, and cannot tell "
    "whose is long, or points against the others. What is left is the norm bound that each site keeps for itself, if "
    "the campaign has one; a site that does not keep it is not found out."
)
NO_BOUND = "This campaign has no norm bound (strategy.norm_bound)."


@dataclass(frozen=True, slots=True)
class SiteUpdates:
    """One site over the rounds that it was asked in; None where nothing was seen."""

    site: str
    rounds: int
    """With an update that was taken."""
    refused: float
    """Share of the rounds that it was asked in whose answer was refused or did not come."""
    left_out: float | None
    """Share of its updates that the aggregation left out as a whole; None where it leaves out none."""
    longest: float | None
    """Of the ratios of its norm to the median norm."""
    ratio: float | None
    """Their median."""
    cosine: float | None
    """The median."""
    lowest: float | None
    """The lowest cosine."""


@dataclass(frozen=True, slots=True)
class Anomalies:
    """What the report shows of a run's updates."""

    sites: tuple[SiteUpdates, ...]
    seen: bool
    """Whether single updates were."""
    words: tuple[str, ...]
    """What stands out, and what cannot be shown."""


def anomalies_of(rounds: Sequence[Record], sites: Sequence[str], campaign: Mapping[str, Any]) -> Anomalies | None:
    """None for a run of which nothing of the kind was recorded, as before there was such a record."""
    masked = _group(campaign, "secagg").get("kind") == "masked"
    trained = [record for record in rounds if _group(record, "training") or _group(record, "dropped")]
    seen = any(_group(record, "sites_updates") for record in trained)
    if not trained or not (seen or masked):
        return None
    there = dict.fromkeys([*sites, *(site for record in trained for site in _group(record, "sites_updates"))])
    found = tuple(_of_site(site, trained) for site in there)
    words = [HIDDEN, *([] if _group(campaign, "strategy").get("norm_bound") else [NO_BOUND])] if masked else []
    return Anomalies(found, seen, (*words, *(line for site in found for line in _watch(site))))


def _of_site(site: str, rounds: Sequence[Record]) -> SiteUpdates:
    taken = [record for record in rounds if site in _group(record, "training")]
    refused = [record for record in rounds if site in _group(record, "dropped")]
    ratios = [value for record in rounds if (value := _ratio(record, site)) is not None]
    cosines = [value for record in rounds if (value := _seen(record, site, "cosine")) is not None]
    chosen = [record for record in taken if _group(record, "robust").get("kind") in ("krum", "multi_krum")]
    left_out = [site in _group(record, "robust").get("dropped", ()) for record in chosen]
    return SiteUpdates(
        site,
        len(taken),
        len(refused) / max(len(taken) + len(refused), 1),
        mean(left_out) if left_out else None,
        max(ratios, default=None),
        median(ratios) if ratios else None,
        median(cosines) if cosines else None,
        min(cosines, default=None),
    )


def _ratio(record: Record, site: str) -> float | None:
    """The site's norm over the median of all sites' in the round."""
    own = _seen(record, site, "norm")
    norms = [_seen(record, each, "norm") for each in _group(record, "sites_updates")]
    middle = median([norm for norm in norms if norm is not None] or [0.0])
    return None if own is None or middle <= 0 else own / middle


def _seen(record: Record, site: str, key: str) -> float | None:
    value = _group(_group(record, "sites_updates"), site).get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


def _group(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of a record, of which a file may hold anything."""
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _watch(site: SiteUpdates) -> Iterator[str]:
    if site.ratio is not None and site.ratio > LONG:
        yield f"{site.site}: in half of the rounds its update was {site.ratio:.1f} times the median norm or longer."
    if site.cosine is not None and site.cosine < AGAINST:
        yield f"{site.site}: in half of the rounds its update pointed against the others' (cosine {site.cosine:+.2f})."
    if site.left_out is not None and site.left_out >= OFTEN:
        yield f"{site.site}: left out by the aggregation in {site.left_out:.0%} of its rounds."
    if site.refused >= OFTEN:
        yield f"{site.site}: {site.refused:.0%} of its answers were refused or did not come."
