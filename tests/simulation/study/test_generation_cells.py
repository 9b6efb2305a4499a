"""Cells of the generation study on tiny phantoms, run for real: what is kept, what is shared, who is judged on whom."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from server.generation.rows import enriched, sheet_of
from shared.config import MachineConfig, SimulationConfig, StudyConfig, TableConfig, load
from shared.errors import ConfigError, DataError
from simulation.results import main
from simulation.study import generators, judges
from simulation.study import run as study_run
from simulation.study.cell import Cohort, opened
from simulation.study.generation_cells import generation_labels, run_generation_cell, scarce_class
from simulation.study.generators import kept_generator, loaded, read_kept, write_kept
from simulation.study.grid import Cell, planned

PARTS = ("autoencoder", "denoiser", "controlnet")
COMMON = (
    *("data=phantom", "degrade=none", "enhance=none", "objective=plain", "rounds=1", "training.local_steps=1"),
    *("training.batch_size=2", "recognise.channels=4", "recognise.depth=2", "generate=emit-diff"),
    *(f"generate.{part}.{length}" for part in PARTS for length in ("rounds=1", "local_steps=1", "batch_size=2")),
    *("generate.draw.steps=1", "generate.draw.variants=1", "generate.draw.memorised_share=1.0"),
    *("sites=2", "data.split={train:0.5,validation:0.25,test:0.25}"),
    *(f"hospitals.sites.{site}.{key}" for site in range(2) for key in ("patients=4", "labelled=1.0", "diagnosed=1.0")),
)  # fmt: skip
MACHINE = MachineConfig(device="cpu", threads=1)
DRAWN = "augment=emit-diff"


def table(name: str, *words: str, **changes: Any) -> TableConfig:
    also = words or ("generate=emit-diff",)
    return TableConfig(name=name, title=name, question="?", also=also, seeds=(0,), images=6, **changes)


def study_of(*tables: TableConfig, **changes: Any) -> StudyConfig:
    return StudyConfig(kind="generation", tables=tables, common=COMMON, **changes)


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


# --------------------------------------------------------------------------------------------------------------- plan


def test_the_generation_study_composes_and_its_quick_budget_is_three_augmentations_of_one_federated_generator() -> None:
    config = load("simulation", ["experiment=generation"], SimulationConfig)
    assert config.study is not None
    quick, full = planned(config.study, "quick"), planned(config.study, "full")
    assert [each.config.campaign.augment.kind for each in quick] == ["none", "none", "deepstack", "emit-diff"]
    assert {(each.seed, each.generator) for each in quick} == {(0, "none"), (0, "federated")}
    assert {name for each in full for name in each.tables} == {each.name for each in config.study.tables}
    assert len({each.key for each in full}) == len(full) > 100
    assert {each.seed for each in full} == {0, 1, 2}


def test_one_judge_judges_every_generator_of_a_data_set() -> None:
    asked = ("generate=emit-diff", "generate.edges=none", "generate.draw.steps=2", "augment=deepstack")
    campaigns = [cell(words).config.campaign for words in asked]
    assert len({judges._key(judges._asked(campaign, None), "recipe") for campaign in campaigns}) == 1


def test_another_text_encoder_in_the_same_folder_makes_another_generator(folder: Path, tmp_path: Path) -> None:
    asked = cell(f"generate.text=sentence generate.text_encoder={tmp_path}")
    keys = set()
    for content in (b"one", b"another"):
        (tmp_path / "model.safetensors").write_bytes(content)
        cohort = opened(asked.config, folder)
        keys.add(generators.key_of_part(asked, asked.config.campaign, "pooled", "", cohort, None))
    assert len(keys) == 2


def test_a_cell_without_synthetic_images_is_the_same_cell_whatever_the_generator_would_be() -> None:
    plain = cell("augment=none").key
    assert cell("augment=none", "generate.draw.steps=2").key == plain
    assert cell("augment=none", generator="federated").key == plain
    assert cell("augment=none", setting="local").key != plain
    drawn = cell(DRAWN, generator="federated").key
    assert cell(DRAWN, "generate.draw.steps=2", generator="federated").key != drawn
    assert cell(DRAWN, generator="pooled").key != drawn
    assert cell(DRAWN, "generate.start=elsewhere", generator="federated").key == drawn, "a place"


@pytest.mark.parametrize(
    ("words", "changes", "reason"),
    [
        (DRAWN, {}, "needs generator=federated, pooled or local"),
        ("generate=none", {"figures": "generator"}, "needs a generator"),
        ("augment=none", {"site": "north"}, "with setting=local"),
        ("augment=none", {"site": "nowhere", "setting": "local"}, "must be one of"),
        ("augment=none", {"setting": "untrained"}, "belongs to a study of enhancement"),
    ],
)
def test_a_cell_that_cannot_be_is_refused_before_any_runs(words: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        cell(words, **changes)


def test_the_scarce_class_is_the_one_that_the_hospital_has_least_of() -> None:
    words = "data=mni", "hospitals.sites.0.balance=[0.2,0.2,0.2]", "hospitals.sites.1.balance=[0.5,0.4,0.1]"
    asked = cell(*words, setting="local", site="harbour")
    assert scarce_class(asked.config, "harbour") == "kind_b"
    assert scarce_class(asked.config, "north") == ""
    assert generation_labels(asked)["scarce"] == "kind_b"


# ----------------------------------------------------------------------------------------------------------- generators


def keys(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "generators").glob("*.json")}


def kept(asked: Cell, setting: str, folder: Path, site: str = "") -> generators.KeptGenerator:
    return kept_generator(asked, setting, opened(asked.config, folder), folder, MACHINE, quiet, site)


def test_a_generator_is_trained_once_part_by_part_and_shared_by_what_draws_with_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kept(cell(figures="generator", setting="federated"), "federated", folder)
    assert [record["phase"] for record in first.records] == ["autoencoder", "denoiser", "controlnet"]
    made = keys(folder)
    assert len(made) == 3
    assert not [path for path in (folder / "generators").iterdir() if path.is_dir()], "checkpoints are let go"

    def never(*_: Any) -> Any:
        raise AssertionError("it is trained again")

    with monkeypatch.context() as patched:
        patched.setattr(generators, "_federated", never)
        again = cell(DRAWN, "generate.draw.steps=3", "recognise.channels=6", generator="federated")
        assert kept(again, "federated", folder).path == first.path
    other = kept(cell("generate.contour=merged", figures="generator", setting="federated"), "federated", folder)
    assert len(keys(folder) - made) == 1, "autoencoder and denoiser are the same, only the ControlNet is another"
    arrays = [load_arrays(found.path) for found in (first, other)]
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0] if name.startswith("denoiser."))


def load_arrays(path: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(path))


def test_pooled_and_local_generators_are_others_and_hold_every_network(folder: Path) -> None:
    asked = cell(figures="generator", setting="pooled")
    pooled, local = kept(asked, "pooled", folder), kept(asked, "local", folder, "north")
    assert pooled.path != local.path
    generator = loaded(asked.config.campaign, pooled)
    assert float(generator.latents.scale) != 1.0
    parts = {name.partition(".")[0] for name in load_arrays(pooled.path)}
    assert parts == {"autoencoder", "latents", "denoiser", "prompts", "controlnet"}
    samples = {
        name: [record["samples"] for record in each.records if record["phase"] == "denoiser"]
        for name, each in (("pooled", pooled), ("local", local))
    }
    assert samples["pooled"][0] == 2 * samples["local"][0], "the steps of both sites"


def test_a_pooled_denoiser_is_held_against_a_federated_one_in_the_same_latents(folder: Path) -> None:
    asked = cell(figures="generator", setting="pooled")
    pooled, federated = (load_arrays(kept(asked, setting, folder).path) for setting in ("pooled", "federated"))
    other = {name.partition(".")[0] for name in federated if not np.array_equal(federated[name], pooled[name])}
    assert {"denoiser", "controlnet"} <= other, "in one step and in two: not all of their arrays move so soon"
    assert not other & {"autoencoder", "latents"}


@pytest.mark.parametrize("damage", ["weights", "sheet", "list"])
def test_a_kept_generator_that_was_changed_is_refused_in_words(tmp_path: Path, damage: str) -> None:
    write_kept(tmp_path, "abc", {"latents.scale": np.ones(1, np.float32)}, [{"phase": "autoencoder"}], 1.0)
    assert read_kept(tmp_path, "none") is None
    assert read_kept(tmp_path, "abc") is not None
    if damage == "weights":
        (tmp_path / "abc.safetensors").write_bytes(b"other")
    else:
        (tmp_path / "abc.json").write_text("{" if damage == "sheet" else "[]")
    with pytest.raises(DataError, match="kept generator abc is damaged; remove generators/abc.json and run again"):
        read_kept(tmp_path, "abc")


# --------------------------------------------------------------------------------------------------------------- cells


def test_a_generator_cell_has_losses_quality_guards_and_a_picture_per_site(folder: Path) -> None:
    result = run_generation_cell(cell(figures="generator", setting="federated"), folder, MACHINE, quiet)
    (row,) = result.rows
    figures = {"autoencoder_psnr_db", "denoiser_loss", "controlnet_loss", "mask_dice", "real_dice", "feature_distance"}
    assert figures | {"real_distance", "images_per_s", "memorised_share", "rejected_share", "refused"} <= row.keys()
    assert (row["method"], row["setting"], row["site"], row["sampler"]) == ("emit-diff", "federated", "all", "rflow")
    assert [picture["kind"] for picture in result.pictures] == ["drawn", "drawn"]
    shown = "edges, mask of background, mask of organ, mask of lesion"
    assert f"north: a test image, its {shown}, and 3 images" in result.pictures[0]["caption"]
    again = run_generation_cell(cell(figures="draws", setting="federated"), folder, MACHINE, quiet)
    assert again.rows[0]["feature_distance"] == pytest.approx(row["feature_distance"], rel=1e-5), (
        "the same images from the same noise"
    )
    assert [picture["kind"] for picture in again.pictures] == ["sampled"]
    json.dumps([row, *result.rounds], allow_nan=False)


def test_local_generators_are_a_row_each_and_their_mean(folder: Path) -> None:
    rows = run_generation_cell(cell(figures="generator", setting="local"), folder, MACHINE, quiet).rows
    assert [row["site"] for row in rows] == ["north", "harbour", "all"]
    assert rows[2]["denoiser_loss"] == pytest.approx((rows[0]["denoiser_loss"] + rows[1]["denoiser_loss"]) / 2)


@pytest.mark.parametrize("setting", ["pooled", "local", "federated"])
def test_a_recogniser_trains_with_the_sets_of_every_site_and_is_judged_on_real_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    asked = cell(DRAWN, setting=setting, generator="federated")
    seen: list[Cohort] = []
    train = study_run.run_generation_cell.__globals__["trained"]

    def watched(cell: Cell, data: Cohort, *rest: Any) -> Any:
        seen.append(data)
        return train(cell, data, *rest)

    monkeypatch.setitem(study_run.run_generation_cell.__globals__, "trained", watched)
    rows = run_generation_cell(asked, folder, MACHINE, quiet).rows
    (data,) = seen
    drawn = [each.train.synthetic for each in data.datas]
    assert all(synthetic is not None and len(synthetic) for synthetic in drawn)
    assert data.together.train.synthetic is not None
    assert len(data.together.train.synthetic) == sum(len(each) for each in drawn if each)
    assert all(each.test.synthetic is None for each in (*data.datas, data.together))
    everybody = [row for row in rows if row["test_site"] == "all"]
    assert [row["site"] for row in everybody] == {"local": ["north", "harbour", "all"]}.get(setting, ["all"])
    assert {row["test_site"] for row in rows} == {"north", "harbour", "all"}
    assert {"dice", "accuracy", "f1"} <= everybody[0].keys()
    assert (everybody[0]["method"], everybody[0]["generator"]) == ("emit-diff", "federated")


def test_a_poor_hospital_trains_alone_and_is_judged_on_all_tests(folder: Path) -> None:
    asked = cell("augment=none", setting="local", site="harbour")
    rows = run_generation_cell(asked, folder, MACHINE, quiet).rows
    assert {row["site"] for row in rows} == {"harbour"}
    assert {row["test_site"] for row in rows} == {"north", "harbour", "all"}


def test_a_federation_cannot_train_with_a_generator_of_each_site(folder: Path) -> None:
    asked = cell(DRAWN, setting="federated", generator="local")
    with pytest.raises(ConfigError, match="images of one generator"):
        run_generation_cell(asked, folder, MACHINE, quiet)


@pytest.mark.slow
def test_the_study_runs_keeps_and_writes_its_page(folder: Path, tmp_path: Path) -> None:
    tables = (
        table("generators", figures="generator", setting="federated"),
        table("downstream", "augment=none", DRAWN, generator="federated"),
    )
    config = load("simulation", [f"run_dir={folder}", "machine.threads=1"], SimulationConfig)
    config = replace(config, experiment="generation", budget="full", study=study_of(*tables))
    text = study_run.run_study(config, Console(quiet=True)).read_text()
    report = json.loads((folder / "report.json").read_text())
    assert {row["method"] for row in report["rows"]} == {"none", "emit-diff"}
    assert {claim["promise"] for claim in report["claims"]} >= {"healthy"}
    assert "What was drawn" in text
    out = tmp_path / "docs/results/generation.md"
    assert main(["--title", "Generation", "--out", str(out), str(folder)]) == 0
    assert "![Original, edges, outlines, and images drawn for them](../images/generation-generators-drawn-1.png)" in (
        out.read_text()
    )
    sheet = sheet_of(enriched(report["rows"], report["study"]["cells"]), ["downstream"])
    assert [model.generator for model in sheet.models] == ["none", "federated"]
