"""The page of a generation study: from the folder alone, self-contained, whole also where optional parts lack."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from server.generation.page import generation_of
from server.generation.pictures import steps_picture
from server.generation.promises import PROMISES
from server.generation.rows import Model, enriched, sheet_of
from server.generation.tables import best_single, blocks_of
from server.generation.wording import label, ordered
from server.report import write_report
from server.study.drawing import png

from .conftest import Rows, rows_of

DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5Erk"
    "Jggg=="
)


def cell(row: dict[str, Any], **more: Any) -> dict[str, Any]:
    words = ["data=mni", f"augment={row['method']}"]
    return {"key": row["cell"], "tables": [row["table"]], "setting": row["setting"], "seed": row["seed"],
            "overrides": words, "seconds": 60.0, "rounds": [{"phase": "denoiser", "loss": 0.5}], **more}  # fmt: skip


def generators() -> Rows:
    figures = [{"mask_dice": 0.6, "real_dice": 0.7, "denoiser_loss": 0.41, "refused": 0.0}]
    return [
        *rows_of("emit-diff", "generators", *figures, setting="federated", drawn=True),
        *rows_of("emit-diff", "generators-pooled", {**figures[0], "denoiser_loss": 0.4}, drawn=True),
    ]


@pytest.fixture
def record(downstream: Rows) -> dict[str, Any]:
    rows = [*generators(), *downstream]
    claim = {"claim": "it helps", "value": 0.1, "target": 0.0, "holds": True, "promise": "augment",
             "table": "downstream", "reason": "one seed, no interval"}  # fmt: skip
    table = {"question": "Do they help?", "common": ["data=mni"]}
    names = {"generators": 1, "generators-pooled": 1, "downstream": 15}
    tables = [{**table, "name": name, "title": name.title(), "planned": count, "done": count, "missing": []}
              for name, count in names.items()]  # fmt: skip
    tables[2] |= {"planned": 16, "missing": ["augment=scale seed=0"]}
    tables.append({**table, "name": "task", "title": "Task", "planned": 2, "done": 0, "missing": ["a=b seed=0"] * 2})
    return {
        "experiment": "generation",
        "seeds": [0, 1, 2],
        "config_digest": "d0" * 32,
        "versions": {"torch": "2"},
        "wall_s": 540.0,
        "rows": rows,
        "claims": [claim],
        "study": {"kind": "generation", "budget": "full", "planned": 20, "tables": tables,
                  "cells": [cell(row) for row in rows]},
    }  # fmt: skip


def written(record: dict[str, Any], folder: Path) -> str:
    (folder / "record.json").write_text(json.dumps(record))
    return write_report(folder).read_text()


def test_page_shows_the_headline_the_tables_and_what_was_not_run(record: dict[str, Any], tmp_path: Path) -> None:
    text = written(record, tmp_path)
    assert "Dice +0.030 over rotation (better)" in text
    assert "17 of 20 planned cells are there" in text
    assert "0 of 2 cells" in text
    assert "3 not yet run" not in text
    assert "augment=scale  seed 0" in text
    assert text.count("not examined: cells not yet run") == len(PROMISES) - 1
    for words in ("Dice on generated", "denoiser loss", "DeepStack", "Each class", "Dice of grey matter"):
        assert words in text
    assert "What was drawn" not in text
    assert not re.search(r"<(script|link|iframe)|(src|href)=\"(?!#|data:)", text)


def test_a_study_of_which_nothing_ran_has_its_page(record: dict[str, Any], tmp_path: Path) -> None:
    record |= {"rows": [], "claims": [], "seeds": []}
    record["study"]["cells"] = []
    assert "No comparison of EMIT-Diff with a classical augmentation can be made yet" in written(record, tmp_path)


def test_drawings_are_shown_once_with_their_model_and_only_as_png_in_the_page(
    record: dict[str, Any], tmp_path: Path
) -> None:
    looks = [{"kind": "drawn", "caption": "north", "uri": DOT},
             {"kind": "drawn", "caption": "away", "uri": "https://example.org/a.png"},
             {"kind": "drawn", "caption": "script", "uri": 'data:image/png;base64,AA==" onload="alert(1)'},
             {"kind": "contours", "caption": "of another study", "uri": DOT}]  # fmt: skip
    record["study"]["cells"][0]["pictures"] = looks
    record["study"]["cells"][0]["tables"] = ["generators", "task"]
    text = written(record, tmp_path)
    assert text.count(DOT) == 1
    assert "<b>federated.</b> north" in text
    assert "example.org" not in text
    assert "onload" not in text
    (look,) = generation_of(json.loads((tmp_path / "report.json").read_text())).looks["generators"]
    assert (look.kind, look.of) == ("drawn", "federated")


def test_text_of_others_is_escaped(record: dict[str, Any], tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    for table in record["study"]["tables"]:
        table |= {"title": attack, "question": attack, "missing": [f"{attack} seed=0"]}
    record["study"]["cells"][0]["pictures"] = [{"kind": "drawn", "caption": attack, "uri": DOT}]
    record["claims"][0] |= {"claim": attack, "reason": attack}
    for row in record["rows"]:
        row |= {"labels": attack, "data": attack, "text": attack, "task_gate": attack}
        row["method"] = attack if row["method"] == "noise" else row["method"]
        row["generator"] = attack if row["generator"] == "federated" else row["generator"]
    assert "<script" not in written(record, tmp_path).lower()


def test_the_best_single_augmentation_is_neither_none_nor_all_together(downstream: Rows) -> None:
    sheet = sheet_of(enriched(downstream, []), ["downstream"])
    (place,) = sheet.conditions
    best = best_single(sheet, place, "dice", "pooled")
    assert best is not None
    assert best.method == "rotate"
    assert best_single(sheet, place, "dice", "local") is None
    (block,) = blocks_of(sheet, "downstream")
    assert [line.label for line in block.lines] == ["no augmentation", "noise", "rotation", "DeepStack", "EMIT-Diff"]
    assert block.lines[0].ours
    score = block.lines[4].scores[0]
    assert score is not None
    assert score.difference is not None
    assert score.difference.mean == pytest.approx(0.05)


def test_generators_stand_against_pooled_training() -> None:
    sheet = sheet_of(enriched(generators(), []), ["generators", "generators-pooled"])
    (block,) = blocks_of(sheet, "generators")
    assert [(line.label, line.ours) for line in block.lines] == [("federated", False), ("pooled", True)]
    losses = [line.scores[0] for line in block.lines]
    assert losses[0] is not None
    assert losses[0].difference is not None
    assert losses[0].difference.mean == pytest.approx(0.01)


def test_what_is_asked_about_is_what_tells_models_apart() -> None:
    ddim = Model("emit-diff", sampler="ddim", steps=20, guidance=2.0, prediction="noise")
    dpm = Model("emit-diff", sampler="dpm", steps=8, guidance=1.0, prediction="noise")
    assert [label(each, [ddim, dpm]) for each in (ddim, dpm)] == [
        "DDIM, 20 steps, guidance 2", "DPM-Solver++, 8 steps, guidance 1",
    ]  # fmt: skip
    none, ours = Model("none"), Model("emit-diff", generator="federated", text="embedding", task_gate="global")
    assert [label(each, [none, ours]) for each in (none, ours)] == ["no augmentation", "EMIT-Diff"]
    rival = Model("emit-diff", generator="local", text="embedding", task_gate="global")
    assert label(rival, [none, ours, rival]) == "EMIT-Diff, local generator"
    assert ordered([rival, ours, none]) == [none, ours, rival]


def test_cells_that_no_label_tells_apart_are_told_by_what_was_typed() -> None:
    rows = rows_of("none", "downstream", {"dice": 0.5}) + rows_of("none", "downstream", {"dice": 0.6}, cell="other")
    cells = [cell(row, overrides=["data=mni", f"rounds={number}"]) for number, row in enumerate(rows)]
    sheet = sheet_of(enriched(rows, cells), ["downstream"])
    assert [label(model, sheet.models) for model in sheet.models] == [
        "no augmentation, rounds=0", "no augmentation, rounds=1",
    ]  # fmt: skip


def test_quality_is_drawn_over_steps_with_a_line_per_sampler() -> None:
    rows = []
    for sampler, steps, distance in (("ddim", 20, 0.3), ("ddim", 5, 0.9), ("dpm", 8, 0.35)):
        labels = {"sampler": sampler, "steps": steps, "drawn": True}
        rows += rows_of("emit-diff", "steps", {"feature_distance": distance}, **labels)
    picture = steps_picture(sheet_of(enriched(rows, []), ["steps"]), "steps")
    assert picture is not None
    (panel,) = picture.panels
    assert {curve.name: (curve.xs, curve.ys) for curve in panel.curves} == {
        "DDIM": ((5.0, 20.0), (0.9, 0.3)), "DPM-Solver++": ((8.0,), (0.35,)),
    }  # fmt: skip
    assert png(picture) == png(picture)
    assert steps_picture(sheet_of(enriched(rows[:1], []), ["steps"]), "steps") is None
