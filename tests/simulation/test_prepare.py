"""A kept store is one that the same rule, the same hospital and the same code would make again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import client.ingest
from shared.config import SimulationConfig, load
from shared.errors import DataError
from simulation.prepare import prepare

TINY = (
    "experiment=phantom", "sites=1", "round.quorum=1", "hospitals.slices=2", "hospitals.sites.0.patients=2",
)  # fmt: skip


def ingested_at(config: SimulationConfig, folder: Path) -> int:
    """When the only site's store was last written."""
    (site,) = prepare(config, 0, folder, lambda stage, name, done, total: None).values()
    return (site.store / "index.json").stat().st_mtime_ns


def test_a_store_is_kept_until_the_rule_or_the_code_of_ingest_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load("simulation", TINY, SimulationConfig)
    first = ingested_at(config, tmp_path / "run")
    assert ingested_at(config, tmp_path / "run") == first

    data = config.campaign.data
    wider = replace(data.ingest, intensity=replace(data.ingest.intensity, high=300.0))
    other = replace(config, campaign=replace(config.campaign, data=replace(data, ingest=wider)))
    second = ingested_at(other, tmp_path / "run")
    assert second != first

    changed = shutil.copytree(client.ingest.__path__[0], tmp_path / "ingest")
    (changed / "intensity.py").write_text((changed / "intensity.py").read_text() + "\n# another rule\n")
    monkeypatch.setattr(client.ingest, "__path__", [str(changed)])
    assert ingested_at(other, tmp_path / "run") != second


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_marker_is_told(text: str, tmp_path: Path) -> None:
    config = load("simulation", TINY, SimulationConfig)
    ingested_at(config, tmp_path)
    next(tmp_path.glob("sites/*/ingested.json")).write_text(text)
    with pytest.raises(DataError, match="remove its folder"):
        ingested_at(config, tmp_path)


def test_the_same_seed_makes_the_same_store_in_any_folder(tmp_path: Path) -> None:
    config = load("simulation", TINY, SimulationConfig)

    def stored(folder: Path, seed: int) -> bytes:
        (site,) = prepare(config, seed, folder, lambda stage, name, done, total: None).values()
        return (site.store / "index.json").read_bytes()

    assert stored(tmp_path / "a", 0) == stored(tmp_path / "b", 0)
    assert stored(tmp_path / "a", 0) != stored(tmp_path / "c", 1)
