"""Rows of a study in, the same by model, condition and lambda out; and the lambda that validation patients choose.

model       what was trained: objective, gate, optimiser, networks, where; not its seed nor its lambda
condition   what it was trained for and judged on: data, degradation and its strength
lambda      objective.task_weight; None where recognition does not steer
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from server.study.statistics import mean

Row = Mapping[str, Any]
STATES = ("degraded", "clean")
"""Settings of rows that no model made."""


@dataclass(frozen=True, slots=True)
class Model:
    """Fields as rows name them; the defaults are what an objective is when nothing else is said."""

    method: str
    setting: str = "pooled"
    recognition: str = "supervised"
    gate: str = "global"
    relative: bool = True
    norm_cap: float | None = None
    auxiliaries: str = "together"
    adam_states: str = "one"
    optimiser: str = "adam"
    promotion: str = "none"
    enhancer: str = "unet"
    output: str = "linear"
    recogniser: str = "unet"


@dataclass(frozen=True, slots=True)
class Condition:
    data: str
    test_data: str
    degradation: str
    sigma: float | None = None
    data_consistency: bool = False
    scanners: str = "as they are"
    tuning: str = ""
    """What of the training's settings is tried, in the table that searches them."""

    @property
    def home(self) -> Condition:
        """Where the model was trained, and where its lambda is chosen."""
        return replace(self, test_data=self.data)


@dataclass(frozen=True, slots=True)
class Trained:
    """One column of figures, a value per seed."""

    model: Model
    condition: Condition
    weight: float | None = None
    """lambda"""


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """All rows of some tables, by what they are of and by seed."""

    test: Mapping[Trained, Mapping[int, Row]]
    validation: Mapping[Trained, Mapping[int, Row]]
    states: Mapping[tuple[str, Condition], Mapping[int, Row]]
    """Figures of the degraded and of the clean test images."""
    models: tuple[Model, ...] = field(default=())
    conditions: tuple[Condition, ...] = field(default=())

    def values(self, trained: Trained, metric: str) -> dict[int, float]:
        """The test figure by seed; empty where it was not measured."""
        return figures(self.test.get(trained, {}), metric)

    def of_state(self, state: str, condition: Condition, metric: str) -> dict[int, float]:
        return figures(self.states.get((state, condition), {}), metric)

    def weights(self, model: Model, condition: Condition) -> tuple[float | None, ...]:
        """Every lambda that the model was trained with for this condition, smallest first."""
        found = {each.weight for each in self.test if (each.model, each.condition) == (model, condition)}
        return tuple(sorted(found, key=lambda weight: -1.0 if weight is None else weight))


def figures(rows: Mapping[int, Row], metric: str) -> dict[int, float]:
    return {seed: float(row[metric]) for seed, row in rows.items() if metric in row}


def sheet_of(rows: Iterable[Row], tables: Sequence[str], split: str = "test") -> Sheet:
    """The rows of `tables`; a cell that several of them share is counted once. With split="validation" what would be
    test figures are those of validation patients."""
    test: dict[Trained, dict[int, Row]] = {}
    validation: dict[Trained, dict[int, Row]] = {}
    states: dict[tuple[str, Condition], dict[int, Row]] = {}
    for row in rows:
        if row.get("table") not in tables or row.get("test_site", "all") != "all":
            continue
        condition = condition_of(row)
        if row["setting"] in STATES:
            if row["split"] == split:
                states.setdefault((row["setting"], condition), {})[row["seed"]] = row
            continue
        trained = Trained(model_of(row), condition, row.get("lambda"))
        for name, place in ((split, test), ("validation", validation)):
            if row["split"] == name:
                place.setdefault(trained, {})[row["seed"]] = row
    models = tuple(dict.fromkeys(each.model for each in test))
    return Sheet(test, validation, states, models, tuple(dict.fromkeys(each.condition for each in test)))


def model_of(row: Row) -> Model:
    known = {each.name: row[each.name] for each in fields(Model) if row.get(each.name) is not None}
    if row.get("lambda") is None:  # what could not steer has no unit of lambda
        known["relative"] = True
    return Model(**known)


def condition_of(row: Row) -> Condition:
    return Condition(
        row["data"],
        row.get("test_data", row["data"]),
        row["degradation"],
        row.get("sigma"),
        bool(row.get("data_consistency", False)),
        "all equal" if row.get("table", "").endswith("-iid") else "as they are",
        row.get("tuning", ""),
    )


def tried(sheet: Sheet, model: Model, condition: Condition) -> tuple[float | None, ...]:
    """The lambdas that a choice is made among: those that every objective with a relative lambda was run with, so that
    none is searched for longer than the others; the model's own where there is no such lambda."""
    own = sheet.weights(model, condition)
    if not model.relative:
        return own
    others = {each.model for each in sheet.test if each.model.relative and each.weight is not None}
    grids = [set(weights) for each in others if (weights := sheet.weights(each, condition))]
    shared = set.intersection(*grids) if grids else set()
    return tuple(weight for weight in own if weight in shared) or own


def tuned(sheet: Sheet, model: Model, condition: Condition) -> float | None:
    """The lambda with the best PSNR on validation patients, of those `tried`, by the mean over seeds that all have.

    Where no seed has them all (a study under way), those with the most seeds are compared. The smallest wins a tie.
    """
    weights = tried(sheet, model, condition)
    home = condition.home
    found = {each: figures(sheet.validation.get(Trained(model, home, each), {}), "psnr_db") for each in weights}
    found = {each: values for each, values in found.items() if values}
    if len(weights) < 2 or not found:
        return weights[0] if weights else None
    common = set.intersection(*(set(values) for values in found.values()))
    if not common:
        most = max(len(values) for values in found.values())
        found = {each: values for each, values in found.items() if len(values) == most}
        return max(found, key=lambda each: mean(found[each]))
    return max(found, key=lambda each: mean({seed: found[each][seed] for seed in common}))


def enriched(rows: Iterable[Row], cells: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows with what only their cell's sheet tells: how training went, and overrides that no row names."""
    by_key = {cell["key"]: cell for cell in cells if "key" in cell}
    extra = {key: {**_of_rounds(cell["rounds"]), **_of_overrides(cell["overrides"])} for key, cell in by_key.items()}
    return [{**row, **extra.get(row.get("cell", ""), {})} if row["setting"] not in STATES else row for row in rows]


def _of_rounds(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the rounds in which recognition was looked at; the last main loss; bytes of all rounds."""
    found: dict[str, float] = {}
    steered = [record for record in rounds if "mean_cosine" in record]
    for key in ("gate_open_rate", "mean_cosine", "added_share", "ascent_rate"):
        values = [float(record[key]) for record in steered or rounds if key in record]
        if values:
            found[key] = sum(values) / len(values)
    if any("ascent_rate" in record for record in rounds):
        found["ascent_most"] = max(float(record.get("ascent_rate", 0.0)) for record in rounds)
    if rounds and "loss_enhance" in rounds[-1]:
        found["loss_enhance"] = float(rounds[-1]["loss_enhance"])
    if any("bytes_up" in record for record in rounds):
        found["bytes_up"] = float(sum(record.get("bytes_up", 0) for record in rounds))
    return found


def _of_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    words = dict(word.split("=", 1) for line in overrides for word in line.split() if "=" in word)
    found: dict[str, Any] = {}
    if words.get("objective.mask_weight") in ("0", "0.0"):
        found["auxiliaries"] = "diagnosis only"
    if words.get("objective.diagnosis_weight") in ("0", "0.0"):
        found["auxiliaries"] = "masks only"
    if "enhance.output" in words:
        found["output"] = words["enhance.output"]
    found["settings"] = {name: float(words[key]) for key, name in _SETTINGS.items() if key in words}
    return found


_SETTINGS = {
    "training.learning_rate": "learning rate",
    "objective.warmup": "warm-up",
    "rounds": "rounds",
    "training.local_steps": "local steps",
    "strategy.server_learning_rate": "server's rate",
}
"""What the tables that search settings vary, in the words of people."""


def searched(rows: Iterable[Row], table: str) -> list[Row]:
    """The rows of a table that searches settings, by what they try; beside those of `tuning` stand the cells of
    `lambda`, which have the usual settings."""
    trained = [row for row in rows if row["setting"] not in STATES and "settings" in row]
    search = [row for row in trained if row.get("table") == table]
    if table == "tuning":
        seeds, methods = {row["seed"] for row in search}, {row["method"] for row in search}
        usual = [row for row in trained if row.get("table") == "lambda" and row.get("lambda") in (None, 1.0)]
        search = [*(row for row in usual if row["seed"] in seeds and row["method"] in methods), *search]
    tried = {name: {row["settings"].get(name) for row in search} for name in _SETTINGS.values()}
    varied = [name for name, values in tried.items() if len(values) > 1]
    return [{**row, "table": table, "tuning": _words(row["settings"], varied)} for row in search]


def _words(settings: Mapping[str, float], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {settings[name]:g}" for name in names if name in settings)
