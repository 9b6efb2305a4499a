"""The bench's two sides are the same work, and what it measures of a process is what that process used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from shared.errors import PeerError
from shared.networks import build_networks
from simulation.bench import simulate


def test_the_networks_are_the_tiny_ones() -> None:
    networks = build_networks(simulate.campaign())
    assert sum(parameter.numel() for parameter in networks.recogniser.parameters()) == 1282
    assert simulate.PATIENTS * simulate.SLICES == 64
    assert simulate.campaign().training.batch_size == 16


def stand_in(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    plain = psutil.Popen
    monkeypatch.setattr(psutil, "Popen", lambda command, **more: plain([sys.executable, "-c", code], **more))


def test_memory_is_summed_over_children_and_nothing_is_left_running(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child = "import time; x = bytearray(60_000_000); time.sleep(60)"
    stand_in(
        monkeypatch,
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); "
        "y = bytearray(40_000_000); time.sleep(2)",
    )
    before = set(psutil.Process().children(recursive=True))  # an earlier test's decoder of pixels
    seconds, peak = simulate.measured("inprocess", tmp_path, 0)
    assert 2 <= seconds < 30
    assert 100 <= peak < 180
    assert not set(psutil.Process().children(recursive=True)) - before


def test_a_side_that_fails_is_an_error_with_its_last_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, "raise SystemExit('no stores here')")
    with pytest.raises(PeerError, match="the flower side ended with 1: no stores here"):
        simulate.measured("flower", tmp_path, 0)


@pytest.mark.slow
def test_it_measures_both_sides() -> None:
    command = [sys.executable, "-m", "simulation.bench", "simulate", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert '"memory_ratio"' in done.stdout
