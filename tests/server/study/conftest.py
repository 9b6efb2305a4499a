"""Rows of a small study, done by hand: figures chosen so that every difference can be seen."""

from __future__ import annotations

from typing import Any

import pytest

COMMON = {"data": "hippocampus", "test_data": "hippocampus", "degradation": "gaussian", "sigma": 0.2}


def row(
    method: str, seed: int, psnr_db: float, *, weight: float | None = None, table: str = "lambda", **labels: Any
) -> dict[str, Any]:
    gates = {"gradprom": "global", "plain": "off"}
    return {
        **COMMON,
        "method": method,
        "seed": seed,
        "table": table,
        "split": "test",
        "setting": "pooled",
        "site": "all",
        "test_site": "all",
        "n": 9,
        "gate": gates.get(method, "on"),
        "recognition": "none" if method == "plain" else "supervised",
        "psnr_db": psnr_db,
        **({} if weight is None else {"lambda": weight}),
        **labels,
    }


def both(method: str, seed: int, test: float, validation: float, **labels: Any) -> list[dict[str, Any]]:
    """The test row and the validation row of one cell."""
    return [row(method, seed, test, **labels), row(method, seed, validation, **labels, split="validation")]


@pytest.fixture
def lambda_rows() -> list[dict[str, Any]]:
    """Seed s adds 3 s dB to everything. gradprom loses 0.1 at lambda 1, joint 0.5; at 0.1 they are alike."""
    rows = []
    for seed, off in ((0, 0.0), (1, 0.02), (2, -0.02)):
        base = 20.0 + 3 * seed
        rows.append(row("plain", seed, base, setting="degraded", judge_dice=0.3) | {"psnr_db": base - 5})
        rows.append(row("plain", seed, base, setting="clean", judge_dice=0.8))
        rows += both("plain", seed, base, base - 1, judge_dice=0.6, cell=f"plain{seed}")
        for method, losses in (("gradprom", {0.1: 0.0, 1.0: 0.1}), ("joint", {0.1: 0.0, 1.0: 0.5})):
            for weight, loss in losses.items():
                # validation prefers 1 for gradprom, 0.1 for joint
                liked = base + (weight if method == "gradprom" else -weight)
                rows += both(
                    method,
                    seed,
                    base - loss + off,
                    liked,
                    weight=weight,
                    judge_dice=0.6,
                    cell=f"{method}{weight}{seed}",
                )
    return rows
