"""Whatever a file says wrongly is one line, and the same one for a report and for a page of results."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from server.contract import checked, read_json
from server.report import write_report
from shared.config import SimulationConfig, load, without_places
from shared.errors import DataError
from simulation.compare import write_record
from simulation.results import main
from simulation.study.run import write_study
from tests.server.conftest import simulated_record


def study_record() -> dict[str, Any]:
    table = {"name": "lambda", "title": "Lambda", "question": "How?", "common": [], "planned": 1, "done": 1}
    cell = {"key": "a", "tables": ["lambda"], "setting": "pooled", "seed": 0, "overrides": ["data=mni"], "seconds": 1.0}
    rows = [{**row, "table": "lambda"} for row in simulated_record()["rows"]]
    claims = [{**claim, "reason": "so"} for claim in simulated_record()["claims"]]
    study = {
        "budget": "quick",
        "planned": 1,
        "tables": [{**table, "missing": []}],
        "cells": [{**cell, "rounds": [{"mean_cosine": 0.1}]}],
    }
    return {**simulated_record(), "runs": [], "rows": rows, "claims": claims, "study": study}


TOP = [(key,) for key in ("experiment", "seeds", "config_digest", "versions", "wall_s", "rows", "claims")]
STUDY = [("study", key) for key in ("budget", "planned", "tables", "cells")]
TABLE = [("study", "tables", 0, key) for key in ("name", "title", "question", "common", "planned", "done", "missing")]
CELL = [("study", "cells", 0, key) for key in ("tables", "setting", "seed", "overrides", "seconds", "rounds")]
ROW = [("rows", 0, key) for key in ("method", "setting", "seed", "data", "test_site", "n")]
CLAIM = [("claims", 0, key) for key in ("claim", "value", "target", "holds")]
WRONG: list[tuple[tuple[Any, ...], Any]] = [
    *(((key, value)) for key in [*TOP, *STUDY, *TABLE, *CELL, *ROW, *CLAIM] for value in (None, {"a": 1})),
    *((("study",), value) for value in (5, [], {}, "x")),
    (("rows", 0, "lambda"), "much"),
    (("rows", 0, "psnr_db"), [1]),
    *((("rows", 0, key), "x") for key in ("hd95_mm", "f1.ill", "dice.organ", "masks", "saliency", "threshold")),
    *((("rows", 0, key), 10) for key in ("labels", "unseen")),
    (("study", "kind"), 3),
    (("study", "cells", 0, "pictures"), "x"),
    *((("study", "cells", 0, "rounds", 0, key), "x") for key in ("feature_rank", "pseudo_accepted.ill")),
    (("rows", 0, "gate"), {}),
    (("study", "cells", 0, "rounds", 0, "mean_cosine"), "x"),
    (("wall_s",), 10**300),
    (("experiment",), "\ud800"),
]


@pytest.mark.parametrize(("place", "value"), [each for each in WRONG if each != (("versions",), {"a": 1})])
def test_a_wrong_value_is_bad_data_in_one_line(
    place: tuple[Any, ...], value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = copy.deepcopy(study_record())
    inner = record
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    for name in ("record.json", "report.json"):
        (tmp_path / name).write_text(json.dumps(record))
    with pytest.raises(DataError) as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert main(["--out", str(tmp_path / "docs" / "results" / "page.md"), str(tmp_path)]) == 5
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "docs").exists()


@pytest.mark.parametrize("place", [*TOP, *STUDY, *TABLE, *CELL, *ROW, *CLAIM])
def test_a_missing_key_is_named(place: tuple[Any, ...]) -> None:
    record = copy.deepcopy(study_record())
    inner = record
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    with pytest.raises(DataError, match=repr(place[-1])):
        checked(record, "report.json")


def test_a_whole_study_passes_and_makes_both(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps(study_record()))
    write_report(tmp_path)
    assert main(["--out", str(tmp_path / "docs" / "results" / "page.md"), str(tmp_path)]) == 0


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": "\\ud800"}'])
def test_what_is_no_json_is_bad_data(text: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(DataError, match="not readable JSON"):
        read_json(tmp_path / "record.json")


def test_a_report_says_nothing_of_the_folders_that_an_earlier_record_names(tmp_path: Path) -> None:
    record = simulated_record()
    record["config"] |= {"run_dir": "/secret/run", "study": {"roots": {"mni": "/secret/mni"}}}
    record["config"]["campaign"]["data"]["root"] = "/secret/data"
    record["config"]["campaign"]["objective"] = {"vgg_weights": "/secret/vgg"}
    record["config"]["cross"] = {"data": {"root": "/secret/other"}}
    (tmp_path / "record.json").write_text(json.dumps(record))
    write_report(tmp_path)
    assert "secret" not in (tmp_path / "report.html").read_text()
    assert "secret" not in (tmp_path / "report.json").read_text()


def test_records_leave_out_the_folders_of_this_machine(tmp_path: Path) -> None:
    words = ["data.root=/secret/a", "data.test=mni", "data.test_root=/secret/b", "objective=vgg-wgan"]
    places = ["objective.vgg_weights=/secret/c.safetensors", "run_dir=/secret/d", "study.roots.pneumonia=/secret/e"]
    config = load("simulation", ["experiment=enhancement", "data=phantom", *words, *places], SimulationConfig)
    write_record(tmp_path, config, [], wall_s=1.0)
    assert "secret" not in (tmp_path / "record.json").read_text()
    write_study(tmp_path, config, [])
    for name in ("record.json", "report.json", "report.html"):
        assert "secret" not in (tmp_path / name).read_text()


def test_overrides_keep_the_key_of_a_place_and_groups_of_other_names_their_own() -> None:
    words = ["data=mni data.root=/secret/a objective.vgg_weights='/secret/b c' rounds=3"]
    kept = {"mask_codes": {"root": 1}, "common": words}
    assert without_places(kept) == {
        "mask_codes": {"root": 1},
        "common": ["data=mni data.root=PLACE objective.vgg_weights=PLACE rounds=3"],
    }
