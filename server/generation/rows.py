"""Rows of the generation study in, the same by what was trained and where it was judged out.

model   what was trained: a recogniser with an augmentation (and whose generator drew for it), or a generator itself;
        how it was conditioned and sampled
place   as in the recognition study: data, labels that training had, the test's site
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from server.recognition.rows import Place, place_of
from server.study.rows import figures

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Model:
    """Fields as rows name them; a default stands where a model has no generator."""

    method: str
    """The augmentation; of a generator itself, emit-diff."""
    setting: str = "pooled"
    site: str = "all"
    """Whose local model it is; all: the mean over local models, or the one model that there is."""
    generator: str = "none"
    """In which setting the generator was trained that drew for it."""
    prediction: str = ""
    text: str = ""
    edges: str = ""
    contour: str = ""
    box: bool = False
    sampler: str = ""
    steps: int = 0
    guidance: float = 0.0
    classes: str = ""
    task_weight: float = 0.0
    task_gate: str = ""
    balance: bool = False
    variant: str = ""
    """What was typed for it, where nothing above tells it from another model of its table."""


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """Test rows of some tables, by seed."""

    test: Mapping[tuple[Model, Place], Mapping[int, Row]]
    models: tuple[Model, ...] = field(default=())
    places: tuple[Place, ...] = field(default=())

    @property
    def conditions(self) -> tuple[Place, ...]:
        """The places, whatever hospital's test it is."""
        return tuple(dict.fromkeys(place.condition for place in self.places))

    def values(self, model: Model | None, place: Place, metric: str) -> dict[int, float]:
        """The test figure by seed; empty where it was not measured."""
        return figures(self.test.get((model, place), {}), metric) if model else {}

    def parts(self, metric: str) -> list[str]:
        """`dice.<mask>` of the metric dice, in the order in which they come."""
        found = (key for rows in self.test.values() for row in rows.values() for key in row)
        return list(dict.fromkeys(key for key in found if key.startswith(f"{metric}.")))


def sheet_of(rows: Iterable[Row], tables: Sequence[str]) -> Sheet:
    """The test rows of `tables`; a cell that several of them share is counted once. Rows must be `enriched`."""
    test: dict[tuple[Model, Place], dict[int, Row]] = {}
    for row in rows:
        if row.get("table") in tables and row["split"] == "test":
            test.setdefault((model_of(row), place_of(row)), {})[row["seed"]] = row
    models, places = (tuple(dict.fromkeys(each)) for each in zip(*test, strict=True)) if test else ((), ())
    return Sheet(test, models, places)


def model_of(row: Row) -> Model:
    told = {each.name: row[each.name] for each in fields(Model) if row.get(each.name) is not None}
    return Model(**told)


def enriched(rows: Sequence[Row], cells: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows with the words that tell models of one table apart where no label does."""
    variants = _variants(rows, {cell["key"]: cell for cell in cells if "key" in cell})
    return [{**row, "variant": variants.get((row.get("table", ""), row.get("cell", "")), "")} for row in rows]


def _variants(rows: Sequence[Row], cells: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """Cells of one table whose rows say the same of model and place: what was typed for each and not for the others."""
    alike: dict[tuple[str, Model, Place], dict[str, set[str]]] = {}
    for row in rows:
        cell = cells.get(row.get("cell", ""))
        if cell is not None:
            words = {word for line in cell["overrides"] for word in line.split()}
            same = (row.get("table", ""), replace(model_of(row), variant=""), place_of(row))
            alike.setdefault(same, {})[row.get("cell", "")] = words
    found: dict[tuple[str, str], str] = {}
    for (table, _, _), typed in alike.items():
        common = set.intersection(*typed.values())
        if len(typed) > 1:
            found |= {(table, key): " ".join(sorted(words - common)) for key, words in typed.items() if words - common}
    return found
