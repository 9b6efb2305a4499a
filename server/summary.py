"""Rows in, the figures that people read first out: means over seeds, the site x model matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.contract import SETTINGS
from server.wording import METRICS

PATIENTS = "patients"
"""Key of how many patients accuracy is a share of."""
Summary = list[tuple[tuple[str, str], dict[str, float]]]
"""(method, setting) and the means over seeds."""


def at_home(row: Mapping[str, Any]) -> bool:
    """Whether the row was judged on the data set that was trained on, as every row is that names no `test_data`."""
    return bool(row.get("test_data", row["data"]) == row["data"])


def summary_rows(rows: Sequence[Mapping[str, Any]]) -> Summary:
    """Rows at home with site and test_site "all", averaged over seeds, in the order of methods and SETTINGS."""
    return _summary([row for row in rows if at_home(row) and row.get("domain", "new") == "new"])


def _summary(rows: Sequence[Mapping[str, Any]]) -> Summary:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["site"] == row["test_site"] == "all":
            groups.setdefault((row["method"], row["setting"]), []).append(row)
    methods = list(dict.fromkeys(method for method, _ in groups))
    order = sorted(groups, key=lambda key: (methods.index(key[0]), SETTINGS.index(key[1])))
    return [(key, _mean_metrics(groups[key])) for key in order]


def elsewhere_rows(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, dict[str, float]]]:
    """Rows judged on another data set than was trained on: (test_data, method, setting, means over seeds)."""
    away = [row for row in rows if not at_home(row)]
    found = []
    for data in dict.fromkeys(row["test_data"] for row in away):
        there = [row for row in away if row["test_data"] == data]
        found += [(data, method, setting, metrics) for (method, setting), metrics in _summary(there)]
    return found


def _mean_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    means: dict[str, float] = {}
    for key in (*METRICS, PATIENTS):
        values = [row[key] for row in rows if key in row]
        if values:
            means[key] = sum(values) / len(values)
    return means


QUALITY_IN_MATRIX = ("psnr_db", "dice", "accuracy")


@dataclass(frozen=True, slots=True)
class Matrix:
    """Models down, test sites across, means over seeds; `heat` is 0 for the worst trained and 1 for the best cell."""

    method: str
    metric: str
    columns: tuple[str, ...]
    models: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    patients: tuple[int | None, ...]
    """Of each test, for accuracy: how many it is a share of; the mean over seeds, rounded."""

    def heat(self, value: float | None) -> float:
        trained = [line for model, line in zip(self.models, self.values, strict=True) if model != "degraded"]
        known = [cell for line in trained for cell in line if cell is not None]
        if value is None or not known or max(known) == min(known):
            return 0.0
        return max(0.0, (value - min(known)) / (max(known) - min(known)))


def matrices(rows: Sequence[Mapping[str, Any]], sites: Sequence[str]) -> list[Matrix]:
    """One matrix per method and metric, read off the rows per site; rows judged elsewhere stand apart."""
    rows = [row for row in rows if at_home(row)]
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        for metric in QUALITY_IN_MATRIX:
            cells: dict[tuple[str, str], list[float]] = {}
            for row in rows:
                if row["method"] == method and metric in row and row["setting"] != "clean":
                    cells.setdefault((_model(row), row["test_site"]), []).append(row[metric])
            models = sorted(dict.fromkeys(model for model, _ in cells), key=_model_order)
            columns = (*(site for site in sites if any(column == site for _, column in cells)), "all")
            if len(columns) > 1:
                values = tuple(tuple(_mean(cells.get((model, column))) for column in columns) for model in models)
                patients = tuple(_patients(rows, method, metric, column) for column in columns)
                found.append(Matrix(method, metric, columns, tuple(models), values, patients))
    return found


def _patients(rows: Sequence[Mapping[str, Any]], method: str, metric: str, test_site: str) -> int | None:
    if metric != "accuracy":
        return None
    of_test = [row for row in rows if row["method"] == method and row["test_site"] == test_site and metric in row]
    mean = _mean([row[PATIENTS] for row in of_test if row.get(PATIENTS) is not None])
    return None if mean is None else round(mean)


def _model(row: Mapping[str, Any]) -> str:
    if row["setting"] != "local":
        return str(row["setting"])
    return "local, mean" if row["site"] == "all" else f"local: {row['site']}"


def _model_order(model: str) -> tuple[int, bool]:
    """In the order of SETTINGS; sites stay as they come, their mean last."""
    return SETTINGS.index(model.split(":")[0].split(",")[0]), model.endswith(", mean")


def _mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None
