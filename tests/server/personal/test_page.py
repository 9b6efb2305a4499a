"""The page of a personalisation study: from the folder alone, whole also where cells or methods are missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.personal.page import personalisation_of
from server.personal.pictures import picture_of
from server.personal.promises import PROMISES
from server.personal.rows import enriched, sheet_of
from server.personal.tables import blocks_of, gains
from server.report import write_report
from server.study.drawing import png

Rows = list[dict[str, Any]]
DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5Erk"
    "Jggg=="
)


def rows_of(method: str, table: str, gained: list[tuple[float, float]], **labels: Any) -> Rows:
    """Per seed what is gained on (the new scanner, the old ones); a row of each, and one of an old site."""
    label = {
        "method": method, "table": table, "data": "mni", "degradation": "gaussian", "split": "test", "site": "all",
        "release": "federated", "unseen": "hill", "judged": "quality", "old_degradation": "gaussian, sigma 0.1",
        "new_degradation": "composite", "studies": 0, "setting": "personalised", "n": 10, **labels,
    }  # fmt: skip
    rows = []
    for seed, (new, old) in enumerate(gained):
        named = {**label, "seed": seed, "cell": f"{method} {table} {sorted(labels.items())} {seed}"}
        rows.append({**named, "domain": "new", "test_site": "all", "psnr_db": 24.0 + new, "trained_share": 0.5})
        for site in ("all", "north"):
            rows.append({**named, "domain": "old", "test_site": site, "psnr_db": 30.0 + old, "judge_dice": 0.7})
    return rows


NONE = rows_of("none", "main", [(0.0, 0.0)] * 3)
FINETUNE = rows_of("finetune", "main", [(1.9, -1.0), (2.0, -1.1), (2.1, -0.9)], loss="clean")
TGD = rows_of("tgd", "main", [(1.8, -0.05), (1.9, -0.04), (2.0, -0.06)], loss="clean", tgd_form="activation")


def record_of(rows: Rows) -> dict[str, Any]:
    table = {"question": "Is it better?", "common": ["data=mni"], "planned": 9, "done": 9, "missing": ["x=1 seed=2"]}
    tables = [{**table, "name": name, "title": name.title()} for name in ("main", "phi", "orders")]
    cells = [
        {"key": key, "tables": [rows[0]["table"]], "setting": "federated", "seed": 0, "overrides": ["data=mni"],
         "seconds": 9.0, "rounds": [], "pictures": [{"kind": "new", "caption": "hill: clean.", "uri": DOT}]}
        for key in dict.fromkeys(row["cell"] for row in rows)
    ]  # fmt: skip
    claim = {"claim": "it keeps", "value": 0.05, "target": 0.1, "holds": True, "promise": "kept", "table": "main",
             "reason": "one seed, no interval", "at_most": True}  # fmt: skip
    return {
        "experiment": "personalise", "seeds": [0, 1, 2], "config_digest": "d0" * 32, "versions": {"torch": "2"},
        "wall_s": 81.0, "rows": rows, "claims": [claim] if rows else [],
        "study": {"kind": "personalise", "budget": "full", "planned": 30, "tables": tables, "cells": cells},
    }  # fmt: skip


def written(record: dict[str, Any], folder: Path) -> str:
    (folder / "record.json").write_text(json.dumps(record))
    return write_report(folder).read_text()


def test_the_page_says_first_what_is_gained_and_what_is_forgotten(tmp_path: Path) -> None:
    text = written(record_of([*NONE, *FINETUNE, *TGD]), tmp_path)
    words = (
        "TGD gains +1.90 dB on the new scanner, 0.95 of full fine-tuning&#39;s, and changes the old ones by −0.05 dB"
    )
    assert words in text
    assert "(full fine-tuning: −1.00 dB)" in text
    assert text.count("not examined: cells not yet run") == len(PROMISES) - 1
    for shown in ("the release as it is", "new scanner: PSNR, dB ↑", "Each old scanner", "Before and after", DOT):
        assert shown in text


@pytest.mark.parametrize("rows", [[], NONE, FINETUNE, TGD, [*NONE, *TGD]], ids=["no", "none", "ft", "tgd", "no ft"])
def test_the_page_is_whole_whichever_cells_are_missing(rows: Rows, tmp_path: Path) -> None:
    text = written(record_of(rows) if rows else {**record_of(NONE), **no_rows()}, tmp_path)
    assert "</html>" in text
    assert ("No adaptation can be held against the release yet." in text) is (rows != [*NONE, *TGD])


def no_rows() -> dict[str, Any]:
    bare = record_of(NONE)
    return {"rows": [], "claims": [], "study": {**bare["study"], "cells": []}}


def test_differences_are_to_the_release_and_paired_by_seed() -> None:
    sheet = sheet_of(enriched([*NONE, *FINETUNE, *TGD], []), ["main"])
    (place,) = sheet.places
    tgd = next(model for model in sheet.models if model.method == "tgd")
    assert gains(sheet, tgd, place, "old") == pytest.approx({0: -0.05, 1: -0.04, 2: -0.06})
    (block,) = blocks_of(sheet)
    assert [line.label for line in block.lines] == ["the release as it is", "full fine-tuning", "TGD"]
    assert [line.ours for line in block.lines] == [True, False, False]
    score = block.lines[2].scores[0]
    assert score is not None
    assert score.difference is not None
    assert score.difference.mean == pytest.approx(1.9)


def test_pictures_have_a_point_per_seed_and_a_line_per_form_of_phi() -> None:
    balance = picture_of(sheet_of(enriched([*NONE, *FINETUNE, *TGD], []), ["main"]), "main")
    assert balance is not None
    assert [(curve.name, len(curve.xs), curve.points) for curve in balance.panels[0].curves] == [
        ("full fine-tuning", 3, True),
        ("TGD", 3, True),
    ]
    rows = rows_of("none", "phi", [(0.0, 0.0)])
    for form in ("activation", "weight"):
        for phi in (0.2, 0.4):
            rows += rows_of("tgd", "phi", [(phi, -phi)], tgd_form=form, tgd_phi=phi)
    picture = picture_of(sheet_of(enriched(rows, []), ["phi"]), "phi")
    assert picture is not None
    assert len(picture.panels) == 2
    assert all(curve.xs == (0.2, 0.4) for panel in picture.panels for curve in panel.curves)
    assert png(picture).startswith(b"\x89PNG")


def test_a_picture_that_is_no_png_in_the_page_is_not_shown() -> None:
    record = record_of([*NONE, *TGD])
    for cell in record["study"]["cells"]:
        cell["pictures"][0]["uri"] = "https://example.org/look.png"
    assert personalisation_of(record).looks["main"] == ()
