"""Claims of the generation study on rows done by hand; and its page in Markdown, which says what report.html says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from server.generation.promises import PROMISES
from server.report import write_report
from simulation.results import main
from simulation.study.generation import claims_of

Rows = list[dict[str, Any]]


def rows_of(method: str, table: str, *figures: dict[str, float], **labels: Any) -> Rows:
    """One test row per seed 0, 1, ..."""
    row = {
        "method": method, "table": table, "data": "mni", "degradation": "none", "split": "test", "setting": "pooled",
        "site": "all", "test_site": "all", "n": 10, "labels": "10 masks", "masks": 10, "generator": "none",
        "text": "embedding" if method.startswith("emit-diff") else None,
    }  # fmt: skip
    key = f"{method} {sorted(labels.items())}"
    return [{**row, "seed": seed, "cell": f"{key} {seed}", **labels, **of} for seed, of in enumerate(figures)]


def dice(*values: float) -> list[dict[str, float]]:
    return [{"dice": value} for value in values]


def of(claims: list[dict[str, Any]], promise: str) -> list[dict[str, Any]]:
    return [claim for claim in claims if claim["promise"] == promise]


def test_generated_images_follow_their_masks_by_the_mean_of_the_ratios_over_seeds() -> None:
    found = [{"mask_dice": 0.60, "real_dice": 0.75}, {"mask_dice": 0.63, "real_dice": 0.70}]
    (claim,) = of(claims_of(rows_of("emit-diff", "generators", *found, setting="federated")), "masks")
    assert (claim["value"], claim["target"], claim["holds"]) == (pytest.approx(0.85), 0.8, True)
    assert claim["per_seed"] == {"0": pytest.approx(0.8), "1": pytest.approx(0.9)}
    low = [{"mask_dice": 0.55, "real_dice": 0.75}]
    (claim,) = of(claims_of(rows_of("emit-diff", "generators", *low, setting="federated")), "masks")
    assert not claim["holds"]
    assert claim["reason"] == "one seed, no interval"
    assert not of(claims_of(rows_of("emit-diff", "generators", *found, setting="pooled")), "masks")


@pytest.mark.parametrize(("federated", "holds"), [((0.42, 0.412), True), ((0.43, 0.42), False)])
def test_the_federated_loss_is_held_against_pooled_seed_by_seed(federated: tuple[float, ...], holds: bool) -> None:
    def losses(values: tuple[float, ...], table: str, setting: str) -> Rows:
        return rows_of("emit-diff", table, *({"denoiser_loss": value} for value in values), setting=setting)

    rows = losses(federated, "generators", "federated") + losses((0.4, 0.4), "generators-pooled", "pooled")
    rows += losses((0.9, 0.9), "generators-local", "local")
    (claim,) = of(claims_of(rows), "loss")
    assert (claim["holds"], claim["at_most"]) == (holds, True)
    assert claim["value"] == pytest.approx(sum(federated) / 0.8 - 1)


def test_emit_diff_is_held_against_the_best_single_augmentation_and_against_all_together() -> None:
    rows = [
        *rows_of("noise", "downstream", *dice(0.58, 0.50, 0.50)),
        *rows_of("rotate", "downstream", *dice(0.52, 0.62, 0.57)),
        *rows_of("deepstack", "downstream", *dice(0.55, 0.66, 0.62)),
        *rows_of("emit-diff", "downstream", *dice(0.54, 0.65, 0.61), generator="federated"),
    ]
    claims = claims_of(rows)
    (single,), (stack,) = of(claims, "augment"), of(claims, "deepstack")
    assert "Dice of EMIT-Diff above the best single one's, rotation" in single["claim"]
    assert single["holds"]
    expected = stats.ttest_rel((0.54, 0.65, 0.61), (0.52, 0.62, 0.57)).confidence_interval(0.95)
    assert (single["low"], single["high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert (stack["value"], stack["holds"]) == (pytest.approx(-0.01), False)
    assert "above DeepStack's" in stack["claim"]
    rows += rows_of("emit-diff", "downstream", *dice(0.53, 0.64, 0.50), generator="local")
    wide = next(claim for claim in of(claims_of(rows), "augment") if "local generator" in claim["claim"])
    assert not wide["holds"]
    assert "holds 0: no difference shown" in wide["reason"]


def test_augmentations_are_compared_within_a_setting_and_without_one_to_compare_with_not_at_all() -> None:
    rows = rows_of("rotate", "downstream", *dice(0.5), setting="pooled")
    rows += rows_of("emit-diff", "downstream", *dice(0.6), setting="federated", generator="federated")
    assert claims_of(rows) == []


def test_the_scarce_class_at_the_poor_hospital_is_held_against_none_and_against_its_own_generator() -> None:
    def f1(method: str, table: str, *values: float, **labels: Any) -> Rows:
        figures = ({"f1.kind_b": value} for value in values)
        return rows_of(method, table, *figures, setting="local", site="hill", scarce="kind_b", **labels)

    rows = [
        *f1("none", "scarce", 0.1, 0.2, balance=False),
        *f1("none", "scarce", 0.3, 0.3, balance=True),
        *f1("emit-diff", "scarce", 0.40, 0.41, balance=True, classes="balanced", generator="federated"),
        *f1("emit-diff", "scarce", 0.9, 0.9, balance=True, classes="balanced", generator="federated", test_site="hill"),
        *f1("emit-diff", "scarce-local", 0.45, 0.44, balance=True, classes="balanced", generator="local"),
    ]
    claims = claims_of(rows)
    (above,), (own,) = of(claims, "scarce-none"), of(claims, "scarce-local")
    assert (above["value"], above["holds"]) == (pytest.approx(0.105), True)
    assert "F1 of kind_b, hill with the federated generator (balanced draws, balanced batches)" in above["claim"]
    assert (own["value"], own["holds"]) == (pytest.approx(-0.04), False)


def test_the_guard_has_to_let_the_healthy_pass_and_to_catch_the_over_fitted() -> None:
    def guards(table: str, *refused: float, **labels: Any) -> Rows:
        figures = ({"refused": value, "memorised_share": value / 2} for value in refused)
        return rows_of("emit-diff", table, *figures, setting="federated", **labels)

    claims = claims_of(guards("memorisation", 0.0, 0.0) + guards("memorisation-overfitted", 1.0, 1.0))
    assert [claim["holds"] for claim in (*of(claims, "healthy"), *of(claims, "overfitted"))] == [True, True]
    claims = claims_of(guards("memorisation", 0.0, 0.5) + guards("memorisation-overfitted", 1.0, 0.0))
    assert [claim["holds"] for claim in (*of(claims, "healthy"), *of(claims, "overfitted"))] == [False, False]
    assert "memorised share 0.500, 0.000" in of(claims, "overfitted")[0]["reason"]
    (quick,) = of(claims_of(guards("generators", 0.0)), "healthy")
    assert quick["table"] == "generators"


def test_every_promise_can_be_claimed() -> None:
    assert {"masks", "loss", "augment", "deepstack", "scarce-none", "scarce-local", "healthy", "overfitted"} == set(
        PROMISES
    )


# ------------------------------------------------------------------------------------------------------------ document

DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5Erk"
    "Jggg=="
)


def run_of(rows: Rows, folder: Path) -> Path:
    names = list(dict.fromkeys(row["table"] for row in rows))
    picture = {"kind": "drawn", "caption": "A | B", "uri": DOT}
    cells = [
        {"key": row["cell"], "tables": [row["table"]], "setting": row["setting"], "seed": row["seed"],
         "overrides": [f"data={row['data']}"], "seconds": 1.0, "rounds": [], "pictures": [picture]}
        for row in rows
    ]  # fmt: skip
    tables = [{"name": name, "title": name, "question": "?", "common": [], "planned": 9, "done": 1,
               "missing": ["augment=scale seed=2"]} for name in names]  # fmt: skip
    record = {
        "experiment": "generation", "seeds": [0], "config_digest": "d0" * 32, "versions": {}, "wall_s": 1.0,
        "rows": rows, "claims": claims_of(rows, cells),
        "study": {"kind": "generation", "budget": "full", "planned": 9, "tables": tables, "cells": cells},
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(record))
    write_report(folder)
    return folder


def test_the_document_says_what_the_report_says_and_shows_no_picture_of_real_patients(tmp_path: Path) -> None:
    drawn = {"mask_dice": 0.63, "real_dice": 0.75, "feature_distance": 0.4}
    rows = [
        *rows_of("emit-diff", "generators", drawn, setting="federated"),
        *rows_of("rotate", "downstream-hippocampus", *dice(0.50, 0.60), data="hippocampus"),
        *rows_of("emit-diff", "downstream-hippocampus", *dice(0.52, 0.63), data="hippocampus", generator="federated"),
    ]
    out = tmp_path / "docs/results/generation.md"
    assert main(["--title", "Generation", "--out", str(out), str(run_of(rows, tmp_path))]) == 0
    text = out.read_text()
    assert "Dice +0.025 over rotation (not settled)" in text
    assert "+0.840 | ≥ 0.8 | holds" in text
    assert "augment=scale  seed 2" in text
    assert "not examined" in text
    assert "A \\| B" in text
    assert [path.name for path in (tmp_path / "docs/images").iterdir()] == ["generation-generators-drawn-1.png"]
    once = text, sorted((tmp_path / "docs/images").iterdir())
    main(["--title", "Generation", "--out", str(out), str(tmp_path)])
    assert (out.read_text(), sorted((tmp_path / "docs/images").iterdir())) == once
