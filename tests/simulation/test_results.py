"""A page of results says what report.json says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulation.results import main

ROW = {
    "method": "gradprom", "setting": "federated", "seed": 0, "data": "mni", "degradation": "gaussian",
    "split": "test", "site": "all", "test_site": "all", "n": 4,
}  # fmt: skip


def report() -> dict[str, object]:
    return {
        "experiment": "demo",
        "seeds": [0, 1],
        "config_digest": "abc",
        "versions": {"torch": "2"},
        "wall_s": 61.0,
        "rows": [ROW | {"psnr_db": 27.0}, ROW | {"seed": 1, "psnr_db": 28.0}, ROW | {"site": "north", "psnr_db": 1.0}],
        "claims": [{"claim": "it helps", "value": -0.5, "target": 0.0, "holds": False, "reason": "too short"}],
    }


def test_means_over_seeds_and_a_claim_that_does_not_hold(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report()))
    assert main(["--out", str(tmp_path / "docs" / "page.md"), str(tmp_path)]) == 0
    text = (tmp_path / "docs" / "page.md").read_text()
    assert "| gradprom | federated | 27.50 |" in text
    assert "| it helps | -0.500 | +0.000 | **no**: too short |" in text


def test_a_folder_without_a_report_is_bad_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "page.md"), str(tmp_path)]) == 5
    assert "finished run" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()
