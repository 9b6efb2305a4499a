"""A small grid of phantom cells, run for real: kept, shared between tables, judged by networks that never trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from shared.config import SimulationConfig, StudyConfig, TableConfig, load
from shared.errors import ConfigError, DataError
from shared.locks import free, locked
from simulation.cli import main
from simulation.study import judges
from simulation.study import run as study_run
from simulation.study.cell import Result, opened
from simulation.study.grid import Cell, key_of, planned, split_words, with_roots
from simulation.study.judges import judge_of

TINY = ("data=phantom", "rounds=2", "training.local_steps=3", "training.batch_size=2", "seed=0")
SMALL = ("enhance.channels=4", "enhance.depth=2", "recognise.channels=4", "recognise.depth=2", "objective.warmup=0.5")
FEW = (
    *(f"hospitals.sites.{site}.patients=4" for site in range(3)),
    "data.split={train:0.5,validation:0.25,test:0.25}",
)


def study_of(*tables: TableConfig, **changes: Any) -> StudyConfig:
    return StudyConfig(tables=tables, common=(*TINY, *SMALL, *FEW), **changes)


def config_of(study: StudyConfig, folder: Path) -> SimulationConfig:
    config = load("simulation", [*TINY, "machine.threads=1", f"run_dir={folder}"], SimulationConfig)
    return replace(config, study=study)


def table(name: str = "rivals", **changes: Any) -> TableConfig:
    values: dict[str, Any] = {
        "vary": (("objective=gradprom", "objective=joint"), ("objective.task_weight=1.0",)),
        "seeds": (0,),
    }
    return TableConfig(name=name, title=name, question="?", **{**values, **changes})


# --------------------------------------------------------------------------------------------------------------- plan


def test_cells_are_the_product_of_what_varies_and_come_seed_by_seed() -> None:
    asked = table(
        vary=(("objective=gradprom", "objective=joint"), ("objective.task_weight=0.1", "objective.task_weight=1.0")),
        also=("objective=plain",),
        seeds=(3, 5),
    )
    cells = planned(study_of(asked), "quick")
    assert [cell.seed for cell in cells] == [3] * 5 + [5] * 5
    kinds = [(c.config.campaign.objective.kind, c.config.campaign.objective.task_weight) for c in cells[:5]]
    assert kinds == [("gradprom", 0.1), ("gradprom", 1.0), ("joint", 0.1), ("joint", 1.0), ("plain", 0.1)]
    assert all(cell.config.campaign.seed == cell.seed for cell in cells)


def test_a_cell_that_two_tables_ask_for_is_one_cell() -> None:
    one, other = table("one"), table("other", vary=(("objective=joint objective.task_weight=1.0",),))
    cells = planned(study_of(one, other), "quick")
    assert [cell.tables for cell in cells] == [("one",), ("one", "other")]


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ("objective.task_weight=2.0", False),
        ("degrade.sigma=[0.3,0.3]", False),
        ("hospitals.sites.0.patients=5", False),
        ("data.test=mni", False),
        ("run_dir=elsewhere", True),
        ("data.root=elsewhere", True),
        ("machine.threads=2", True),
        ("strategy=fedadam", True),  # nothing to a model of pooled data
        ("strategy=fedprox", True),
        ("name=other", True),
        ("learn=umtl", False),
        ("selfreg=scr", False),
        ("data.labels={north:{masks:1}}", False),
    ],
)
def test_the_key_is_of_what_decides_the_figures(words: str, same: bool) -> None:
    def key(*extra: str) -> str:
        return key_of(load("simulation", [*TINY, *extra], SimulationConfig), "pooled", downstream=False)

    assert (key() == key(*words.split())) is same


def test_a_cell_that_was_kept_before_learn_and_selfreg_came_keeps_its_key() -> None:
    first = planned(load("simulation", ["experiment=enhancement"], SimulationConfig).study or study_of(), "quick")[0]
    assert first.key == "7ad8c812b5920a59d2dd9dc8"


def test_a_federation_is_keyed_by_its_strategy() -> None:
    configs = [load("simulation", [*TINY, f"strategy={kind}"], SimulationConfig) for kind in ("fedavg", "fedadam")]
    assert len({key_of(config, "federated", downstream=False) for config in configs}) == 2


def test_a_cell_without_its_data_says_which() -> None:
    asked = table(vary=(("data=hippocampus", "data=phantom"),), common=())
    missing = [cell.missing for cell in planned(study_of(asked), "quick") if cell.config.campaign.data.kind != "mni"]
    assert set(missing) == {"hippocampus", None}


def test_data_sets_are_found_in_one_folder_and_a_named_one_goes_first(tmp_path: Path) -> None:
    for place in ("mr/images/a.nii.gz", "xray/pneumoniamnist_trainval.npz", "odd/notes.txt"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).touch()
    found = with_roots(study_of(table(), roots={"hippocampus": None}), str(tmp_path)).roots
    assert found == {"hippocampus": str(tmp_path / "mr"), "pneumonia": str(tmp_path / "xray")}
    named = with_roots(study_of(table(), roots={"hippocampus": str(tmp_path / "odd")}), str(tmp_path)).roots
    assert named["hippocampus"] == str(tmp_path / "odd")
    with pytest.raises(ConfigError, match=r"study.roots.hippocampus must be a folder"):
        with_roots(study_of(table(), roots={"hippocampus": str(tmp_path / "none")}), None)
    with pytest.raises(ConfigError, match=r"data.root must be a folder"):
        with_roots(study_of(table()), str(tmp_path / "none"))
    assert with_roots(study_of(table(), roots={"hippocampus": None}), None).roots == {}


def test_a_table_with_an_override_that_is_not_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="task_wait"):
        planned(study_of(table(vary=(("objective.task_wait=1",),))), "quick")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("objective=plian",), "table 'rivals' of the study, 'objective=plian': objective=plian is not known"),
        (("budget=full",), "is for the whole study"),
        (("run_dir=elsewhere",), "is for the whole study"),
        (("+study.limit=1",), "is for the whole study"),
    ],
)
def test_a_cell_that_cannot_be_is_refused_with_its_table(words: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        planned(study_of(table(vary=(words,))), "quick")


def test_a_blank_inside_brackets_is_part_of_an_override() -> None:
    assert split_words("degrade.sigma=[0.2, 0.3]  a={b: 1, c: 2} name='x y' d=1") == (
        "degrade.sigma=[0.2, 0.3]", "a={b: 1, c: 2}", "name='x y'", "d=1",
    )  # fmt: skip


@pytest.mark.parametrize("changes", [{"only": ("nothing",)}, {"limit": -1}])
def test_a_study_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        study_of(table(), **changes)


def test_the_enhancement_study_composes() -> None:
    config = load("simulation", ["experiment=enhancement"], SimulationConfig)
    assert config.study is not None
    cells = planned(config.study, "quick")
    assert {table for cell in cells for table in cell.tables} == {table.name for table in config.study.tables}
    assert len({cell.key for cell in cells}) == len(cells) > 100


# ---------------------------------------------------------------------------------------------------------------- run


@pytest.fixture
def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture(autouse=True)
def _short_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "ROUNDS", 1)
    monkeypatch.setattr(judges, "TRAINING", replace(judges.TRAINING, local_steps=3, batch_size=2))


def kept_cells(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / "cells").glob("*.json"))}


@pytest.mark.slow
def test_a_study_runs_keeps_and_goes_on(tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(study_of(table(also=("objective=plain",)), limit=2), tmp_path)
    report = study_run.run_study(config, quiet)
    assert report.is_file()
    first = kept_cells(tmp_path)
    assert len(first) == 2
    study_run.run_study(config, quiet)
    second = kept_cells(tmp_path)
    assert len(second) == 3
    assert all(second[key] == value for key, value in first.items())

    record = json.loads((tmp_path / "report.json").read_text())
    assert {row["method"] for row in record["rows"]} == {"gradprom", "joint", "plain"}
    assert {row["setting"] for row in record["rows"]} == {"degraded", "clean", "pooled"}
    assert {row["split"] for row in record["rows"]} == {"validation", "test"}
    judged = [row for row in record["rows"] if row["split"] == "test" and row["setting"] == "pooled"]
    assert all(0 <= row["judge_dice"] <= 1 and row["table"] == "rivals" for row in judged)
    # One judge for all objectives: what it says of degraded images does not depend on who was trained.
    degraded = {row["judge_dice"] for row in record["rows"] if row["split"] == "test" and row["setting"] == "degraded"}
    assert len(degraded) == 1

    monkeypatch.setattr(study_run, "run_cell", None)  # nothing is run again
    study_run.run_study(config, quiet)


@pytest.mark.slow
def test_every_setting_and_downstream_network_gives_rows(tmp_path: Path, quiet: Console) -> None:
    settings: list[Any] = ["federated", "local", "untrained"]
    tables = [table(name, setting=name, vary=(), also=("objective=gradprom",)) for name in settings]
    tables.append(table("downstream", downstream=True, vary=(), also=("objective=plain data.test=mni",)))
    study_run.run_study(config_of(study_of(*tables), tmp_path), quiet)
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    test = [row for row in rows if row["split"] == "test" and row["setting"] not in ("clean", "degraded")]
    assert {row["table"]: row["setting"] for row in test} == {
        "federated": "federated", "local": "local", "untrained": "pooled", "downstream": "pooled",
    }  # fmt: skip
    assert {row["method"] for row in test if row["table"] == "untrained"} == {"nlm"}
    own = next(row for row in test if row["table"] == "downstream")
    for network in ("unet", "vnet", "resunet", "voxresnet"):
        assert 0 <= own[f"dice_{network}"] <= 1
        assert 0 <= own[f"no_harm_dice_{network}"] <= 1
    assert not list((tmp_path / "federations").glob("*")), "checkpoints of a finished cell are let go"


ROW = {"method": "plain", "setting": "pooled", "seed": 0, "data": "phantom", "degradation": "gaussian"}
WHOLE = ROW | {"split": "test", "site": "all", "test_site": "all", "n": 1}


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "{}", '{"rows":[],"rounds":[],"seconds":1,"code":"x"}',
        '{"rows":[1],"rounds":[],"seconds":1,"code":"x"}',
        '{"rows":[{}],"rounds":[],"seconds":1,"code":"x"}', '{"failed":1,"code":"x"}',
        json.dumps({"rows": [ROW], "rounds": [], "seconds": float("nan"), "code": "x"}),
        "[" * 100_000,
        json.dumps({"rows": [WHOLE | {"dice": float("nan")}], "rounds": [], "seconds": 1, "code": "x"}),
    ],
)  # fmt: skip
def test_a_damaged_cell_is_named(tmp_path: Path, quiet: Console, text: str) -> None:
    config = config_of(study_of(table()), tmp_path)
    assert config.study is not None
    cells = planned(config.study, "quick")
    (tmp_path / "cells").mkdir()
    for cell in cells:
        (tmp_path / "cells" / f"{cell.key}.json").write_text(text)
    with pytest.raises(DataError, match=r"cannot be read; remove it"):
        study_run.run_study(config, quiet)


def test_a_cell_whose_training_fails_is_kept_as_failed_and_the_next_one_runs(
    tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(cell: Cell, *_: Any) -> Any:
        raise DataError("a loss is not finite")

    monkeypatch.setattr(study_run, "run_cell", diverges)
    study_run.run_study(config_of(study_of(table()), tmp_path), quiet)
    assert [kept["failed"] for kept in kept_cells(tmp_path).values()] == ["a loss is not finite"] * 2
    (of_table,) = json.loads((tmp_path / "record.json").read_text())["study"]["tables"]
    assert of_table["done"] == 0
    assert all(line.endswith("(failed: a loss is not finite)") for line in of_table["missing"])
    monkeypatch.setattr(study_run, "run_cell", None)  # what failed is not tried again
    study_run.run_study(config_of(study_of(table()), tmp_path), quiet)


def test_a_cell_with_a_figure_that_is_no_number_is_kept_as_failed_and_the_next_one_runs(
    tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    collapsed = Result((), ({"feature_rank": float("nan")},), 1.0)
    monkeypatch.setattr(study_run, "run_cell", lambda *_: collapsed)
    study_run.run_study(config_of(study_of(table()), tmp_path), quiet)
    assert all("not finite" in kept["failed"] for kept in kept_cells(tmp_path).values())
    assert len(kept_cells(tmp_path)) == 2


@pytest.mark.parametrize("words", ["objective=joint", "seed=7", "rounds=3", "transport=ray", "+sites=2"])
def test_an_override_that_no_cell_would_read_is_refused(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiment=enhancement", words.replace("+", ""), f"run_dir={tmp_path}"]) == 2
    assert "decided by each cell" in capsys.readouterr().err


def test_a_cell_that_another_process_works_at_is_left_to_it(tmp_path: Path, quiet: Console) -> None:
    config = config_of(study_of(table()), tmp_path)
    assert config.study is not None
    cell = planned(config.study, "quick")[0]
    with locked(tmp_path / "cells" / f"{cell.key}.lock"):
        assert study_run._one(cell, "", tmp_path, config, quiet) == 0


def test_a_lock_is_free_again_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "cell.lock"
    with free(path) as first, free(path) as second:
        assert (first, second) == (True, False)
    with free(path) as third:
        assert third


# -------------------------------------------------------------------------------------------------------------- judge


def cells_of(*words: str) -> list[Cell]:
    return planned(study_of(table(vary=(words,))), "quick")


def test_one_judge_for_all_objectives_and_degradations(tmp_path: Path) -> None:
    cells = cells_of(
        "objective=plain",
        "objective=gradprom degrade=blur enhance.channels=6",
        "objective=frozen strategy=fedadam",
        "objective=plain training.optimiser=sgd training.learning_rate=1.0",
        "objective=joint rounds=3 training.local_steps=2 training.batch_size=3",
    )
    machine = config_of(study_of(table()), tmp_path).machine
    found = []
    for cell in cells:
        data = opened(cell.config, tmp_path)
        found.append(judge_of(cell.config.campaign, data.together, data.recipe, tmp_path / "judges", machine))
    assert len(list((tmp_path / "judges").glob("*.npz"))) == 1
    first, *others = [torch.cat([p.flatten() for p in judge.parameters()]) for judge in found]
    assert all(torch.equal(first, other) for other in others)
    assert not any(judge.training for judge in found)


def test_data_are_written_once_for_all_cells(tmp_path: Path) -> None:
    first, second = (opened(cell.config, tmp_path) for cell in cells_of("objective=plain", "objective=joint"))
    assert first.stores == second.stores
    assert np.array_equal(first.together.test.clean_NCHW.numpy(), second.together.test.clean_NCHW.numpy())


def test_a_damaged_judge_is_trained_again_to_the_same_weights(tmp_path: Path) -> None:
    (cell,) = cells_of("objective=plain")
    machine = config_of(study_of(table()), tmp_path).machine
    data = opened(cell.config, tmp_path)

    def weights() -> torch.Tensor:
        judge = judge_of(cell.config.campaign, data.together, data.recipe, tmp_path / "judges", machine)
        return torch.cat([parameter.flatten() for parameter in judge.parameters()])

    first = weights()
    (kept,) = (tmp_path / "judges").glob("*.npz")
    whole = kept.read_bytes()
    for damaged in (b"", b"nonsense", whole[:100], whole[: len(whole) // 2]):
        kept.write_bytes(damaged)
        assert torch.equal(weights(), first)
        assert kept.read_bytes() == whole
