"""Cells of the recognition study on tiny phantoms: who is judged on whom, under which words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.config import MachineConfig, SimulationConfig, StudyConfig, TableConfig, load
from shared.errors import ConfigError
from simulation.study.grid import Cell, planned
from simulation.study.recognisers import label_budget, recognition_conditions, run_recogniser_cell

COMMON = (
    *("data=phantom", "degrade=none", "enhance=none", "objective=plain", "rounds=1", "training.local_steps=2"),
    *("training.batch_size=2", "recognise.channels=4", "recognise.depth=2"),
    "data.split={train:0.5,validation:0.25,test:0.25}",
    *(f"hospitals.sites.{site}.{key}" for site in range(3) for key in ("patients=4", "labelled=1.0", "diagnosed=1.0")),
)  # fmt: skip
TEN = "data.labels={north:{masks:4,diagnoses:0.5},harbour:{masks:3,diagnoses:0.5},hill:{masks:3,diagnoses:0.5}}"
MACHINE = MachineConfig(device="cpu", threads=1)


def cell(words: str, **table: Any) -> Cell:
    asked = TableConfig(name="few", title="few", question="?", also=(words,), seeds=(0,), **table)
    return planned(StudyConfig(kind="recognition", tables=(asked,), common=COMMON), "quick")[0]


def run(asked: Cell, folder: Path) -> tuple[Mapping[str, Any], ...]:
    return run_recogniser_cell(asked, folder, MACHINE, lambda text: None).rows


def where(rows: tuple[Mapping[str, Any], ...], **labels: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows if all(row[key] == value for key, value in labels.items())]


def test_a_cell_says_what_it_learnt_from() -> None:
    asked = cell(f"learn=multimix selfreg=scr {TEN}")
    words = recognition_conditions(asked)
    assert words["method"] == "multimix+scr"
    assert (words["masks"], words["diagnoses"], words["labels"]) == (10, 0.5, "10 masks, 50 % diagnoses")
    assert (words["mask_ssl"], words["saliency"], words["selfreg"], words["objective"]) == (
        "prior",
        True,
        "scr",
        "none",
    )


@pytest.mark.parametrize(
    ("labels", "unseen", "expected"),
    [
        ("data.labels=null", "", (None, None, "all masks, all diagnoses")),
        ("data.labels={north:{masks:5}}", "", (None, None, "masks of some sites, all diagnoses")),
        ("data.labels={north:{masks:5},harbour:{masks:2}}", "hill", (7, None, "7 masks, all diagnoses")),
        ("data.labels={north:{diagnoses:0.0}}", "", (None, None, "all masks, diagnoses that differ between sites")),
    ],
)
def test_a_label_budget_in_words(labels: str, unseen: str, expected: tuple[Any, ...]) -> None:
    assert label_budget(load("simulation", [*COMMON, labels], SimulationConfig), unseen) == expected


def test_a_pooled_model_is_judged_on_every_hospital_and_on_all(tmp_path: Path) -> None:
    rows = run(cell(f"learn=multimix {TEN}"), tmp_path)
    assert {row["test_site"] for row in where(rows, split="test")} == {"north", "harbour", "hill", "all"}
    everybody, validation = where(rows, test_site="all", split="test"), where(rows, split="validation")
    assert len(everybody) == len(validation) == 1
    of_sites = [row for row in where(rows, split="test") if row["test_site"] != "all"]
    assert everybody[0]["n"] == sum(row["n"] for row in of_sites)
    assert {"dice", "jaccard", "hd95_mm", "precision", "recall", "mask_ssim", "accuracy"} <= everybody[0].keys() | {
        "hd95_mm"
    }
    patients = np.mean([row["accuracy"] for row in of_sites])  # as many test patients at each
    assert everybody[0]["accuracy"] == pytest.approx(patients)


def test_local_models_are_judged_on_all_tests_and_their_mean_stands_for_them(tmp_path: Path) -> None:
    rows = run(cell(f"learn=umtl {TEN}", setting="local"), tmp_path)
    pairs = {(row["site"], row["test_site"]) for row in rows if row["site"] != "all"}
    assert len(pairs) == 9
    assert len(where(rows, site="all", test_site="all", split="test")) == 1


def test_an_unseen_hospital_trains_nobody_and_is_a_domain_of_its_own(tmp_path: Path) -> None:
    rows = run(cell(f"learn=umtl {TEN}", setting="local", unseen="hill"), tmp_path)
    assert {row["site"] for row in rows} == {"north", "harbour", "all"}
    assert {row["domain"] for row in rows if row["test_site"] == "hill"} == {"cross"}
    at_home = where(rows, site="all", domain="in", split="test")
    away = where(rows, site="all", domain="cross")
    assert len(at_home) == len(away) == 1
    own = [row["accuracy"] for row in rows if row["site"] == row["test_site"] != "all"]
    assert at_home[0]["accuracy"] == pytest.approx(np.mean(own))
    there = [row["accuracy"] for row in rows if row["test_site"] == "hill"]
    assert away[0]["accuracy"] == pytest.approx(np.mean(there))


def test_label_budgets_share_the_hospitals(tmp_path: Path) -> None:
    for words in ("learn=unet", f"learn=unet {TEN}"):
        run(replace(cell(words), seed=1), tmp_path)
    assert len(list((tmp_path / "data").glob("phantom-*"))) == 1


@pytest.mark.parametrize(("words", "unseen"), [("learn=unet", "nowhere"), ("sites=1 round.quorum=1", "north")])
def test_a_table_whose_unseen_site_cannot_be_left_out_is_refused_before_any_cell_runs(words: str, unseen: str) -> None:
    with pytest.raises(ConfigError, match="must be one of two sites or more"):
        cell(words, unseen=unseen)
    with pytest.raises(ConfigError, match="data.labels may name the sites"):
        cell("data.labels={elsewhere:{masks:1}}")


def test_a_store_is_not_ingested_again_for_another_label_budget(tmp_path: Path) -> None:
    run(cell("learn=unet"), tmp_path)
    [marker] = tmp_path.glob("data/phantom-*/sites/north/ingested.json")
    before = marker.stat().st_mtime_ns
    run(cell(f"learn=unet {TEN}"), tmp_path)
    assert marker.stat().st_mtime_ns == before
