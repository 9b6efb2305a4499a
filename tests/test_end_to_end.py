"""DICOM in, report out, by the command line; and what each kind of bad input says, with which exit code."""

from __future__ import annotations

import fcntl
import json
import math
import shutil
from pathlib import Path

import pytest

from shared.errors import ConfigError
from simulation.cli import main

TINY = (
    "experiment=phantom", "sites=2", "rounds=2", "training.local_steps=2", "training.batch_size=2",
    "hospitals.slices=2", "hospitals.sites.0.patients=4", "hospitals.sites.1.patients=4", "machine.threads=1",
    "enhance=cnn3", "enhance.channels=4", "recognise.channels=4", "recognise.depth=2",
)  # fmt: skip
ROW_KEYS = {"method", "setting", "seed", "data", "degradation", "split", "site", "test_site", "n"}


def refused(capsys: pytest.CaptureFixture[str], code: int, reason: str, *overrides: str) -> None:
    capsys.readouterr()
    assert main(list(overrides)) == code
    words = capsys.readouterr().err.strip()
    assert reason in words
    assert "\n" not in words
    assert words.startswith("wardround-simulate: ")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run")
    assert main([*TINY, f"run_dir={run_dir}"]) == 0
    return run_dir


def test_the_report_keeps_the_contract(finished: Path) -> None:
    def no_constant(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    report = json.loads((finished / "report.json").read_text(), parse_constant=no_constant)
    assert report.keys() >= {"experiment", "seeds", "config_digest", "versions", "wall_s", "rows", "claims"}
    assert all(row.keys() >= ROW_KEYS for row in report["rows"])
    for setting in ("clean", "degraded", "local", "pooled", "federated"):
        assert [r for r in report["rows"] if (r["setting"], r["site"], r["test_site"]) == (setting, "all", "all")]
    assert {claim["holds"] for claim in report["claims"]} <= {True, False}
    assert all(math.isfinite(claim["value"]) and claim["target"] is not None for claim in report["claims"])


def test_budgets_are_equal(finished: Path) -> None:
    rows = json.loads((finished / "report.json").read_text())["rows"]
    seen = {
        (r["setting"], r["site"]): r["samples_seen"] for r in rows if "samples_seen" in r and r["test_site"] == "all"
    }
    assert seen["federated", "all"] == seen["pooled", "all"] == 2 * 2 * 2 * 2  # sites, rounds, steps, batch
    assert seen["local", "north"] == seen["local", "harbour"] == 8


def test_the_page_stands_alone(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "data:image/" in page
    for outside in ("http://", "https://", 'src="/', "<script src"):
        assert outside not in page.replace("http://www.w3.org/", "")


def test_a_second_run_keeps_the_result(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((finished / "report.json").read_text())["rows"]
    assert main([*TINY, f"run_dir={finished}"]) == 0
    assert "kept from an earlier run" in capsys.readouterr().out
    assert json.loads((finished / "report.json").read_text())["rows"] == before


def test_another_config_in_the_same_folder_is_not_mixed_in(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    assert main([*TINY, "objective=plain", "compare.local=false", "compare.pooled=false", f"run_dir={folder}"]) == 0
    assert "kept from" not in capsys.readouterr().out
    rows = json.loads((folder / "report.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"plain"}


def test_an_unknown_override(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, 2, "did you mean", *TINY, "trainin.batch_size=3")


@pytest.mark.parametrize("kind", ["hippocampus", "pneumonia", "totalseg", "store"])
def test_a_missing_folder(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = f"run_dir={tmp_path / 'run'}"
    refused(capsys, 2, "data.root", f"data={kind}", f"data.root={tmp_path / 'nowhere'}", run)
    refused(capsys, 2, "data.root", f"data={kind}", run)


def test_an_empty_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for site in ("north", "harbour"):
        (tmp_path / "sites" / site / "store").mkdir(parents=True)
    overrides = ("data=store", "sites=2", f"data.root={tmp_path / 'sites'}", f"run_dir={tmp_path / 'run'}")
    refused(capsys, 5, "store", *overrides)


def test_a_site_with_one_patient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, 5, "patient", *TINY, "hospitals.sites.1.patients=1", f"run_dir={tmp_path}")


def test_no_labels_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none = [f"hospitals.sites.{i}.{key}=0" for i in (0, 1) for key in ("labelled", "diagnosed")]
    refused(capsys, 5, "label", *TINY, *none, f"run_dir={tmp_path}")


def test_a_corrupt_checkpoint(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    for kept in ("result.json", "result.npz"):
        (folder / "seed-0" / kept).unlink()
    weights = folder / "seed-0" / "federation" / "checkpoints" / "round_00002" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    refused(capsys, 5, "round_00002", *TINY, f"run_dir={folder}")


def test_a_run_folder_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("")
    refused(capsys, 2, "choose another", *TINY, f"run_dir={tmp_path / 'taken'}")


def test_two_runs_at_once_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(capsys, 2, "another run", *TINY, f"run_dir={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_cell_that_cannot_be_read_starts_over(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "seed-0" / "cell.json").write_text("[]")
    assert main([*TINY, f"run_dir={folder}"]) == 0


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_here(device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, 2, "machine.device", *TINY, f"machine.device={device}", f"run_dir={tmp_path}")


def test_debug_shows_where(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="choose another"):
        main([*TINY, f"run_dir={tmp_path / 'taken'}", "--debug"])


def test_sites_with_another_architecture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a site of another version would compute; the coordinator has its own copy of the function.
    monkeypatch.setattr("shared.weights.architecture_digest", lambda arrays: "0" * 64)
    refused(capsys, 3, "architecture", *TINY, f"run_dir={tmp_path}")


def test_fresh_runs_again(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    assert main([*TINY, "fresh=true", f"run_dir={folder}"]) == 0
    assert "kept from" not in capsys.readouterr().out
    weights = "seed-0/federation/checkpoints/round_00002/weights.safetensors"
    assert (folder / weights).read_bytes() == (finished / weights).read_bytes()


def test_a_damaged_kept_result(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "seed-0" / "result.json").write_text("{")
    refused(capsys, 5, "fresh=true", *TINY, f"run_dir={folder}")


def test_other_code_starts_the_cell_over(finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from shared.config import SimulationConfig, load
    from simulation import campaigns

    config = load("simulation", [*TINY, f"run_dir={finished}"], SimulationConfig)
    key = campaigns.cell_key(config, 0)
    assert key != campaigns.cell_key(config, 1)
    (tmp_path / "client").mkdir()
    (tmp_path / "client" / "changed.py").write_text("x = 1\n")
    monkeypatch.setattr(campaigns, "ROOT", tmp_path)
    assert campaigns.cell_key(config, 0) != key


def test_vgg_weights_that_are_not_there_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["experiment=phantom", "objective=vgg-wgan", f"objective.vgg_weights={tmp_path}/secret/vgg19.safetensors"]
    assert main([*words, f"run_dir={tmp_path}/run"]) == 2
    error = capsys.readouterr().err
    assert "no file 'vgg19.safetensors' here" in error
    assert "secret" not in error
    assert not (tmp_path / "run").exists()
