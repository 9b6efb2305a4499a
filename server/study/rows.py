"""Rows of a study in, the same by model, condition and lambda out; and the lambda that validation patients choose.

model       what was trained: objective, gate, optimiser, networks, where; not its seed nor its lambda
condition   what it was trained for and judged on: data, degradation and its strength
lambda      objective.task_weight; None where recognition does not steer
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from server.study.statistics import mean

Row = Mapping[str, Any]
STATES = ("degraded", "clean")
"""Settings of rows that no model made."""
WGAN = ("mse-wgan", "sa-wgan", "vgg-wgan", "todnet", "todnet-gated")
EQUAL = "equal"
"""`scanners` of hospitals that all have the same."""


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
    adversarial_weight: float | None = None
    """Of the WGAN objectives; None also in rows of earlier code, which do not say it."""


@dataclass(frozen=True, slots=True)
class Condition:
    data: str
    test_data: str
    degradation: str
    sigma: float | None = None
    data_consistency: bool = False
    scanners: str = "as they are"
    """Or "equal": every hospital has the same."""
    tuning: str = ""
    """What of the training's settings is tried, in the table that searches them."""

    @property
    def home(self) -> Condition:
        """Where the model was trained, and where its lambda is chosen."""
        return replace(self, test_data=self.data)


@dataclass(frozen=True, slots=True)
class Trained:
    """The key that figures are kept under: which model, trained and judged on what, at which lambda. A Sheet has a row
    per seed under each."""

    model: Model
    condition: Condition
    task_weight: float | None = None
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

    def task_weights(self, model: Model, condition: Condition) -> tuple[float | None, ...]:
        """Every lambda that the model was trained with for this condition, smallest first."""
        found = {each.task_weight for each in self.test if (each.model, each.condition) == (model, condition)}
        return tuple(sorted(found, key=lambda task_weight: -1.0 if task_weight is None else task_weight))


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
        # Kept cells of earlier code name no scanners: their table does.
        row.get("scanners", EQUAL if row.get("table", "").endswith("-iid") else "as they are"),
        row.get("tuning", ""),
    )


def tried(sheet: Sheet, model: Model, condition: Condition) -> tuple[float | None, ...]:
    """The lambdas that a choice is made among: those that every objective with a relative lambda was run with, so that
    none is searched for longer than the others; the model's own where there is no such lambda."""
    own = sheet.task_weights(model, condition)
    if not model.relative:
        return own
    others = {each.model for each in sheet.test if each.model.relative and each.task_weight is not None}
    grids = [set(task_weights) for each in others if (task_weights := sheet.task_weights(each, condition))]
    shared = set.intersection(*grids) if grids else set()
    return tuple(task_weight for task_weight in own if task_weight in shared) or own


def tuned(sheet: Sheet, model: Model, condition: Condition) -> float | None:
    """The lambda with the best PSNR on validation patients, of those `tried`, by the mean over the seeds that all of
    them have; the smallest wins a tie.

    None where lambda does not steer, and where no seed has them all (`undecided`): seeds differ by more than lambdas
    do, so that lambdas on different seeds cannot be told apart.
    """
    task_weights = tried(sheet, model, condition)
    if len(task_weights) < 2:
        return task_weights[0] if task_weights else None
    found = {
        each: figures(sheet.validation.get(Trained(model, condition.home, each), {}), "psnr_db")
        for each in task_weights
    }
    common = set.intersection(*(set(values) for values in found.values()))
    if not common:
        return None
    return max(found, key=lambda each: mean({seed: found[each][seed] for seed in common}))


def undecided(sheet: Sheet, model: Model, condition: Condition) -> bool:
    """Whether the model has lambdas to choose among and none could be chosen yet."""
    return len(tried(sheet, model, condition)) > 1 and tuned(sheet, model, condition) is None


def enriched(rows: Iterable[Row], cells: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows with what their cell's sheet tells: how training went; and settings that rows of earlier code leave out."""
    by_key = {cell["key"]: cell for cell in cells if "key" in cell}
    trained = {key: _of_rounds(cell["rounds"]) for key, cell in by_key.items()}
    overrides = {key: _words_of(cell["overrides"]) for key, cell in by_key.items()}
    full: list[Row] = []
    for row in rows:
        key = row.get("cell", "")
        made = row["setting"] not in STATES
        full.append({**row, **trained.get(key, {}), **_labels(row, overrides.get(key, {}))} if made else row)
    return full


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


_WRITTEN = {
    "mask_weight": "objective.mask_weight",
    "diagnosis_weight": "objective.diagnosis_weight",
    "adversarial_weight": "objective.critic.adversarial_weight",
    "learning_rate": "training.learning_rate",
    "warmup": "objective.warmup",
    "rounds": "rounds",
    "local_steps": "training.local_steps",
    "server_learning_rate": "strategy.server_learning_rate",
}
"""Numbers that rows carry, and the overrides that set them."""
_SETTINGS = {
    "learning_rate": "learning rate",
    "warmup": "warm-up",
    "rounds": "rounds",
    "local_steps": "local steps",
    "server_learning_rate": "server's rate",
}
"""What the tables that search settings vary, in the words of people."""


def _words_of(overrides: Sequence[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for line in overrides for word in line.split() if "=" in word)


def _labels(row: Row, overrides: Mapping[str, str]) -> dict[str, Any]:
    """What tells models and settings apart, from the row. Kept cells of earlier code have rows without it: there what
    was set by hand is read off the cell's overrides, and a default of that time stays unknown."""
    numbers = {key: float(row.get(key, overrides.get(name, "nan"))) for key, name in _WRITTEN.items()}
    known = {key: value for key, value in numbers.items() if math.isfinite(value)}
    found: dict[str, Any] = {"settings": {name: known[key] for key, name in _SETTINGS.items() if key in known}}
    if "output" not in row and "enhance.output" in overrides:
        found["output"] = overrides["enhance.output"]
    if "adversarial_weight" in known and (row["method"] in WGAN or "adversarial_weight" in row):
        found["adversarial_weight"] = known["adversarial_weight"]
    if known.get("mask_weight") == 0:
        found["auxiliaries"] = "diagnosis only"
    if known.get("diagnosis_weight") == 0:
        found["auxiliaries"] = "masks only"
    return found


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
