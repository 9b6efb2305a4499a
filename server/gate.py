"""A run's round records in, the charts of "Where the gate opened" out: of the sites, and of the coordinator's own gate.

    training.<site>   gate_open_rate, mean_cosine, added_share (|what recognition added| / |g|), ascent_rate:
                      of gradients, means over the round's steps
    promotion         open, cosine, added_share of the federated gate (server/strategies/promotion.py), if there is one:
                      of movements of the weights, A and M, over the whole round

The two do not measure the same and share no axis.

A round without a value (the warm-up has no gate, a site that did not answer has no figures) is a gap in its line: a
rate of 0 would say that the gate was there and shut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from server import figures
from server.findings import Run

_SITES: tuple[tuple[str, str, figures.Axis], ...] = (
    ("gate_open_rate", "gate open, share of steps", figures.Axis(low=0, high=1)),
    ("mean_cosine", "cos(g, v), mean over steps", figures.Axis(guide=0)),
    ("added_share", "|added| / |g|, mean over steps", figures.Axis(low=0)),
    ("ascent_rate", "steps uphill to first order, share", figures.Axis(low=0)),
)
_COORDINATOR: tuple[tuple[str, str, figures.Axis], ...] = (
    ("open", "coordinator's gate open, share", figures.Axis(low=0, high=1)),
    ("cosine", "cos(A, M) of the round", figures.Axis(guide=0)),
    ("added_share", "|A| / |M| of the round, before the gate", figures.Axis(low=0)),
)


def gate_charts(run: Run, sites: Sequence[str]) -> list[figures.Chart]:
    """Of the sites: one chart per quantity that was measured; none for a run in which nobody looked at the task's
    gradient."""
    trained = _trained(run)
    if not any(_measured(trained, site, "gate_open_rate") for site in sites):
        return []
    charts = []
    for key, title, axis in _SITES:
        lines = [
            figures.Line(figures.site_colour(index), figures.site_marker(index), _values(trained, site, key))
            for index, site in enumerate(sites)
            if _measured(trained, site, key)
        ]
        if lines:
            charts.append(_chart(run, trained, lines, title, axis))
    return charts


def promotion_charts(run: Run) -> list[figures.Chart]:
    """Of the coordinator's own gate: what it made of the sites' mean movement; none where it had no gate."""
    trained = _trained(run)
    charts = []
    for key, title, axis in _COORDINATOR:
        values = [_number(_promotion(record).get(key)) for record in trained]
        if any(map(math.isfinite, values)):
            charts.append(_chart(run, trained, [figures.Line(figures.INK, "X", values)], title, axis))
    return charts


def _trained(run: Run) -> list[Mapping[str, Any]]:
    return [record for record in run.rounds if record.get("training")]


def _chart(
    run: Run, trained: Sequence[Mapping[str, Any]], lines: Sequence[figures.Line], title: str, axis: figures.Axis
) -> figures.Chart:
    rounds = [int(record["round"]) for record in trained]
    return figures.Chart(title, figures.round_chart(rounds, lines, axis, label=f"{title}, {run.method}"))


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
