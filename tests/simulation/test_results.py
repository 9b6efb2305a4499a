"""A page of results says what report.json says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulation.results import main

ROW = {
    "method": "gradprom", "setting": "federated", "seed": 0, "data": "mni", "degradation": "gaussian",
    "split": "test", "site": "all", "test_site": "all", "n": 4,
}  # fmt: skip


def report() -> dict[str, object]:
    return {
        "experiment": "demo",
        "seeds": [0, 1],
        "config_digest": "abc",
        "versions": {"torch": "2"},
        "wall_s": 61.0,
        "rows": [ROW | {"psnr_db": 27.0}, ROW | {"seed": 1, "psnr_db": 28.0}, ROW | {"site": "north", "psnr_db": 1.0}],
        "claims": [{"claim": "it helps", "value": -0.5, "target": 0.0, "holds": False, "reason": "too short"}],
    }


def test_means_over_seeds_and_a_claim_that_does_not_hold(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report()))
    assert main(["--out", str(tmp_path / "docs" / "page.md"), str(tmp_path)]) == 0
    text = (tmp_path / "docs" / "page.md").read_text()
    assert "| gradprom | federated | 27.50 |" in text
    assert "| it helps | -0.500 | +0.000 | **no**: too short |" in text


def test_a_folder_without_a_report_is_bad_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "page.md"), str(tmp_path)]) == 5
    assert "finished run" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def test_a_study_has_its_page_and_pictures_from_report_json_alone(tmp_path: Path) -> None:
    base = ROW | {"setting": "pooled", "table": "lambda", "sigma": 0.2, "test_data": "mni", "judge_dice": 0.6}
    steered = {"gate": "global", "recognition": "supervised", "lambda": 1.0}
    rows = [
        row
        for seed, psnr_db in ((0, 20.0), (1, 23.0))
        for row in (
            base | steered | {"seed": seed, "psnr_db": psnr_db + 0.2 + seed / 1000},
            base | {"seed": seed, "method": "plain", "gate": "off", "recognition": "none", "psnr_db": psnr_db},
        )
    ]
    sheet = {"tables": ["lambda"], "setting": "pooled", "seed": 0, "overrides": ["data=mni", "objective=plain"]}
    table = {"name": "lambda", "title": "Lambda", "question": "How?", "common": ["data=mni"], "planned": 5, "done": 4}
    study = {
        "budget": "full",
        "planned": 5,
        "tables": [table | {"missing": ["objective=joint seed=0"]}],
        "cells": [sheet | {"key": "a", "seconds": 61.0, "rounds": []}],
    }
    (tmp_path / "report.json").write_text(json.dumps(report() | {"rows": rows, "claims": [], "study": study}))
    out = tmp_path / "docs" / "results" / "enhancement.md"
    assert main(["--out", str(out), str(tmp_path)]) == 0
    text = out.read_text()
    assert "| minus plain | +0.20 ▲" in text
    assert "&lt;change of weights, g&gt;" in text, "Markdown would take it for a tag"
    assert "objective=joint  seed 0" in text
    assert "wardround-simulate experiment=demo budget=full study.only=[lambda]" in text
    assert "| `objective=plain` | seed 0 (1 min 01 s) |" in text
    assert "(../images/enhancement-lambda.png)" in text
    assert (tmp_path / "docs" / "images" / "enhancement-lambda.png").read_bytes().startswith(b"\x89PNG")
