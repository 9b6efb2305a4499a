"""Rows of a small generation study, done by hand: figures chosen so that every difference can be seen."""

from __future__ import annotations

from typing import Any

import pytest

Rows = list[dict[str, Any]]
GENERATED = {"prediction": "velocity", "text": "embedding", "edges": "gaussian", "contour": "channel", "box": False,
             "sampler": "rflow", "steps": 8, "guidance": 2.0, "classes": "own", "task_weight": 0.0,
             "task_gate": "global"}  # fmt: skip


def rows_of(method: str, table: str, *figures: dict[str, float], **labels: Any) -> Rows:
    """One test row per seed 0, 1, ... of one kind of cell; with `drawn` a row of a generator itself."""
    drawn = labels.pop("drawn", False)
    row = {
        "method": method, "table": table, "data": "mni", "degradation": "none", "split": "test", "setting": "pooled",
        "site": "all", "test_site": "all", "n": 10, "labels": "10 masks, 10 % diagnoses", "masks": 10,
        "diagnoses": 0.1, "generator": "none", "balance": None if drawn else False,
    }  # fmt: skip
    row |= {"generator": "federated"} if method.startswith("emit-diff") and not drawn else {}
    row |= GENERATED if method.startswith("emit-diff") else {}
    key = f"{method} {table} {sorted(labels.items())}"
    return [{**row, "seed": seed, "cell": f"{key} {seed}", **labels, **of} for seed, of in enumerate(figures)]


def dice(*values: float) -> list[dict[str, float]]:
    return [{"dice": value, "dice.grey matter": value} for value in values]


@pytest.fixture
def downstream() -> Rows:
    """EMIT-Diff above the best single one, rotation, by 0.02, 0.03, 0.04; below DeepStack by 0.01 on average."""
    return [
        *rows_of("none", "downstream", *dice(0.50, 0.60, 0.55)),
        *rows_of("noise", "downstream", *dice(0.51, 0.58, 0.55)),
        *rows_of("rotate", "downstream", *dice(0.52, 0.62, 0.57)),
        *rows_of("deepstack", "downstream", *dice(0.55, 0.66, 0.62)),
        *rows_of("emit-diff", "downstream", *dice(0.54, 0.65, 0.61)),
    ]
