"""Rows of the trust study in, the same by how the federation was attacked and protected, and by seed, out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from server.study.rows import figures

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Model:
    """How a federation was attacked and protected; by default neither."""

    attack: str = "none"
    robust: str = "none"
    secagg: str = "visible_updates"
    privacy: str = "none"
    epsilon_budget: float = 0.0
    trained: str = "all"


PLAIN = Model()
"""FedAvg over visible updates of honest sites: what the others are compared with."""


@dataclass(frozen=True, slots=True)
class Place:
    data: str
    hospitals: int
    patients: int
    """Of all hospitals together."""


Key = tuple[Model, Place]


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """Rows of some tables, by seed."""

    test: Mapping[Key, Mapping[int, Row]]
    states: Mapping[tuple[str, Place], Mapping[int, Row]]
    """Of images that no model made."""
    models: tuple[Model, ...] = field(default=())
    places: tuple[Place, ...] = field(default=())

    def values(self, model: Model, place: Place, metric: str) -> dict[int, float]:
        """The figure by seed; empty where it was not measured."""
        return figures(self.test.get((model, place), {}), metric)

    def of_state(self, state: str, place: Place, metric: str) -> dict[int, float]:
        return figures(self.states.get((state, place), {}), metric)


def sheet_of(rows: Iterable[Row], tables: Sequence[str]) -> Sheet:
    """The test rows of `tables`; a cell that several of them share is counted once."""
    test: dict[Key, dict[int, Row]] = {}
    states: dict[tuple[str, Place], dict[int, Row]] = {}
    for row in rows:
        if row.get("table") not in tables or row["split"] != "test" or row["test_site"] != "all":
            continue
        if row["setting"] == "federated":
            test.setdefault((model_of(row), place_of(row)), {})[row["seed"]] = row
        else:
            states.setdefault((row["setting"], place_of(row)), {})[row["seed"]] = row
    models = tuple(dict.fromkeys(model for model, _ in test))
    return Sheet(test, states, models, tuple(dict.fromkeys(place for _, place in test)))


def model_of(row: Row) -> Model:
    return Model(**{each.name: row[each.name] for each in fields(Model) if row.get(each.name) is not None})


def place_of(row: Row) -> Place:
    return Place(str(row["data"]), int(row.get("hospitals") or 0), int(row.get("patients") or 0))
