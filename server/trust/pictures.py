"""Sheets of cells in, the chart of a table of attacks out: Dice after every round, a panel per attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from server.study.drawing import Curve, Panel, Picture
from server.trust.rows import Model, Sheet
from server.trust.tables import is_attacked
from server.trust.wording import AGGREGATIONS, ATTACKS, COLOURS, MARKERS


def picture_of(sheet: Sheet, cells: Sequence[Mapping[str, Any]], name: str) -> Picture | None:
    """None for other tables, and where no round was recorded."""
    if not is_attacked(name):
        return None
    rounds = {cell["key"]: _dice(cell["rounds"]) for cell in cells if "key" in cell}
    found: dict[Model, list[list[float]]] = {}
    for (model, _), by_seed in sheet.test.items():
        curves = [rounds.get(str(row.get("cell", "")), []) for row in by_seed.values()]
        found[model] = [curve for curve in curves if curve]
    panels = tuple(filter(None, (_panel(attack, found) for attack in ATTACKS)))
    caption = "Dice on the honest hospitals' own test patients, before each round and after the last; mean over seeds."
    return Picture(name, caption, panels) if panels else None


def _dice(rounds: Sequence[Mapping[str, Any]]) -> list[float]:
    values = [record.get("dice") for record in rounds]
    return [float(value) for value in values if isinstance(value, int | float)]


def _panel(attack: str, found: Mapping[Model, Sequence[Sequence[float]]]) -> Panel | None:
    curves = []
    for robust, words in AGGREGATIONS.items():
        of_seeds = found.get(Model(attack, robust), ())
        if of_seeds:
            shortest = min(map(len, of_seeds))
            ys = tuple(float(np.mean([seed[place] for seed in of_seeds])) for place in range(shortest))
            xs = tuple(float(place) for place in range(shortest))
            curves.append(Curve(words, COLOURS[robust], MARKERS[robust], xs, ys))
    return Panel(f"{ATTACKS[attack]}: Dice", "rounds", tuple(curves), limits=(0.0, 1.0)) if curves else None
