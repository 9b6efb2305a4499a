"""A federation that trains a generator, draws with it and trains with what was drawn, on the very apps of a site."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import update
from client.generators import generator_folder, kept_generator
from client.update import forget
from server.records import read_records
from shared.config import (
    AugmentConfig,
    CampaignConfig,
    DegradeConfig,
    DrawConfig,
    EnhancerConfig,
    GenerateConfig,
    MachineConfig,
    ObjectiveConfig,
    PhaseConfig,
    build,
    save_campaign,
    to_dict,
)
from shared.errors import DataError, PeerError
from shared.generate.networks import TRAINED, parts_arrays
from simulation.run import FederationResult, run_federation, run_inprocess, site_setups

Stores = Mapping[str, Path]
LENGTH = PhaseConfig(rounds=2, local_steps=2, batch_size=2)


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    """As it is read from a file."""
    return build(CampaignConfig, to_dict(campaign))


@pytest.fixture
def generating(campaign: CampaignConfig) -> CampaignConfig:
    """Two rounds of two steps in each phase, then two of a recogniser that sees one drawn image per slice."""
    generate = GenerateConfig(
        kind="emit-diff",
        autoencoder=LENGTH,
        denoiser=LENGTH,
        controlnet=LENGTH,
        draw=DrawConfig(variants=1, steps=1, memorised_share=1.0),
    )
    return replace(
        campaign,
        degrade=DegradeConfig(kind="none"),
        enhance=EnhancerConfig(kind="none"),
        objective=ObjectiveConfig(kind="plain"),
        generate=generate,
        augment=AugmentConfig(kind="emit-diff", cell_px=8),
    )


def run(campaign: CampaignConfig, stores: Stores, place: Path, machine: MachineConfig) -> FederationResult:
    return run_federation(campaign, stores, place, "inprocess", machine)


def same(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_all_phases_run_only_what_each_trains_travels_and_sites_end_with_the_generator(
    generating: CampaignConfig, stores: Stores, machine: MachineConfig, tmp_path: Path
) -> None:
    place = tmp_path / "run"
    result = run(generating, stores, place, machine)
    phases = list(dict.fromkeys(record["phase"] for record in result.records))
    assert phases == ["autoencoder", "denoiser", "controlnet", "train"]
    assert all(record["participants"] == sorted(stores) for record in result.records)
    own: dict[str, int] = {}
    for phase, parts in TRAINED.items():
        own[phase] = sum(values.nbytes for name, values in result.weights.items() if name.partition(".")[0] in parts)
    for record in result.records:
        if record["phase"] in own and record["training"]:
            assert record["bytes_up"] == pytest.approx(len(stores) * own[record["phase"]], rel=0.1)
    assert [record["round"] for record in read_records(place)] == [1, 2, 3]
    for site, setup in zip(sorted(stores), site_setups(generating, stores, place, machine), strict=True):
        generator = kept_generator(setup.generators, generating)
        arrays = parts_arrays(generator, generator.all)
        assert same(arrays, {name: result.weights[name] for name in arrays}), site
    assert float(result.weights["latents.scale"][0]) != 1.0


def test_a_run_lost_in_a_phase_ends_with_the_weights_of_one_that_was_not(
    generating: CampaignConfig, stores: Stores, machine: MachineConfig, tmp_path: Path
) -> None:
    strict = replace(generating, rounds=replace(generating.rounds, quorum=len(stores), retries=0))
    whole = run(strict, stores, tmp_path / "whole", machine)
    others = {site: Path(shutil.copytree(store, tmp_path / "again" / site)) for site, store in stores.items()}
    lost = tmp_path / "lost"
    lost.mkdir()
    save_campaign(strict, lost / "campaign.json")
    setups = site_setups(strict, others, lost, machine)
    first = setups[0].name
    # Each phase asks a site for a card, two rounds and a judgement: its 7th message is round 2 of the denoiser's.
    with pytest.raises(PeerError):
        run_inprocess(setups, lost, faults={(first, 7): "drop"})
    forget()
    resumed = run(strict, others, lost, machine)
    assert same(whole.weights, resumed.weights)


def test_a_site_that_lost_its_generator_is_given_it_again(
    generating: CampaignConfig,
    stores: Stores,
    machine: MachineConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = replace(generating, augment=AugmentConfig())
    loaded = update.load_frozen
    lost: list[str] = []

    def losing(generator: Any, plan: Any, generators: Path, agreed: Any, phase: Any) -> None:
        if phase == "denoiser" and plan.round == 1 and not lost:
            (generator_folder(generators, agreed) / "autoencoder.safetensors").unlink()
            lost.append(generators.name)
        loaded(generator, plan, generators, agreed, phase)

    monkeypatch.setattr(update, "load_frozen", losing)
    quorum = replace(alone, rounds=replace(alone.rounds, quorum=1))
    result = run(quorum, stores, tmp_path / "run", machine)
    denoiser = [record for record in result.records if record["phase"] == "denoiser"]
    assert len(denoiser[0]["participants"]) == len(stores) - 1
    assert "not at this site" in next(iter(denoiser[0]["dropped"].values()))
    assert denoiser[1]["participants"] == sorted(stores)


def test_a_generator_that_did_not_finish_cannot_be_taken_for_one(
    generating: CampaignConfig, stores: Stores, machine: MachineConfig, tmp_path: Path
) -> None:
    short = replace(generating, augment=AugmentConfig())
    setup = site_setups(short, stores, tmp_path, machine)[0]
    with pytest.raises(DataError, match="not at this site"):
        kept_generator(setup.generators, short)
