"""The page of a recognition study: from the folder alone, self-contained, whole also where optional parts lack."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from server.recognition.page import recognition_of
from server.recognition.pictures import ladder_picture, rank_picture
from server.recognition.promises import PROMISES
from server.recognition.rows import enriched, sheet_of
from server.report import write_report
from server.study.drawing import png, svgs
from shared.errors import DataError

from .conftest import Rows, rows_of

DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5Erk"
    "Jggg=="
)


def cell(row: dict[str, Any], **more: Any) -> dict[str, Any]:
    words = ["data=mni", f"learn={row['method']}"]
    return {"key": row["cell"], "tables": [row["table"]], "setting": row["setting"], "seed": row["seed"],
            "overrides": words, "seconds": 60.0, "rounds": [], **more}  # fmt: skip


@pytest.fixture
def record(few: Rows) -> dict[str, Any]:
    claim = {"claim": "it helps", "value": 0.1, "target": 0.0, "holds": True, "promise": "few-dice", "table": "few",
             "reason": "one seed, no interval"}  # fmt: skip
    table = {"title": "Few labels", "question": "Do they suffice?", "common": ["data=mni"]}
    return {
        "experiment": "recognition",
        "seeds": [0, 1, 2],
        "config_digest": "d0" * 32,
        "versions": {"torch": "2"},
        "wall_s": 540.0,
        "rows": few,
        "claims": [claim],
        "study": {
            "kind": "recognition",
            "budget": "full",
            "planned": 12,
            "tables": [
                {**table, "name": "few", "planned": 10, "done": 9, "missing": ["learn=umtl seed=0"]},
                {**table, "name": "unseen", "planned": 2, "done": 0, "missing": ["learn=multimix seed=0"]},
            ],
            "cells": [cell(row) for row in few],
        },
    }


def written(record: dict[str, Any], folder: Path) -> str:
    (folder / "record.json").write_text(json.dumps(record))
    return write_report(folder).read_text()


def test_page_renders_without_any_of_the_optional_parts(record: dict[str, Any], tmp_path: Path) -> None:
    text = written(record, tmp_path)
    assert "9 of 12 planned cells are there" in text
    assert "Dice +0.103 over U-Net (better), accuracy +0.033 over Enc (not settled)" in text
    assert text.count("not examined: cells not yet run") == len(PROMISES) - 1
    assert "wardround-simulate experiment=recognition budget=full study.only=[few]\n" in text
    assert "What it looks like" not in text
    assert not re.search(r"<(script|link|iframe)|(src|href)=\"(?!#|data:)", text)


def test_a_study_of_which_nothing_ran_has_its_page(record: dict[str, Any], tmp_path: Path) -> None:
    record |= {"rows": [], "claims": [], "seeds": []}
    record["study"]["cells"] = []
    assert "No comparison of MultiMix with supervised learning can be made yet" in written(record, tmp_path)


def test_one_seed_is_said_to_settle_nothing(record: dict[str, Any], tmp_path: Path) -> None:
    record["rows"] = [row for row in record["rows"] if row["seed"] == 0]
    assert "over U-Net (one seed, not settled)" in written(record, tmp_path)


def test_pictures_of_cells_are_shown_with_their_model_and_only_as_png_in_the_page(
    record: dict[str, Any], tmp_path: Path
) -> None:
    looks = [{"kind": "contours", "caption": "Dice 0.71", "uri": DOT},
             {"kind": "saliency", "caption": "away", "uri": "https://example.org/a.png"},
             {"kind": "saliency", "caption": "script", "uri": 'data:image/png;base64,AA==" onload="alert(1)'},
             {"kind": "else", "caption": "of no known kind", "uri": DOT}]  # fmt: skip
    for each in record["study"]["cells"]:
        each["pictures"] = looks if each["key"].startswith("multimix") and each["seed"] == 0 else None
    text = written(record, tmp_path)
    assert text.count(DOT) == 1
    assert "<b>MultiMix.</b> Dice 0.71" in text
    assert "example.org" not in text
    assert "onload" not in text
    (look,) = recognition_of(json.loads((tmp_path / "report.json").read_text())).looks["few"]
    assert (look.kind, look.of) == ("contours", "MultiMix")


def test_a_shared_cell_shows_outlines_once_and_its_features_where_selfreg_is_asked_about(
    record: dict[str, Any], tmp_path: Path
) -> None:
    shared = [row for row in record["rows"] if row["method"] == "multimix"]
    record["rows"] += [row | {"table": "selfreg"} for row in shared]
    table = record["study"]["tables"][0]
    record["study"]["tables"].append({**table, "name": "selfreg", "missing": []})
    for each in record["study"]["cells"]:
        if each["key"].startswith("multimix") and each["seed"] == 0:
            each["tables"] = ["few", "selfreg"]
            each["pictures"] = [{"kind": kind, "caption": kind, "uri": DOT} for kind in ("contours", "similarity")]
    written(record, tmp_path)
    looks = recognition_of(json.loads((tmp_path / "report.json").read_text())).looks
    assert {name: [look.kind for look in found] for name, found in looks.items()} == {
        "few": ["contours"], "unseen": [], "selfreg": ["similarity"],
    }  # fmt: skip


def test_text_of_others_is_escaped(record: dict[str, Any], tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    for key in ("title", "question"):
        record["study"]["tables"][0][key] = attack
    record["study"]["tables"][0]["missing"] = [f"{attack} seed=0"]
    record["study"]["cells"][0]["pictures"] = [{"kind": "contours", "caption": attack, "uri": DOT}]
    record["claims"][0] |= {"claim": attack, "reason": attack}
    for row in record["rows"]:
        row |= {"labels": attack, "data": attack}
        row["method"] = attack if row["method"] == "enc" else row["method"]
    assert "<script" not in written(record, tmp_path).lower()


@pytest.mark.parametrize(
    ("key", "value"), [("kind", "guesswork"), ("kind", 3), ("pictures", [{"kind": "contours"}]), ("pictures", {"a": 1})]
)
def test_what_is_no_such_study_is_bad_data(record: dict[str, Any], tmp_path: Path, key: str, value: Any) -> None:
    place = record["study"] if key == "kind" else record["study"]["cells"][0]
    place[key] = value
    with pytest.raises(DataError, match=f"no usable .{key}."):
        written(record, tmp_path)


def test_ladders_are_lines_over_the_label_settings_in_their_order() -> None:
    rows = []
    for masks, dice in ((50, 0.8), (5, 0.6)):
        rows += rows_of("unet", "ladder-masks", {"dice": dice}, labels=f"{masks} masks", masks=masks)
    picture = ladder_picture(sheet_of(enriched(rows, []), ["ladder-masks"]), "ladder-masks")
    assert picture is not None
    (panel,) = picture.panels
    assert panel.ticks == ("5 masks", "50 masks")
    assert (panel.curves[0].xs, panel.curves[0].ys) == ((0, 1), (0.6, 0.8))
    ((title, drawn),) = svgs(picture)
    assert title == "Dice"
    assert "currentColor" in drawn, "light and dark pages have their own ink"
    assert png(picture) == png(picture)


def test_a_ladder_of_one_setting_is_no_picture(few: Rows) -> None:
    assert ladder_picture(sheet_of(enriched(few, []), ["few"]), "few") is None


def test_the_rank_of_features_is_drawn_with_and_without_selfreg() -> None:
    rows = rows_of("unet", "selfreg", {"dice": 0.5}) + rows_of("unet+selfreg", "selfreg", {"dice": 0.5})
    ranks = {"unet": (4.0, 2.0), "unet+selfreg": (4.0, 5.0)}
    cells = [cell(row, rounds=[{"feature_rank": rank} for rank in ranks[row["method"]]]) for row in rows]
    picture = rank_picture(sheet_of(enriched(rows, cells), ["selfreg"]), cells, "selfreg")
    assert picture is not None
    assert {curve.name: curve.ys for curve in picture.panels[0].curves} == {
        "without": (4.0, 2.0),
        "SelfReg": (4.0, 5.0),
    }
