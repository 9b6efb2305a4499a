"""The page of a study: from the folder alone, self-contained, honest about what is missing and what is open."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from server.report import write_report
from server.study.drawing import png
from server.study.page import study_of
from server.study.pictures import gate_picture, lambda_picture, severity_picture, stops_helping
from server.study.rows import sheet_of
from shared.errors import DataError

from .conftest import both, row


def sheet(key: str, tables: list[str], seed: int, overrides: list[str]) -> dict[str, Any]:
    rounds = [
        {"loss_enhance": 0.1, "ascent_rate": 0.0},
        {"loss_enhance": 0.1, "gate_open_rate": 0.5, "mean_cosine": 0.1, "ascent_rate": 0.1},
    ]
    return {"key": key, "tables": tables, "setting": "pooled", "seed": seed, "overrides": overrides, "seconds": 60.0,
            "rounds": rounds}  # fmt: skip


def table(name: str, missing: list[str], done: int, common: list[str]) -> dict[str, Any]:
    return {
        "name": name, "title": f"Title of {name}", "question": "Why?", "common": common, "planned": done + len(missing),
        "done": done, "missing": missing,
    }  # fmt: skip


@pytest.fixture
def record(lambda_rows: list[dict[str, Any]]) -> dict[str, Any]:
    cells = [each for each in lambda_rows if each["split"] == "test" and "cell" in each]
    common = ["data=hippocampus"]
    claims = [
        {"claim": "it helps", "value": 0.1, "target": 0.0, "holds": True, "promise": "rivals", "table": "lambda",
         "reason": "one seed, no interval"},
        {"claim": "no loss", "value": 0.2, "target": 0.0, "holds": True, "promise": "lambda", "table": "lambda",
         "reason": "", "low": -0.1, "high": 0.2},
    ]  # fmt: skip
    return {
        "experiment": "enhancement",
        "seeds": [0, 1, 2],
        "config_digest": "d0" * 32,
        "versions": {"torch": "2"},
        "wall_s": 900.0,
        "rows": lambda_rows,
        "claims": claims,
        "study": {
            "budget": "full",
            "planned": 20,
            "tables": [
                table("lambda", ["objective=estr seed=0", "objective=estr seed=1"], 15, common),
                table("rivals-mni", ["objective=plain seed=0"], 0, ["data=mni"]),
            ],
            "earlier_code": 2,
            "cells": [
                sheet(each["cell"], ["lambda"], each["seed"], [*common, f"objective={each['method']}"])
                for each in cells
            ],
        },
    }


def written(record: dict[str, Any], folder: Path) -> str:
    (folder / "record.json").write_text(json.dumps(record))
    return write_report(folder).read_text()


def test_page_says_what_is_there_what_is_missing_and_what_was_not_examined(
    record: dict[str, Any], tmp_path: Path
) -> None:
    text = written(record, tmp_path)
    assert "15 of 20 planned cells" in text
    assert "2 cells were run with earlier code" in text
    assert "objective=estr  seeds 0, 1" in text
    assert "wardround-simulate experiment=enhancement budget=full study.only=[lambda] data.root=FOLDER\n" in text
    assert "study.only=[rivals-mni]\n" in text
    assert "TOD-Net raises the Dice of all four downstream networks" in text
    assert text.count("not examined: cells not yet run") == 11
    assert "Examined so far: 1 of 1 claims hold; 1 of 1 not contradicted." in text
    assert 'pill good">not contradicted<' in text
    assert not re.search(r"<(script|link|iframe)|(src|href)=\"(?!#|data:)", text)


def test_report_json_keeps_the_study_so_that_the_page_can_be_made_from_it_alone(
    record: dict[str, Any], tmp_path: Path
) -> None:
    written(record, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["study"] == record["study"]
    assert study_of(report).planned == 20


def test_same_folder_gives_the_same_bytes(record: dict[str, Any], tmp_path: Path) -> None:
    assert written(record, tmp_path) == written(record, tmp_path)


def test_text_of_others_is_escaped(record: dict[str, Any], tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    for key in ("title", "question"):
        record["study"]["tables"][0][key] = attack
    record["study"]["tables"][0]["missing"] = [f"{attack} seed=0"]
    record["claims"][0]["claim"] = attack
    for each in record["rows"]:
        each["method"] = attack if each["method"] == "joint" else each["method"]
        each["data"] = each["test_data"] = attack
    assert "<script" not in written(record, tmp_path).lower()


def test_a_study_that_lacks_its_cells_is_bad_data(record: dict[str, Any], tmp_path: Path) -> None:
    del record["study"]["cells"]
    with pytest.raises(DataError, match="a study that has no usable .cells."):
        written(record, tmp_path)


def test_a_study_of_which_nothing_ran_has_its_page(record: dict[str, Any], tmp_path: Path) -> None:
    record |= {"rows": [], "claims": [], "seeds": []}
    record["study"]["cells"] = []
    assert "No comparison of GradProm with a rival can be made yet" in written(record, tmp_path)


def test_headline_counts_what_the_interval_settles(record: dict[str, Any]) -> None:
    # Tuned: gradprom at 1 (-0.1 +- 0.02) against joint at 0.1 (level, the same +-) and plain (level).
    best, large = study_of(record).headlines
    assert best.tally.startswith(
        "Of 4 comparisons with a rival GradProm is better in 0, worse in 2; in 2 the interval holds 0"
    )
    one = [each for each in record["rows"] if each["seed"] == 0]
    assert (
        "behind in 2, each on one seed: nothing is settled yet" in study_of(record | {"rows": one}).headlines[0].tally
    )
    # All at 1: joint has lost 0.5 dB, gradprom 0.1.
    assert large.title == "All at lambda 1"
    assert "better in 1, worse in 1;" in large.tally
    joint = next(line for line in large.block.lines if line.label == "minus joint")
    assert joint.scores[0] is not None
    assert joint.scores[0].mean == pytest.approx(0.4)


def test_lambda_picture_shows_paired_differences_to_plain(lambda_rows: list[dict[str, Any]]) -> None:
    picture = lambda_picture(sheet_of(lambda_rows, ["lambda"]))
    assert picture is not None
    curves = {curve.name: curve for curve in picture.panels[0].curves}
    assert curves["joint"].xs == (0.1, 1.0)
    assert curves["joint"].ys == pytest.approx((0.0, -0.5))
    assert curves["joint"].lows[1] < -0.5 < curves["joint"].highs[1]
    assert "plain" not in curves
    assert png(picture).startswith(b"\x89PNG")
    assert png(picture) == png(picture)


def test_severity_picture_is_a_gain_over_degraded_and_says_where_it_ends() -> None:
    rows = []
    for sigma, degraded, plain, judged in ((0.1, 20.0, 25.0, 0.7), (1.0, 5.0, 15.0, 0.1)):
        labels = {"table": "severity", "sigma": sigma}
        rows += both("plain", 0, plain, plain, **labels, judge_dice=judged)
        rows.append(row("plain", 0, degraded, **labels, setting="degraded", judge_dice=0.2))
    found = sheet_of(rows, ["severity"])
    picture = severity_picture(found)
    assert picture is not None
    assert picture.panels[0].curves[0].ys == (5.0, 10.0)
    assert stops_helping(found) == [
        "plain: the judge does no better on enhanced images than on degraded ones at sigma 1."
    ]


def test_gate_picture_leaves_the_warm_up_out(record: dict[str, Any]) -> None:
    rows = [each | {"table": "gates"} for each in record["rows"]]
    cells = [each | {"tables": ["gates"]} for each in record["study"]["cells"]]
    picture = gate_picture(sheet_of(rows, ["gates"]), cells, "gates")
    assert picture is not None
    assert picture.panels[0].curves[0].xs == (2.0,)
    assert picture.panels[0].curves[0].ys == (0.5,)
