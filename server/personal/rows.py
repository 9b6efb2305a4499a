"""Rows of the personalisation study in, the same by what was adapted and where it was judged out.

model   how the release was adapted, from how many studies; or one that learned from the new scanner alone
place   data, scanners' degradations, the setting of the release
domain  new: the scanner that the release is adapted to; old: those that trained it (all, or one of them)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from server.study.rows import figures

Row = Mapping[str, Any]
DOMAINS = ("new", "old")
RELEASE = "none"
"""Method of the release as it is."""


@dataclass(frozen=True, slots=True)
class Model:
    """Fields as rows name them; a default stands where a method has no such thing."""

    method: str
    loss: str = "clean"
    steer: str = "none"
    labels: str = "own"
    studies: int = 0
    """Patients of the new scanner; 0: all that train."""
    rehearse: float = 0.0
    """Weight of the loss on reference images; 0: they are not trained on."""
    blocks: int = 0
    tgd_form: str = ""
    tgd_first_layer: str = ""
    tgd_phi: float = 0.0
    """0: the dropping test picks it."""
    variant: str = ""
    """What was typed for it, where nothing above tells it from another model of its table."""


@dataclass(frozen=True, slots=True)
class Place:
    data: str
    old_degradation: str
    new_degradation: str
    release: str
    judged: str = "quality"


Key = tuple[Model, Place, str, str]
"""Model, place, domain, test site ("all": of the whole domain)."""


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """Rows of some tables, by seed."""

    test: Mapping[Key, Mapping[int, Row]]
    states: Mapping[tuple[str, Place, str], Mapping[int, Row]]
    """Of images that no model made: state, place, domain."""
    models: tuple[Model, ...] = field(default=())
    places: tuple[Place, ...] = field(default=())

    def values(
        self, model: Model | None, place: Place, domain: str, metric: str, test_site: str = "all"
    ) -> dict[int, float]:
        """The figure by seed; empty where it was not measured."""
        return figures(self.test.get((model, place, domain, test_site), {}), metric) if model else {}

    def of_state(self, state: str, place: Place, domain: str, metric: str) -> dict[int, float]:
        return figures(self.states.get((state, place, domain), {}), metric)

    def release(self, place: Place) -> Model | None:
        """The release as it is, where it was judged."""
        found = (each for each in self.models if each.method == RELEASE)
        return next((each for each in found if self.values(each, place, "new", "psnr_db")), None)

    @property
    def old_sites(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(site for _, _, domain, site in self.test if domain == "old" and site != "all"))


def sheet_of(rows: Iterable[Row], tables: Sequence[str]) -> Sheet:
    """The rows of `tables`; a cell that several of them share is counted once. Rows must be `enriched`."""
    test: dict[Key, dict[int, Row]] = {}
    states: dict[tuple[str, Place, str], dict[int, Row]] = {}
    for row in rows:
        domain = row.get("domain")
        if row.get("table") not in tables or row["split"] != "test" or domain not in DOMAINS:
            continue
        place = place_of(row)
        if row["setting"] == "personalised":
            test.setdefault((model_of(row), place, domain, row["test_site"]), {})[row["seed"]] = row
        elif row["test_site"] == "all":
            states.setdefault((row["setting"], place, domain), {})[row["seed"]] = row
    models, places = (tuple(dict.fromkeys(key[part] for key in test)) for part in (0, 1))
    return Sheet(test, states, models, places)  # type: ignore[arg-type]


def model_of(row: Row) -> Model:
    told = {each.name: row[each.name] for each in fields(Model) if row.get(each.name) is not None}
    return Model(**told)


def place_of(row: Row) -> Place:
    words = {each.name: str(row.get(each.name) or "") for each in fields(Place)}
    return Place(**words)


def enriched(rows: Sequence[Row], cells: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows with the words that tell models of one table apart where no label does."""
    by_key = {cell["key"]: cell for cell in cells if "key" in cell}
    alike: dict[tuple[str, Model, Place], dict[str, set[str]]] = {}
    for row in rows:
        cell = by_key.get(row.get("cell", ""))
        if cell is not None:
            words = {word for line in cell["overrides"] for word in line.split()}
            same = (row.get("table", ""), replace(model_of(row), variant=""), place_of(row))
            alike.setdefault(same, {})[row.get("cell", "")] = words
    found: dict[tuple[str, str], str] = {}
    for (table, _, _), typed in alike.items():
        common = set.intersection(*typed.values())
        found |= {(table, key): " ".join(sorted(words - common)) for key, words in typed.items() if words - common}
    return [{**row, "variant": found.get((row.get("table", ""), row.get("cell", "")), "")} for row in rows]
