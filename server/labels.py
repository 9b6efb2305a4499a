"""A run's round records in, "Labels and pseudo-labels" out: which site trained what, and on labels of whose making.

    images.<site>     part of the recogniser (shared.weights.PARTS) -> weighted count of images whose loss moved it in
                      this round: 1 with a label, without one the weight of its term (counts_as in
                      client/train/multimix.py), rounded up
    training.<site>   pseudo_offered, pseudo_accepted.<diagnosis> (counts of images), pseudo_accept_rate,
                      feature_rank (effective rank of the last features), loss_selfreg

A simulation, which holds the hidden diagnoses, adds how many pseudo-labels of the final model are right
(simulation/pseudo.py).

Only runs that learn from unlabelled images or with SelfReg have keys of the second kind; others have no such section.
Counts are summed over rounds. A round without a value (nothing offered, a site that did not answer) is a gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server import figures
from server.findings import Run
from shared.weights import PARTS

_KEYS = ("pseudo_offered", "pseudo_accept_rate", "feature_rank", "loss_selfreg")
_ACCEPTED = "pseudo_accepted."
_PARTS: Mapping[str, str] = {
    "encoder": "encoder",
    "decoder": "decoder (masks)",
    "diagnosis": "class head (diagnoses)",
    "prior": "mean mask map",
}
_CHARTS: tuple[tuple[str, str, figures.Axis, str], ...] = (
    ("pseudo_accept_rate", "pseudo-labels accepted, share", figures.Axis(low=0, high=1), ""),
    (
        "feature_rank",
        "effective rank of the features",
        figures.Axis(low=0),
        "How many different maps the channels of the recogniser's last features amount to: 1 when all show the same, "
        "at most the number of channels; one that falls far says that the features collapse.",
    ),
    (
        "loss_selfreg",
        "SelfReg's loss, training",
        figures.Axis(low=0),
        "How far the network's inner features are from the last ones that teach them, with SelfReg's weights in it: it "
        "may fall because features agree or because they collapse, so read it beside the rank.",
    ),
)
"""Key of the training record, title, axis, and what it is."""
COLLAPSED = 0.5
"""Of the first rank: what is below is told in words."""
FEWEST = 20
"""Accepted pseudo-labels that a warning of one answer needs: a few may well be alike."""


@dataclass(frozen=True, slots=True)
class SiteLabels:
    """One line of the tables, summed over rounds; None where nothing was counted."""

    site: str
    images: tuple[int | None, ...]
    """Weighted counts by part, in the order of the section's `parts`."""
    offered: int | None
    accepted: int | None
    by_class: tuple[int | None, ...]

    @property
    def rate(self) -> float | None:
        return self.accepted / self.offered if self.offered and self.accepted is not None else None


@dataclass(frozen=True, slots=True)
class Judged:
    """What the final model makes of a site's training images without a diagnosis, where the truth is known; counts."""

    site: str
    offered: int
    accepted: int
    known: int
    """Of the accepted ones."""
    right: int

    @property
    def rate(self) -> float | None:
        return self.accepted / self.offered if self.offered else None

    @property
    def right_rate(self) -> float | None:
        return self.right / self.known if self.known else None


@dataclass(frozen=True, slots=True)
class LabelSection:
    parts: tuple[str, ...]
    classes: tuple[str, ...]
    sites: tuple[SiteLabels, ...]
    charts: tuple[figures.Chart, ...]
    judged: tuple[Judged, ...]
    watch: tuple[str, ...]
    """What may go wrong, in words: pseudo-labels of one class only or none accepted; what the feature rank did."""

    @property
    def pseudo(self) -> bool:
        return any(line.offered is not None for line in self.sites)


def label_section(run: Run, sites: Sequence[str], diagnoses: Sequence[str]) -> LabelSection | None:
    """None for a run in which no site learned from unlabelled images or with SelfReg."""
    trained = [record for record in run.rounds if record.get("training")]
    told = any(_tells(_site(record, "training", site)) for record in trained for site in sites)
    if not told and not run.pseudo_labels:
        return None
    parts = [part for part in PARTS if any(part in _site(r, "images", site) for r in trained for site in sites)]
    classes = _classes(trained, sites, diagnoses)
    lines = tuple(_line(trained, site, parts, list(classes)) for site in sites)
    return LabelSection(
        parts=tuple(_PARTS[part] for part in parts),
        classes=tuple(classes.values()),
        sites=lines,
        charts=tuple(_charts(run, trained, sites)),
        judged=tuple(_judged(site, run.pseudo_labels[site]) for site in sites if site in run.pseudo_labels),
        watch=(*_one_sided(lines, list(classes.values())), *_ranks_watched(trained, sites)),
    )


def _tells(training: Mapping[str, Any]) -> bool:
    return any(key in _KEYS or key.startswith(_ACCEPTED) for key in training)


def _classes(trained: Sequence[Mapping[str, Any]], sites: Sequence[str], diagnoses: Sequence[str]) -> dict[str, str]:
    """Key of the training record -> name of the diagnosis: the campaign's in its order, then whatever else stands
    there."""
    found = {key for r in trained for site in sites for key in _site(r, "training", site) if key.startswith(_ACCEPTED)}
    named = {_ACCEPTED + name.replace(" ", "_"): name for name in diagnoses}
    others = {key: key.removeprefix(_ACCEPTED).replace("_", " ") for key in sorted(found - named.keys())}
    return {key: name for key, name in named.items() if key in found} | others


def _line(trained: Sequence[Mapping[str, Any]], site: str, parts: Sequence[str], accepted: Sequence[str]) -> SiteLabels:
    by_class = [_sum(trained, "training", site, key) for key in accepted]
    counted = [count for count in by_class if count is not None]
    return SiteLabels(
        site=site,
        images=tuple(_sum(trained, "images", site, part) for part in parts),
        offered=_sum(trained, "training", site, "pseudo_offered"),
        accepted=sum(counted) if counted else None,
        by_class=tuple(by_class),
    )


def _judged(site: str, counts: Mapping[str, int]) -> Judged:
    return Judged(site, *(counts.get(key, 0) for key in ("offered", "accepted", "known", "right")))


def _charts(run: Run, trained: Sequence[Mapping[str, Any]], sites: Sequence[str]) -> Iterator[figures.Chart]:
    rounds = [int(record["round"]) for record in trained]
    for key, title, axis, note in _CHARTS:
        lines = [
            figures.Line(figures.site_colour(index), figures.site_marker(index), values)
            for index, site in enumerate(sites)
            if any(map(math.isfinite, values := _values(trained, site, key)))
        ]
        if lines:
            label = f"{title}, {run.method}"
            yield figures.Chart(title, figures.round_chart(rounds, lines, axis, label=label, blank="no figure"), note)


def _one_sided(lines: Sequence[SiteLabels], classes: Sequence[str]) -> Iterator[str]:
    """One sentence per site whose pseudo-labels taught it nothing, or one answer."""
    for line in lines:
        if not line.offered or line.accepted is None:
            continue
        taken = [name for name, count in zip(classes, line.by_class, strict=True) if count]
        if not taken:
            yield f"{line.site}: none of the {line.offered:,} pseudo-labels was confident enough to be accepted."
        elif len(taken) == 1 < len(classes) and line.accepted >= FEWEST:
            yield (
                f"{line.site}: every accepted pseudo-label is “{taken[0]}”. The recogniser may be teaching itself one "
                "answer: raise learn.threshold, or lower learn.diagnosis_ssl_weight."
            )


def _ranks_watched(trained: Sequence[Mapping[str, Any]], sites: Sequence[str]) -> Iterator[str]:
    """One sentence per site whose features lost more than half of their rank, or one that none did."""
    ranked = {site: ranks for site in sites if (ranks := _ranks(trained, site))}
    fallen = [site for site, ranks in ranked.items() if any(_is_low(rank, ranks) for _, rank in ranks)]
    for site in fallen:
        ranks = ranked[site]
        number, low = next((number, rank) for number, rank in ranks if _is_low(rank, ranks))
        first_round, first = ranks[0]
        last_round, last = ranks[-1]
        now = "" if number == last_round else f"; in round {last_round} it is {last:.1f}"
        yield (
            f"{site}: the feature rank fell to {low:.1f} in round {number}, below half of the {first:.1f} of round "
            f"{first_round}{now}. The features may be collapsing: lower selfreg's weights, or leave it out."
        )
    if ranked and not fallen:
        yield "No site's feature rank fell below half of its first value."


def _is_low(rank: float, ranks: Sequence[tuple[int, float]]) -> bool:
    return rank < COLLAPSED * ranks[0][1]


def _ranks(trained: Sequence[Mapping[str, Any]], site: str) -> list[tuple[int, float]]:
    values = zip(trained, _values(trained, site, "feature_rank"), strict=True)
    return [(int(record["round"]), value) for record, value in values if math.isfinite(value)]


def _values(trained: Sequence[Mapping[str, Any]], site: str, key: str) -> list[float]:
    return [_number(_site(record, "training", site).get(key)) for record in trained]


def _sum(trained: Sequence[Mapping[str, Any]], kind: str, site: str, key: str) -> int | None:
    counts = [_number(_site(record, kind, site).get(key)) for record in trained]
    finite = [count for count in counts if math.isfinite(count)]
    total = sum(finite)  # a site may send the largest float in every round
    return round(total) if finite and math.isfinite(total) else None


def _site(record: Mapping[str, Any], kind: str, site: str) -> Mapping[str, Any]:
    found = record.get(kind)
    of_site = found.get(site) if isinstance(found, Mapping) else None
    return of_site if isinstance(of_site, Mapping) else {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
