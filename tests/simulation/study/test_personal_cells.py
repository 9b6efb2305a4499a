"""Cells of the personalisation study on tiny phantoms, run for real: what is kept, what is judged, on whom."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from shared.config import MachineConfig, SimulationConfig, StudyConfig, TableConfig, load
from shared.errors import ConfigError, DataError
from simulation.results import main
from simulation.study import judges, personal_cells, personal_release
from simulation.study import run as study_run
from simulation.study.cell import opened
from simulation.study.grid import Cell, planned
from simulation.study.personal_cells import run_personal_cell
from simulation.study.personal_orders import lesion_bias, noise_cov
from simulation.study.personal_release import hospitals_of, learned_from, reference_of, release_key

COMMON = (
    *("data=phantom", "degrade=gaussian", "enhance=unet", "enhance.channels=4", "enhance.depth=2", "objective=plain"),
    *("rounds=1", "training.local_steps=2", "training.batch_size=2", "recognise.channels=4", "recognise.depth=2"),
    *("round.quorum=1", "sites=2", "hospitals.slices=2", "data.image_size=[16,16]"),
    *("data.split={train:0.5,validation:0.25,test:0.25}", "new.degrade.sigma=[0.2,0.2]"),
    *("personalise.steps=2", "personalise.batch_size=2"),
    *(f"hospitals.sites.{site}.{key}" for site in range(2) for key in ("patients=8", "labelled=1.0", "diagnosed=1.0")),
)  # fmt: skip
MACHINE = MachineConfig(device="cpu", threads=1)
TGD = "personalise.method=tgd personalise.tgd.phi=0.5"


def table(name: str, *words: str, **changes: Any) -> TableConfig:
    known: dict[str, Any] = {"figures": "quality", "unseen": "harbour", "seeds": (0,), **changes}
    return TableConfig(name=name, title=name, question="?", also=words or ("personalise.method=none",), **known)


def study_of(*tables: TableConfig) -> StudyConfig:
    return StudyConfig(kind="personalise", tables=tables, common=COMMON)


def cell(*words: str, **changes: Any) -> Cell:
    return planned(study_of(table("asked", " ".join(words), **changes)), "full")[0]


def quiet(text: str) -> None:
    del text


@pytest.fixture(autouse=True)
def _short_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "ROUNDS", 1)
    monkeypatch.setattr(judges, "TRAINING", replace(judges.TRAINING, local_steps=2, batch_size=2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run folder for all: what a test keeps there the next one finds."""
    return tmp_path_factory.mktemp("run")


def test_the_study_composes_and_its_quick_budget_is_the_main_table() -> None:
    config = load("simulation", ["experiment=personalise"], SimulationConfig)
    assert config.study is not None
    quick, full = planned(config.study, "quick"), planned(config.study, "full")
    asked = [(each.personal.method, each.personal.adapt.rehearse) for each in quick if each.personal]
    plain = [("none", 0), ("finetune", 0), ("tgd", 0), ("tgd", 0)]
    assert asked == [*plain, ("finetune", 1), ("tgd", 1), ("lastblocks", 0), ("fedbn", 0), ("alone", 0)]
    assert {name for each in full for name in each.tables} == {each.name for each in config.study.tables}
    assert {each.seed for each in full} == {0, 1, 2}
    assert len({each.key for each in full}) == len(full)


def test_a_cell_is_keyed_by_what_decides_its_figures() -> None:
    plain = cell("personalise.method=none").key
    assert cell("personalise.method=none personalise.steps=3 new.studies=2").key == plain, "nothing is adapted"
    tgd = cell(TGD).key
    assert tgd != plain
    assert cell(f"{TGD} personalise.margin_db=0.5 personalise.seed=9").key == tgd, "when a site would keep it"
    for words in ("personalise.steps=3", "personalise.tgd.form=weight", "new.studies=2", "new.degrade.sigma=[0.3,0.3]"):
        assert cell(f"{TGD} {words}").key != tgd
    assert cell(TGD, setting="federated").key != tgd
    assert cell(TGD, figures="orders").key != tgd


@pytest.mark.parametrize(
    ("words", "changes", "reason"),
    [
        ("personalise.method=magic", {}, "method"),
        ("new.patients=3", {}, "new.patients=3 is not understood"),
        ("new.studies=few", {}, "new.studies must be a whole number"),
        ("new.alone=maybe", {}, "new.alone must be true or false"),
        ("personalise.method=none", {"unseen": ""}, "needs unseen=SITE"),
        ("personalise.method=none", {"unseen": "nowhere"}, "must be one of two sites"),
        ("personalise.method=none", {"figures": "recogniser"}, "quality, orders or online"),
        ("personalise.method=none", {"setting": "local"}, "setting=pooled or federated"),
        ("enhance=none", {}, "needs enhance="),
    ],
)
def test_a_cell_that_cannot_be_is_refused_before_any_runs(words: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        cell(words, **changes)


def test_a_release_is_trained_once_and_serves_every_adaptation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_personal_cell(cell("personalise.method=none"), folder, MACHINE, quiet)
    assert [path.stem for path in (folder / "releases").glob("*.json")] == [release_key(cell())]

    def never(*_: Any) -> Any:
        raise AssertionError("it is trained again")

    monkeypatch.setattr(personal_release, "_trained", never)
    adapted = run_personal_cell(cell("personalise.method=finetune"), folder, MACHINE, quiet)
    shares = [row["trained_share"] for row in (*first.rows, *adapted.rows) if row["setting"] == "personalised"]
    assert shares[0] == 0.0
    assert shares[-1] > 0.5
    keys = {release_key(cell(words)) for words in (TGD, "new.studies=2", "new.degrade.sigma=[0.3,0.3]")}
    assert keys == {release_key(cell())}
    assert release_key(cell("new.alone=true")) not in keys


def test_rows_are_of_the_new_scanner_and_of_the_old_ones_and_tgd_moves_a_part(folder: Path) -> None:
    result = run_personal_cell(cell(TGD), folder, MACHINE, quiet)
    of_model = [row for row in result.rows if row["setting"] == "personalised"]
    places = [(row["domain"], row["test_site"]) for row in of_model]
    assert places == [("new", "all"), ("old", "all"), ("old", "north")]
    for row in of_model:
        assert {"psnr_db", "ssim", "rmse", "dice", "judge_dice", "trained_share", "phi"} <= row.keys()
        assert (row["method"], row["phi"], row["tgd_phi"]) == ("tgd", 0.5, 0.5)
        assert 0 < row["trained_share"] < 1
    assert of_model[1]["psnr_db"] == pytest.approx(of_model[2]["psnr_db"]), "there is one old site"
    sigma = {row["domain"]: row["psnr_db"] for row in result.rows if row["setting"] == "degraded"}
    assert sigma["new"] < sigma["old"] - 3, "twice the noise"
    assert [picture["kind"] for picture in result.pictures] == ["new", "old"]
    assert "after the adaptation" in result.pictures[0]["caption"]
    json.dumps([result.rows, result.rounds], allow_nan=False)


def test_few_studies_are_part_of_more_and_no_test_patient_is_among_them(folder: Path) -> None:
    data = hospitals_of(cell(), opened(cell().config, folder))
    assert [each.site for each in data.old.datas] == ["north"]
    assert data.new.site == "harbour"
    one, two = (set(learned_from(cell(f"{TGD} new.studies={n}"), data.new).identity) for n in (1, 2))
    assert one < two < set(data.new.train.identity)
    assert learned_from(cell(TGD), data.new) is data.new.train
    reference = reference_of(data.old.together, cell().config.campaign)
    assert not set(reference.identity) & set(data.old.together.test.identity)
    assert reference.degraded_NCHW is not None
    assert not torch.equal(reference.degraded_NCHW, reference.clean_NCHW)


def test_orders_and_online_have_their_figures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run_personal_cell(cell(TGD, figures="orders"), folder, MACHINE, quiet).rows
    new = [row for row in rows if row["domain"] == "new" and row["setting"] == "personalised"]
    assert math.isfinite(new[0]["noise_cov"])
    assert new[0]["noise_cov"] > 0
    assert not any("noise_cov" in row for row in rows if row["domain"] == "old")
    monkeypatch.setattr("simulation.study.personal_orders.MOST_STUDIES", 1)
    rows = run_personal_cell(cell(f"{TGD} personalise.loss=noise2noise", figures="online"), folder, MACHINE, quiet).rows
    assert {(row["domain"], row["setting"]) for row in rows} == {
        (domain, setting) for domain in ("new", "old") for setting in ("degraded", "personalised")
    }
    assert all(math.isfinite(row["psnr_db"]) for row in rows)


def test_bias_and_noise_are_those_of_the_equations() -> None:
    region = torch.zeros(1, 4, 4, dtype=torch.bool)
    region[0, :2, :2] = True
    clean = torch.full((1, 4, 4), 0.5, dtype=torch.float64)
    images = torch.stack([clean - 0.15, clean - 0.05])  # means 0.35 and 0.45: mean 0.4, spread sqrt(2) * 0.05
    assert lesion_bias(images, clean, region) == pytest.approx(100 * (0.4 - 0.5) / 0.5)
    assert noise_cov(images, region) == pytest.approx(100 * 0.05 * math.sqrt(2) / 0.4)
    assert math.isnan(lesion_bias(images, clean, torch.zeros_like(region)))


def test_a_release_that_was_changed_is_refused_in_words(folder: Path, tmp_path: Path) -> None:
    run_personal_cell(cell("personalise.method=none"), folder, MACHINE, quiet)
    key = release_key(cell())
    (tmp_path / "releases").mkdir()
    (tmp_path / f"releases/{key}.json").write_bytes((folder / f"releases/{key}.json").read_bytes())
    (tmp_path / f"releases/{key}.safetensors").write_bytes(b"other")
    hospitals = hospitals_of(cell(), opened(cell().config, folder))
    with pytest.raises(DataError, match=f"kept release {key} is damaged; remove releases/{key}.json and run again"):
        personal_release.model_of(cell(), hospitals, tmp_path, MACHINE, quiet)


def test_the_study_runs_keeps_and_writes_its_page_and_its_document(folder: Path, tmp_path: Path) -> None:
    words = ("personalise.method=none", "personalise.method=finetune", TGD, "new.alone=true")
    config = load("simulation", [f"run_dir={folder}", "machine.threads=1"], SimulationConfig)
    config = replace(config, experiment="personalise", budget="full", study=study_of(table("main", *words)))
    text = study_run.run_study(config, Console(quiet=True)).read_text()
    report = json.loads((folder / "report.json").read_text())
    assert {row["method"] for row in report["rows"]} == {"none", "finetune", "tgd", "alone"}
    assert {claim["promise"] for claim in report["claims"]} == {"gain", "kept", "forgets"}
    assert "Before and after" in text
    out = tmp_path / "docs/results/personalise.md"
    assert main(["--title", "Personalisation", "--out", str(out), str(folder)]) == 0
    assert "personalise-main-new-1.png" in out.read_text()
    assert (tmp_path / "docs/images/personalise-main.png").is_file()
    assert personal_cells.STATES["enhanced"] == "personalised"
