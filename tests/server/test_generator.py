"""A generator's phases in reports: means over all images, costs with the phases in, and not a word of what was not
trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.closing import closing_record
from server.findings import read_findings
from server.generator import generator_section
from server.report import write_report
from shared.errors import DataError
from tests.server.conftest import rounds

HEADING = "Generator, phase by phase"
SITES = ["coast", "north"]
KEYS = {"autoencoder": "autoencoder.psnr_db", "denoiser": "denoiser.loss", "controlnet": "controlnet.loss"}
SCALES = {"autoencoder": 25.0, "denoiser": 0.5, "controlnet": 0.4}
CAMPAIGN = {
    "name": "lungs",
    "seed": 3,
    "data": {"kind": "store", "root": None, "test": None, "masks": ["lung"]},
    "degrade": {"kind": "gaussian"},
    "enhance": {"kind": "unet"},
    "objective": {"kind": "gradprom", "task_weight": 0.1},
    "generate": {"kind": "emit-diff"},
}


def moments(values: np.ndarray) -> dict[str, Any]:
    return {"count": len(values), "total": float(values.sum()), "total_sq": float((values**2).sum()), "quantiles": []}


def images(phase: str, number: int, site: str) -> np.ndarray:
    """Values per test image; the sites have different numbers of them."""
    rng = np.random.default_rng([sorted(KEYS).index(phase), number, SITES.index(site)])
    return SCALES[phase] * rng.uniform(0.9, 1.1, 7 if site == "coast" else 31)


def phase_rounds(phase: str, count: int = 2) -> list[dict[str, Any]]:
    """`count` rounds and the closing evaluation."""
    return [
        {
            "round": number,
            "seconds": 3.0,
            "participants": SITES,
            "dropped": {},
            "bytes_up": 2_000_000 if number <= count else 1_000,
            "bytes_down": 2_000_000,
            "training": {site: {"loss": 0.5, "samples": 8.0} for site in SITES} if number <= count else {},
            "evaluation": {site: {KEYS[phase]: moments(images(phase, number, site))} for site in SITES},
            "phase": phase,
        }
        for number in range(1, count + 2)
    ]


def of_all(number: int = 3) -> dict[str, float]:
    return {phase: float(np.concatenate([images(phase, number, s) for s in SITES]).mean()) for phase in KEYS}


ALL = [record for phase in KEYS for record in phase_rounds(phase)]


def write(run_dir: Path, campaign: dict[str, Any] = CAMPAIGN, phases: tuple[str, ...] = tuple(KEYS)) -> Path:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "campaign.json").write_text(json.dumps(campaign))
    for phase in phases:
        folder = run_dir / "phases" / phase
        folder.mkdir(parents=True)
        (folder / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in phase_rounds(phase)))
    return run_dir


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A deployed campaign that trained a generator and nothing else."""
    return write(tmp_path / "run")


def words_of(page: Path) -> str:
    """The page without its stylesheet and the configuration."""
    return page.read_text().partition("</style>")[2].partition("Full configuration")[0]


def test_rows_of_a_generator_alone_are_means_over_the_images_of_each_phases_last_evaluation(alone: Path) -> None:
    record = closing_record(alone)
    expected = of_all()
    coast, north, everywhere = record["rows"]
    assert [row["test_site"] for row in record["rows"]] == ["coast", "north", "all"]
    assert (coast["n"], north["n"], everywhere["n"]) == (7, 31, 38)
    assert everywhere["autoencoder_psnr_db"] == pytest.approx(expected["autoencoder"], rel=1e-12)
    assert everywhere["denoiser_loss"] == pytest.approx(expected["denoiser"], rel=1e-12)
    assert everywhere["controlnet_loss"] == pytest.approx(expected["controlnet"], rel=1e-12)
    assert north["denoiser_loss"] == pytest.approx(float(images("denoiser", 3, "north").mean()), rel=1e-12)
    for row in record["rows"]:
        assert (row["method"], row["setting"], row["seed"], row["data"]) == ("emit-diff", "federated", 3, "store")
        assert (row["degradation"], row["split"], row["site"]) == ("gaussian", "test", "all")
    assert (everywhere["bytes_up"], everywhere["seconds"], everywhere["samples_seen"]) == (3 * 4_001_000, 27.0, 96)
    assert record["claims"] == []


def test_the_page_of_a_generator_alone_speaks_of_no_enhancer_and_no_recogniser(alone: Path) -> None:
    text = words_of(write_report(alone))
    assert HEADING in text
    assert "Two sites trained a generator of images together" in text
    assert "In 6 rounds: autoencoder, denoiser and prompts, ControlNet." in text
    assert f"{of_all()['autoencoder']:.2f} dB" in text
    for word in ("recogniser", "enhance", "Dice", "objective", "Objective", "Results over all sites"):
        assert word not in text, word
    assert json.loads((alone / "report.json").read_text())["rows"] == closing_record(alone)["rows"]


def test_each_phase_has_a_line_with_its_cost_per_round_and_a_chart() -> None:
    section = generator_section(ALL, SITES, label="emit-diff")
    assert section is not None
    assert [(line.phase, line.rounds, line.seconds, line.up) for line in section.lines] == [
        (phase, 2, "9.0 s", "2.0 MB") for phase in KEYS
    ]
    line = section.lines[1]
    assert line.over_all == f"{of_all()['denoiser']:.4f}"
    assert line.by_site == tuple(f"{images('denoiser', 3, site).mean():.4f}" for site in SITES)
    assert len(section.charts) == 3
    assert (section.rounds, section.seconds, section.up) == (6, "27.0 s", "12.0 MB")


def test_a_run_without_a_generator_has_no_such_section(deployed_run: Path) -> None:
    assert generator_section([], SITES, label="gradprom") is None
    assert HEADING not in words_of(write_report(deployed_run))


def test_a_site_that_did_not_answer_and_a_value_that_is_no_number_are_gaps() -> None:
    records = phase_rounds("denoiser")
    records[1]["evaluation"].pop("north")
    records[2]["evaluation"] = {"coast": {"denoiser.loss": {"count": 7, "total": None}}}
    section = generator_section(records, SITES, label="emit-diff")
    assert section is not None
    assert section.lines[0].over_all == "–"
    assert section.lines[0].by_site == ("–", "–")
    assert len(section.charts) == 1


def test_training_with_a_generators_images_counts_its_phases_in(deployed_run: Path) -> None:
    before = closing_record(deployed_run)
    campaign = json.loads((deployed_run / "campaign.json").read_text())
    write(deployed_run, {**campaign, "generate": {"kind": "emit-diff"}})
    record = closing_record(deployed_run)
    (former,) = (row for row in before["rows"] if "bytes_up" in row)
    (row,) = (row for row in record["rows"] if "bytes_up" in row)
    assert row["bytes_up"] == former["bytes_up"] + 3 * 4_001_000
    assert row["seconds"] == pytest.approx(former["seconds"] + 27.0)
    assert record["wall_s"] == pytest.approx(before["wall_s"] + 27.0)
    assert record["rounds"] == before["rounds"]
    text = words_of(write_report(deployed_run))
    assert HEADING in text
    assert "the generator's phases included" in text
    assert "of it 12.0 MB for the generator" in text
    assert "trained an enhancer and a recogniser together in four rounds" in text
    assert "Before that, they trained a generator of images in six rounds." in text


def test_a_simulations_record_carries_its_phases(simulated_run: Path) -> None:
    record = json.loads((simulated_run / "record.json").read_text())
    record["runs"][0]["phases"] = ALL
    (simulated_run / "record.json").write_text(json.dumps(record))
    assert len(read_findings(simulated_run).runs[0].phases) == len(ALL)
    text = words_of(write_report(simulated_run))
    assert HEADING in text
    assert "of it 12.0 MB for the generator" in text


def test_a_report_in_the_middle_of_the_phases_shows_those_that_have_begun(tmp_path: Path) -> None:
    run_dir = write(tmp_path / "run", phases=("autoencoder",))
    (row,) = (row for row in closing_record(run_dir)["rows"] if row["test_site"] == "all")
    assert "autoencoder_psnr_db" in row
    assert not {"denoiser_loss", "controlnet_loss"} & row.keys()
    assert HEADING in words_of(write_report(run_dir))


@pytest.mark.parametrize("wrong", [[{"round": 1}], [1], "all", [{"round": 1, "phase": 2}]])
def test_phases_that_are_none_are_refused(wrong: object, simulated_run: Path) -> None:
    record = json.loads((simulated_run / "record.json").read_text())
    record["runs"][0]["phases"] = wrong
    (simulated_run / "record.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="has no usable"):
        write_report(simulated_run)


def test_a_damaged_line_of_a_phase_is_refused(alone: Path) -> None:
    (alone / "phases" / "denoiser" / "rounds.jsonl").write_text("{}\n" + json.dumps(rounds(1)[0]) + "\n")
    with pytest.raises(DataError, match="line 1 is not a round record"):
        write_report(alone)


def test_a_folder_without_any_round_is_refused(alone: Path) -> None:
    shutil.rmtree(alone / "phases")
    with pytest.raises(DataError, match="at least one round"):
        write_report(alone)
