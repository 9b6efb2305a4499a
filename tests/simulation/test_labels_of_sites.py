"""Three sites that label different things, trained for real: what each moves, what is averaged, what leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.dataset import open_site
from client.train.local import train_round
from client.update import forget
from shared.config import CampaignConfig, LabelsConfig, MachineConfig, SimulationConfig, load
from shared.networks import build_networks
from shared.weights import part_of, to_arrays
from simulation.bench.stores import write_random_store
from simulation.run import run_federation

BUDGETS = {
    "coast": LabelsConfig(diagnoses=0.0),  # masks only
    "north": LabelsConfig(masks=0),  # diagnoses only
    "valley": LabelsConfig(masks=0, diagnoses=0.0),
}


@pytest.fixture
def campaign() -> CampaignConfig:
    alone = ("enhance=none", "degrade=none", "objective=plain", "learn=multimix", "learn.mask_ssl=federated")
    small = ("data=phantom", "recognise.channels=4", "recognise.depth=2", "training.batch_size=2", "rounds=1", "seed=0")
    agreed = load("simulation", [*alone, *small, "training.local_steps=2", "learn.threshold=1.0"], SimulationConfig)
    return replace(agreed.campaign, data=replace(agreed.campaign.data, labels=BUDGETS))


@pytest.fixture
def stores(campaign: CampaignConfig, tmp_path: Path) -> Mapping[str, Path]:
    forget()
    return {
        name: write_random_store(tmp_path / name, campaign.data, patients=8 + seed, slices=2, seed=seed)
        for seed, name in enumerate(BUDGETS)
    }


def test_each_part_is_the_mean_over_the_sites_that_trained_it(
    campaign: CampaignConfig, stores: Mapping[str, Path], tmp_path: Path
) -> None:
    machine = MachineConfig(device="cpu", threads=1)
    result = run_federation(campaign, stores, tmp_path / "run", "inprocess", machine)

    first, alone, counts = to_arrays(build_networks(campaign)), {}, {}
    for name, store in stores.items():  # the slow twin: every site by itself, averaged array by array
        networks = build_networks(campaign)
        train = open_site(store, name, campaign).train
        counts[name], _ = train_round(networks, train, campaign, machine, site=name, round=1, steps=2)
        alone[name] = to_arrays(networks)
    assert {name: counts[name]["images.decoder"] > 0 for name in counts} == {
        "coast": True,
        "north": False,
        "valley": False,
    }
    assert {name: counts[name]["images.diagnosis"] > 0 for name in counts} == {
        "coast": False,
        "north": True,
        "valley": False,
    }
    for array, before in first.items():
        weights = {name: counts[name][f"images.{part_of(array)}"] for name in alone}
        total = sum(weights.values())
        moved = sum(weights[name] * (alone[name][array] - before).astype(np.float64) for name in alone)
        expected = before + (moved / total if total else 0)
        np.testing.assert_allclose(result.weights[array], expected, rtol=1e-5, atol=1e-6)
    decoder = result.weights["recogniser.mask_head.weight"] - first["recogniser.mask_head.weight"]
    np.testing.assert_allclose(
        decoder, alone["coast"]["recogniser.mask_head.weight"] - first["recogniser.mask_head.weight"], atol=1e-6
    )
    assert result.records[0]["images"]["north"]["decoder"] == 0


def test_the_mean_map_is_that_of_sites_with_masks_and_a_site_without_uses_it_in_the_next_round(
    campaign: CampaignConfig, stores: Mapping[str, Path], tmp_path: Path
) -> None:
    machine = MachineConfig(device="cpu", threads=1)
    longer = replace(campaign, rounds=replace(campaign.rounds, rounds=2))
    result = run_federation(longer, stores, tmp_path / "run", "inprocess", machine)
    np.testing.assert_allclose(result.weights["prior.map_KHW"].sum(0), 1, atol=1e-5)
    decoders = [record["images"]["valley"]["decoder"] for record in result.records if record["training"]]
    assert decoders[0] == 0
    assert decoders[1] > 0
    assert [record["images"]["valley"]["prior"] for record in result.records if record["training"]] == [0, 0]
