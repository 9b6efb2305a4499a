"""The dispatcher: a known name is measured, an unknown one is answered with the list."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from simulation.bench.__main__ import BENCHES, main

CASE = {
    "bench": "x",
    "case": "n=1",
    "ours": 1.0,
    "rival": 2.0,
    "ratio": 0.5,
    "target": 1.3,
    "holds": True,
    "peak_mb": 3.0,
}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in BENCHES.values():
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(run=lambda: [CASE]))  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [["nonsense"], []])
def test_an_unknown_or_missing_name_exits_2_with_the_list(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no bench ")
    assert error.count("\n") == 1
    assert all(name in error for name in BENCHES)


def test_json_is_the_list_of_cases(measured: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["aggregate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [CASE]


def test_all_runs_every_bench(measured: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--all", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(BENCHES)


def test_the_table_shows_every_figure(measured: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate"]) == 0
    shown = capsys.readouterr().out
    assert "0.5" in shown
    assert "yes" in shown
    assert "peak_mb 3" in shown
