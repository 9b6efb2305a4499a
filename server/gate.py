"""A run's round records in, the charts of "Where the gate opened" out: per site, and the coordinator's own gate.

    training.<site>   gate_open_rate, mean_cosine, added_share (|what recognition added| / |g|), ascent_rate
    promotion         open, cosine, added_share of the federated gate (server/strategies/promotion.py), if there is one

A round without a value (the warm-up has no gate, a site that did not answer has no figures) is a gap in its line: a
rate of 0 would say that the gate was there and shut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server import figures
from server.findings import Run

_CHARTS: tuple[tuple[str, str, str, figures.Axis], ...] = (
    ("gate_open_rate", "open", "gate open, share of steps", figures.Axis(low=0, high=1)),
    ("mean_cosine", "cosine", "cosine of the two gradients, mean", figures.Axis(guide=0)),
    ("added_share", "added_share", "what recognition added, relative to the rest", figures.Axis(low=0)),
    ("ascent_rate", "", "steps that went up the main loss, share", figures.Axis(low=0)),
)


@dataclass(frozen=True, slots=True)
class GateChart:
    title: str
    svg: str


def gate_charts(run: Run, sites: Sequence[str]) -> list[GateChart]:
    """One chart per quantity that was measured; none for a run in which nobody looked at the task's gradient."""
    trained = [record for record in run.rounds if record.get("training")]
    if not any(_measured(trained, site, "gate_open_rate") for site in sites) and not promoted(run):
        return []
    rounds = [int(record["round"]) for record in trained]
    charts = []
    for key, server_key, title, axis in _CHARTS:
        lines = [
            figures.Line(figures.site_colour(index), figures.site_marker(index), _values(trained, site, key))
            for index, site in enumerate(sites)
            if _measured(trained, site, key)
        ]
        promotion = [_number(_promotion(record).get(server_key)) for record in trained]
        if any(map(math.isfinite, promotion)):
            lines.append(figures.Line(figures.INK, "X", promotion, dashed=True))
        if lines:
            svg = figures.round_chart(rounds, lines, axis, label=f"{title}, {run.method}")
            charts.append(GateChart(title, svg))
    return charts


def promoted(run: Run) -> bool:
    """Whether the coordinator had a gate of its own."""
    return any(_mapping(record.get("promotion")) for record in run.rounds)


def _promotion(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the coordinator's gate saw; nothing in a round in which no site's recognition had added anything."""
    found = _mapping(record.get("promotion"))
    return {} if found.get("added_share") == 0 else found


def _measured(records: Sequence[Mapping[str, Any]], site: str, key: str) -> bool:
    return any(map(math.isfinite, _values(records, site, key)))


def _values(records: Sequence[Mapping[str, Any]], site: str, key: str) -> list[float]:
    return [_number(_mapping(record["training"].get(site)).get(key)) for record in records]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (bool, int, float)) else math.nan
