"""Scores of every model on every site's test in, the rows of report.json out: per site, and one over all.

`n` of a row counts images, and `patients` those with a diagnosis, which accuracy is a share of.

A row over all sites is the mean over all their test images (or patients), not over sites. The summary of `local` is the
mean over the sites' models of that; a site that had no label of a kind to train with is left out of the mean of that
kind's metrics, for its model was never taught them. A metric that is not defined (no mask, one diagnosis only) is left
out of its row, a state of the image that does not differ from another (enhance=none, degrade=none) has no rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.metrics import one_per_test

Values = Mapping[str, npt.NDArray[np.float64]]
Row = dict[str, Any]
_OF_MASKS = ("dice", "jaccard", "precision", "recall", "mask_ssim", "missed")
_OF_DIAGNOSES = ("accuracy", "auc", "f1")
_DISTANCES = ("hd", "ahd", "hd95")


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One model's scores: by test site, and `together` for what can only be measured over all patients (AUC, F1)."""

    setting: str
    site: str
    by_test: Mapping[str, Values]
    together: Mapping[str, float]
    images: Mapping[str, int]
    """Test images of each site."""
    taught: Mapping[str, int] = field(default_factory=dict)
    """TAUGHT -> labels that the model was trained with; not counted: {}."""


TAUGHT: Mapping[str, str] = {"masks": "train_masks", "diagnoses": "train_diagnoses"}
"""Kind of label -> the key of a local model's rows that counts those its site trained with: slices, patients."""


def kind_of_label(metric: str) -> str | None:
    """The kind of label that a metric's recogniser is taught by: masks, diagnoses, or none (image quality)."""
    name = metric.partition(".")[0]
    if name in _OF_DIAGNOSES:
        return "diagnoses"
    return "masks" if name in _OF_MASKS or name.partition("_")[0] in _DISTANCES else None


def untaught(row: Mapping[str, Any], metric: str) -> bool:
    """Whether the row is of a model whose site had no label of the metric's kind to train with."""
    kind = kind_of_label(metric)
    return kind is not None and row.get(TAUGHT[kind]) == 0


def rows_of(models: Sequence[Judged], labels: Mapping[str, Any], costs: Mapping[tuple[str, str], Row]) -> list[Row]:
    """All rows of one campaign. `labels` go into each; `costs` (by setting and site) into the rows over all tests."""
    rows: list[Row] = []
    for model in models:
        if model.setting == "federated":
            for state in ("clean", "degraded"):
                if any(key.startswith(f"{state}.") for values in model.by_test.values() for key in values):
                    rows += _rows(model, state, labels, setting=state)
        of_model = _rows(model, "enhanced", labels, setting=model.setting)
        of_model[-1] |= costs.get((model.setting, model.site), {})
        rows += of_model
    local = [row for row in rows if row["setting"] == "local"]
    for test_site in dict.fromkeys(row["test_site"] for row in local):
        rows.append(_mean_row([row for row in local if row["test_site"] == test_site]))
    return rows


def _rows(model: Judged, state: str, labels: Mapping[str, Any], *, setting: str) -> list[Row]:
    """One row per test site, then the one over all."""
    rows = []
    labels = {**labels, **(model.taught if setting == "local" else {})}
    for test_site, values in model.by_test.items():
        metrics: Row = {**metrics_of([values], state), **_patients([values], state)}
        rows.append(_row(labels, setting, model.site, test_site, model.images[test_site], metrics))
    together = {
        key.removeprefix(f"{state}."): value for key, value in model.together.items() if key.startswith(f"{state}.")
    }
    by_test = list(model.by_test.values())
    metrics = {**metrics_of(by_test, state), **_finite(together), **_patients(by_test, state)}
    return [*rows, _row(labels, setting, model.site, "all", sum(model.images.values()), metrics)]


def _patients(scores: Sequence[Values], state: str) -> dict[str, int]:
    """How many patients the accuracy is a share of: `n` counts images."""
    counted = [np.isfinite(values[key]).sum() for values in scores if (key := f"{state}.accuracy") in values]
    return {"patients": int(sum(counted))} if sum(counted) else {}


def metrics_of(scores: Iterable[Values], state: str) -> dict[str, float]:
    """Mean of each metric of `state` over the images of all `scores`; AUC and F1 only where there is one site."""
    parts = list(scores)
    keys = dict.fromkeys(key for values in parts for key in values if key.startswith(f"{state}."))
    means: dict[str, float] = {}
    for key in keys:
        together = np.concatenate([values[key] for values in parts if key in values])
        finite = together[np.isfinite(together)]
        name = key.removeprefix(f"{state}.")
        if finite.size and not (one_per_test(name) and len(parts) > 1):
            means[name] = float(finite.mean())
    return means


def _row(labels: Mapping[str, Any], setting: str, site: str, test_site: str, n: int, metrics: Mapping[str, Any]) -> Row:
    return {**labels, "setting": setting, "site": site, "test_site": test_site, "n": n, **metrics}


def _mean_row(rows: Sequence[Row]) -> Row:
    """The mean over models that were judged by the same images: figures averaged, labels as they are."""
    figures = dict.fromkeys(
        key for row in rows for key, value in row.items() if isinstance(value, float) and key != "lambda"
    )
    labels = {key: value for key, value in rows[0].items() if key not in figures and key not in TAUGHT.values()}
    mean: Row = {}
    for key in figures:
        taught = [row for row in rows if not untaught(row, key)]
        if taught and all(key in row for row in taught):
            mean[key] = float(np.mean([row[key] for row in taught]))
    return {**labels, "site": "all", **mean}


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if np.isfinite(value)}
