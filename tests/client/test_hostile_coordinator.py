"""A coordinator that sends what a generator's phase must not get: refused in words, and nothing of it is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from client.generate.arrived import arrived
from client.generators import generator_folder, keep
from client.site import SiteSetup
from client.update import answer, forget
from server.app import initial_weights
from shared.config import (
    AugmentConfig,
    CampaignConfig,
    DegradeConfig,
    DrawConfig,
    EnhancerConfig,
    GenerateConfig,
    MachineConfig,
    ObjectiveConfig,
    Phase,
    PhaseConfig,
    build,
    campaign_digest,
    save_campaign,
    to_dict,
)
from shared.errors import DataError, RefusedError
from shared.generate.networks import TRAINED, Generator, build_generator, frozen_parts, parts_arrays
from shared.types import Action, Arrays, Plan, SiteCard, Update
from shared.weights import architecture_digest, arrays_digest
from simulation.bench.stores import write_random_store

LENGTH = PhaseConfig(rounds=1, local_steps=1, batch_size=2)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    forget()
    yield
    forget()


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    draw = DrawConfig(variants=1, steps=1, memorised_share=1.0)
    generate = GenerateConfig(kind="emit-diff", autoencoder=LENGTH, denoiser=LENGTH, controlnet=LENGTH, draw=draw)
    generating = replace(
        campaign,
        degrade=DegradeConfig(kind="none"),
        enhance=EnhancerConfig(kind="none"),
        objective=ObjectiveConfig(kind="plain"),
        generate=generate,
        augment=AugmentConfig(kind="emit-diff", cell_px=8),
    )
    return build(CampaignConfig, to_dict(generating))


@pytest.fixture
def generator(campaign: CampaignConfig) -> Generator:
    return build_generator(campaign)


@pytest.fixture
def setup(campaign: CampaignConfig, machine: MachineConfig, tmp_path: Path) -> SiteSetup:
    save_campaign(campaign, tmp_path / "campaign.json")
    store = write_random_store(tmp_path / "store", campaign.data, patients=6, slices=2, seed=1)
    return SiteSetup("north", store, machine, {campaign_digest(campaign): tmp_path / "campaign.json"})


def handshake(campaign: CampaignConfig, phase: Phase, frozen: Arrays) -> Plan:
    digest = campaign_digest(campaign.in_phase(phase))
    return Plan(campaign.name, "handshake", 1, digest, "0" * 64, frozen, arrays_digest(frozen))


def in_phase(campaign: CampaignConfig, phase: Phase, weights: Arrays, frozen: str, action: Action = "train") -> Plan:
    digest = campaign_digest(campaign.in_phase(phase))
    return Plan(campaign.name, action, 1, digest, architecture_digest(weights), weights, frozen)


def _first(arrays: Arrays) -> str:
    return next(name for name in arrays if name != "latents.scale")


def _scaled(value: float) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {**arrays, "latents.scale": np.array([value], np.float32)}


BROKEN: dict[str, Callable[[Arrays], Arrays]] = {
    "lack": lambda arrays: {name: values for name, values in arrays.items() if name != _first(arrays)},
    "does not have": lambda arrays: {**arrays, "../../up.weight": np.ones(1, np.float32)},
    "not finite": lambda arrays: {**arrays, _first(arrays): np.full_like(arrays[_first(arrays)], np.nan)},
    "must be 1e-06": _scaled(0.0),
    "to 1e": _scaled(3e38),
    "must be": _scaled(1e-30),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_of_a_handshake_that_is_refused_nothing_is_kept(
    reason: str, campaign: CampaignConfig, generator: Generator, setup: SiteSetup
) -> None:
    frozen = BROKEN[reason](parts_arrays(generator, frozen_parts(generator, "denoiser")))
    with pytest.raises(DataError, match=reason):
        answer(handshake(campaign, "denoiser", frozen), setup)
    assert not setup.generators.exists()


def test_a_plan_that_names_no_phase_is_refused(campaign: CampaignConfig, setup: SiteSetup) -> None:
    alone = replace(campaign, augment=AugmentConfig())
    save_campaign(alone, setup.store.parent / "alone.json")
    approving = replace(setup, approved={campaign_digest(alone): setup.store.parent / "alone.json"})
    weights = initial_weights(alone)
    digest = architecture_digest(weights)
    whole = Plan(alone.name, "train", 1, campaign_digest(alone), digest, weights)
    with pytest.raises(RefusedError, match="names none"):
        answer(whole, approving)


def test_a_generator_whose_images_are_not_finite_is_refused_in_words(
    campaign: CampaignConfig, generator: Generator, setup: SiteSetup
) -> None:
    frozen = parts_arrays(generator, frozen_parts(generator, "train"))
    kernels = {name: np.full_like(values, 1e30) for name, values in frozen.items() if name.startswith("denoiser.out")}
    overflowing = {**frozen, **kernels}
    assert isinstance(answer(handshake(campaign, "train", overflowing), setup), SiteCard)
    with pytest.raises(DataError, match="not finite"):
        answer(in_phase(campaign, "train", initial_weights(campaign), arrays_digest(overflowing)), setup)
    assert not list(setup.store.parent.glob("store-synthetic/*/*.npy"))


@pytest.mark.parametrize("kind", ["bfloat16", "float8_e4m3fn"])
def test_what_is_kept_and_is_no_network_of_ours_has_to_come_again(
    kind: str, campaign: CampaignConfig, generator: Generator, setup: SiteSetup
) -> None:
    frozen = parts_arrays(generator, frozen_parts(generator, "denoiser"))
    answer(handshake(campaign, "denoiser", frozen), setup)
    path = generator_folder(setup.generators, campaign) / "autoencoder.safetensors"
    save_file({"autoencoder.x": torch.ones(1).to(getattr(torch, kind))}, path)
    plan = in_phase(campaign, "denoiser", parts_arrays(generator, TRAINED["denoiser"]), arrays_digest(frozen))
    with pytest.raises(DataError, match="comes with the campaign's next"):
        answer(plan, setup)


def test_a_disk_that_does_not_take_the_networks_is_said_without_a_path(
    campaign: CampaignConfig, generator: Generator, setup: SiteSetup
) -> None:
    frozen = parts_arrays(generator, frozen_parts(generator, "denoiser"))
    setup.generators.mkdir()
    generator_folder(setup.generators, campaign).write_bytes(b"")
    with pytest.raises(DataError, match="cannot be kept") as found:
        answer(handshake(campaign, "denoiser", frozen), setup)
    assert str(setup.store.parent) not in str(found.value)


def test_what_a_killed_program_left_of_a_network_is_no_network(
    campaign: CampaignConfig, generator: Generator, setup: SiteSetup
) -> None:
    folder = generator_folder(setup.generators, campaign)
    keep(folder, campaign, parts_arrays(generator, ("autoencoder",)))
    (size,) = [one.size_bytes for one in arrived(setup.generators)]
    (folder / ".partial-1-denoiser.safetensors").write_bytes(b"half")
    (folder / ".partial-1-campaign.json").write_bytes(b"{")
    (found,) = arrived(setup.generators)
    assert found.size_bytes == size
    assert "denoiser" in found.missing


def test_a_site_reads_no_file_that_the_coordinator_starts_from(
    campaign: CampaignConfig, generator: Generator, setup: SiteSetup, tmp_path: Path
) -> None:
    elsewhere = replace(campaign, generate=replace(campaign.generate, start=str(tmp_path / "none.safetensors")))
    save_campaign(elsewhere, tmp_path / "campaign.json")
    frozen = parts_arrays(generator, frozen_parts(generator, "denoiser"))
    assert isinstance(answer(handshake(elsewhere, "denoiser", frozen), setup), SiteCard)
    weights = parts_arrays(generator, TRAINED["denoiser"])
    assert isinstance(answer(in_phase(elsewhere, "denoiser", weights, arrays_digest(frozen)), setup), Update)
