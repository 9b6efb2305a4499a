"""Rows of the recognition study in, the same by what was trained and where it was judged out.

model   what was trained: the method of the papers, the network, the regulariser, in which setting and by which site
place   what it was trained for and judged on: data, labels that training had, the test's site, and whether that
        hospital was in training (domain "in") or was never seen ("cross")
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from server.study.rows import STATES, figures
from server.study.statistics import BySeed
from server.study.wording import SHOWN

Row = Mapping[str, Any]
WEIGHTS = "selfreg-weights"
"""The table that tries SelfReg's weights."""
SELFREG = ("none", "selfreg", "scr", "ifd")


@dataclass(frozen=True, slots=True)
class Model:
    """Fields as rows name them; the defaults are what is meant when nothing else is said."""

    method: str
    """Of the papers, without what SelfReg adds to its name."""
    selfreg: str = "none"
    recogniser: str = "unet"
    mask_ssl: str = "none"
    setting: str = "pooled"
    site: str = "all"
    """Whose local model it is; all: the mean over the local models, or the one model that there is."""
    objective: str = "none"
    """Of an enhancer that was trained with it; none: the recogniser alone."""
    variant: str = ""
    """What was typed for it, where nothing above tells it from another model of its table."""


@dataclass(frozen=True, slots=True)
class Place:
    data: str
    test_data: str
    degradation: str = "none"
    sigma: float | None = None
    labels: str = ""
    """In words: `10 masks, 10 % diagnoses`."""
    masks: float | None = None
    """Slices with a mask in training, over all sites; None: all there are."""
    diagnoses: float | None = None
    """Share of the diagnoses in training; None: all there are."""
    unseen: str = ""
    """The hospital that nobody trained on, where there is one."""
    test_site: str = "all"
    domain: str = "in"

    @property
    def condition(self) -> Place:
        """The same on the tests of all training hospitals."""
        return replace(self, test_site="all", domain="in")


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """Test rows of some tables, by seed."""

    test: Mapping[tuple[Model, Place], Mapping[int, Row]]
    states: Mapping[tuple[str, Place], Mapping[int, Row]]
    """Figures of the degraded and of the clean test images, where there is an enhancer."""
    models: tuple[Model, ...] = field(default=())
    places: tuple[Place, ...] = field(default=())

    @property
    def conditions(self) -> tuple[Place, ...]:
        """The places, whatever hospital's test it is, fewest labels first within a data set."""
        found = list(dict.fromkeys(place.condition for place in self.places))
        first = {data: number for number, data in enumerate(dict.fromkeys(place.data for place in found))}
        return tuple(sorted(found, key=lambda place: (first[place.data], place.sigma or 0, *_amount(place))))

    def values(self, model: Model, place: Place, metric: str) -> dict[int, float]:
        """The test figure by seed; empty where it was not measured."""
        return figures(self.test.get((model, place), {}), metric)

    def of_state(self, state: str, place: Place, metric: str) -> dict[int, float]:
        return figures(self.states.get((state, place), {}), metric)

    def like(self, model: Model, **changes: Any) -> Model:
        """The model that differs from this one by `changes`; also where something else was typed for this one."""
        wanted = replace(model, **changes)
        plain = replace(wanted, variant="")
        return plain if wanted not in self.models and plain in self.models else wanted


def _amount(place: Place) -> tuple[float, float]:
    masks, diagnoses = (float("inf") if each is None else each for each in (place.masks, place.diagnoses))
    return masks, diagnoses


def sheet_of(rows: Iterable[Row], tables: Sequence[str]) -> Sheet:
    """The test rows of `tables`; a cell that several of them share is counted once. Rows must be `enriched`."""
    test: dict[tuple[Model, Place], dict[int, Row]] = {}
    states: dict[tuple[str, Place], dict[int, Row]] = {}
    for row in rows:
        if row.get("table") not in tables or row["split"] != "test":
            continue
        if row["setting"] in STATES:
            states.setdefault((row["setting"], place_of(row)), {})[row["seed"]] = row
        else:
            test.setdefault((model_of(row), place_of(row)), {})[row["seed"]] = row
    models, places = (tuple(dict.fromkeys(each)) for each in zip(*test, strict=True)) if test else ((), ())
    return Sheet(test, states, models, places)


def model_of(row: Row) -> Model:
    method, _, added = row["method"].partition("+")
    return Model(
        method,
        added or row.get("selfreg") or "none",
        row.get("recogniser") or "unet",
        row.get("mask_ssl") or "none",
        row["setting"],
        row["site"],
        row.get("objective") or "none",
        row.get("variant", ""),
    )


def place_of(row: Row) -> Place:
    return Place(
        row["data"],
        row.get("test_data") or row["data"],
        row["degradation"],
        None if row["degradation"] == "none" else row.get("sigma"),
        row.get("labels") or "",
        row.get("masks"),
        row.get("diagnoses"),
        row.get("unseen") or "",
        row["test_site"],
        row.get("domain") or "in",
    )


def enriched(rows: Sequence[Row], cells: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows with how training went, and with the words that tell models of one table apart where no label does."""
    by_key = {cell["key"]: cell for cell in cells if "key" in cell}
    trained = {key: _of_rounds(cell["rounds"]) for key, cell in by_key.items()}
    variants = _variants(rows, by_key)
    full: list[Row] = []
    for row in rows:
        key = row.get("cell", "")
        variant = variants.get((row.get("table", ""), key), "")
        made = row["setting"] not in STATES
        # A round's record is of the model that one training made: not of each of a cell's local models.
        known = trained.get(key, {}) if made and row["setting"] != "local" else {}
        full.append({**row, **known, "variant": variant})
    return [*full, *pooled_tests(full)]


_OVER_PATIENTS = ("f1", "auc", "seconds", "bytes_up", "samples_seen")
"""What is no mean over images: it cannot be put together from several hospitals' tests."""


def pooled_tests(rows: Sequence[Row]) -> list[Row]:
    """A local model's row over the tests of all training hospitals, where it has none: its figures on each of them,
    weighted by their images."""
    tests: dict[tuple[Any, ...], list[Row]] = {}
    there = set()
    for row in rows:
        if row["setting"] == "local" and row["site"] != "all" and (row.get("domain") or "in") == "in":
            key = (row.get("table"), row.get("cell"), row["site"], row["split"], row["seed"])
            if row["test_site"] == "all":
                there.add(key)
            else:
                tests.setdefault(key, []).append(row)
    return [_pooled(found) for key, found in tests.items() if key not in there]


def _means_of(row: Row) -> list[str]:
    names = {key: key.partition(".")[0] for key in row}
    return [key for key, name in names.items() if name in SHOWN and name not in _OVER_PATIENTS]


def _pooled(rows: Sequence[Row]) -> Row:
    images = sum(row["n"] for row in rows) or 1
    kept = {key: value for key, value in rows[0].items() if key.partition(".")[0] not in SHOWN}
    means = {}
    for key in _means_of(rows[0]):
        if all(row.get(key) is not None for row in rows):
            means[key] = sum(row[key] * row["n"] for row in rows) / images
    return {**kept, **means, "test_site": "all", "n": images}


def _variants(rows: Sequence[Row], cells: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """Cells of one table whose rows say the same of model and place: what was typed for each and not for the others."""
    alike: dict[tuple[str, Model, Place], dict[str, set[str]]] = {}
    for row in rows:
        cell = cells.get(row.get("cell", ""))
        if cell is not None and row["setting"] not in STATES:
            words = {word for line in cell["overrides"] for word in line.split()}
            place = (row.get("table", ""), replace(model_of(row), variant=""), place_of(row))
            alike.setdefault(place, {})[row.get("cell", "")] = words
    found: dict[tuple[str, str], str] = {}
    for (table, _, _), typed in alike.items():
        common = set.intersection(*typed.values())
        if len(typed) > 1:
            found |= {(table, key): " ".join(sorted(words - common)) for key, words in typed.items() if words - common}
        if table == WEIGHTS:  # the weights are what is asked about, also where nothing else has the same name
            for key, words in typed.items():
                found[table, key] = " ".join(
                    sorted(w.removeprefix("selfreg.") for w in words if w.startswith("selfreg."))
                )
    return found


def _of_rounds(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Rank of the features at the end; pseudo-labels offered and accepted over the whole training."""
    known = [
        {key: float(value) for key, value in record.items() if isinstance(value, int | float)} for record in rounds
    ]
    found: dict[str, float] = {}
    ranks = [record["feature_rank"] for record in known if "feature_rank" in record]
    if ranks:
        found["feature_rank"] = ranks[-1]
    counts = dict.fromkeys(key for record in known for key in record if _counted(key))
    found |= {key: sum(record.get(key, 0.0) for record in known) for key in counts}
    for key in dict.fromkeys(key for record in known for key in record if key.startswith("images.")):
        found[key] = sum(record.get(key, 0.0) for record in known) / len(known)
    accepted = sum(value for key, value in found.items() if key.startswith("pseudo_accepted."))
    rates = [record["pseudo_accept_rate"] for record in known if "pseudo_accept_rate" in record]
    if found.get("pseudo_offered"):
        found["pseudo_accept_rate"] = accepted / found["pseudo_offered"]
    elif rates:
        found["pseudo_accept_rate"] = sum(rates) / len(rates)
    return found


def _counted(key: str) -> bool:
    return key == "pseudo_offered" or key.startswith("pseudo_accepted.")


_WITHOUT = re.compile(r"(masks|diagnoses)\s*:\s*0(\.0*)?\s*(?=[,}]|$)")


def sites_without(kind: str, cells: Iterable[Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    """By cell: the sites that train without any label of `kind` (masks or diagnoses), as its data.labels say."""
    found = {}
    for cell in cells:
        sites = set()
        for line in cell["overrides"]:
            for match in re.finditer(r"data\.labels\.([\w-]+)\.(masks|diagnoses)=0(?:\.0*)?(?=\s|$)", line):
                sites |= {match[1]} if match[2] == kind else set()
            for inside in re.finditer(r"data\.labels(?:\.([\w-]+))?=(\{\S.*\})", line):
                named = [(inside[1], inside[2])] if inside[1] else re.findall(r"([\w-]+)\s*:\s*\{([^{}]*)\}", inside[2])
                sites |= {site for site, words in named if kind in {each[0] for each in _WITHOUT.findall(words)}}
        found[cell.get("key", "")] = frozenset(sites)
    return found


def mean_by_seed(parts: Sequence[BySeed]) -> dict[int, float]:
    """The mean of several figures on the seeds that all of them have."""
    common = set.intersection(*(set(part) for part in parts)) if parts else set()
    return {seed: sum(part[seed] for part in parts) / len(parts) for seed in sorted(common)}
