"""Masked rounds on the very apps: the result of visible ones, whoever drops out when, and no single update in sight."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

import server.collect
import simulation.run
from client.update import forget
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
    SecAggConfig,
    StrategyConfig,
    build,
    save_campaign,
    to_dict,
)
from shared.masking import grid_of
from shared.secagg.fixed_point import quantise, unpack
from shared.types import Arrays
from shared.wire.flower import to_record
from shared.wire.messages import MASKED, Record
from simulation.bench.stores import write_random_store
from simulation.run import Fault, InProcessGrid, run_inprocess, site_setups

Stores = Mapping[str, Path]
Faults = dict[tuple[str, int], Fault]
THREE, FOUR = ("coast", "north", "valley"), ("coast", "hill", "north", "valley")
EPS = float(np.finfo(np.float32).eps)


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    """One round, of three sites or more."""
    rounds = replace(campaign.rounds, rounds=1, quorum=3)
    return build(CampaignConfig, to_dict(replace(campaign, rounds=rounds)))


@pytest.fixture
def stores(campaign: CampaignConfig, tmp_path: Path) -> Stores:
    return {
        name: write_random_store(tmp_path / "stores" / name, campaign.data, patients=4 + seed, slices=2, seed=seed)
        for seed, name in enumerate(FOUR)
    }


def masked(campaign: CampaignConfig, **more: Any) -> CampaignConfig:
    return replace(campaign, secagg=SecAggConfig(kind="masked", **more))


def run(
    campaign: CampaignConfig, stores: Stores, folder: Path, machine: MachineConfig, faults: Faults | None = None
) -> tuple[Arrays, list[Any]]:
    folder.mkdir(exist_ok=True)
    save_campaign(campaign, folder / "campaign.json")
    try:
        result = run_inprocess(site_setups(campaign, stores, folder, machine), folder, faults=faults)
    finally:
        forget()
    return result.state.weights, list(result.records)


def only(stores: Stores, names: Iterable[str]) -> Stores:
    return {name: stores[name] for name in names}


def assert_one_round_apart_by_a_step(masked_weights: Arrays, weights: Arrays, step: float) -> None:
    for name, values in weights.items():
        # Half a step of the mean, and the rounding of float32 that both sums end in.
        slack = 0.5 * step + 4 * EPS * np.maximum(np.abs(values), 1e-3)
        assert (np.abs(masked_weights[name] - values) <= slack).all(), name


# -------------------------------------------------------------------------------------------------------- same result


def test_a_masked_round_gives_the_weights_of_a_visible_one_within_a_step(
    campaign: CampaignConfig, stores: Stores, machine: MachineConfig, tmp_path: Path
) -> None:
    plain, visible = run(campaign, stores, tmp_path / "visible", machine)
    weights, records = run(masked(campaign), stores, tmp_path / "masked", machine)
    step = grid_of(masked(campaign), 4).step
    assert_one_round_apart_by_a_step(weights, plain, step)
    first, closing = records
    assert first["secagg"] == {"sites": 4, "offered": 4, "revealed": 4, "step": step}
    assert step < 1e-8
    assert "secagg" not in closing
    for key in ("participants", "num_samples", "images", "evaluation"):
        assert first[key] == visible[0][key]
    size = sum(values.size for values in weights.values())
    assert first["bytes_up"] > 4 * 5 * size
    assert "sites_updates" in visible[0]
    assert "sites_updates" not in first


def test_promotion_sees_the_two_means_and_no_part_of_one_site(
    campaign: CampaignConfig, stores: Stores, machine: MachineConfig, tmp_path: Path
) -> None:
    campaign = replace(campaign, strategy=StrategyConfig(kind="fedavg", promotion="projected"))
    plain, visible = run(campaign, stores, tmp_path / "visible", machine)
    weights, records = run(masked(campaign), stores, tmp_path / "masked", machine)
    for name, values in plain.items():  # visible parts are sent in 16 bits, masked ones are finer
        np.testing.assert_allclose(weights[name], values, atol=1e-5)
    assert records[0]["promotion"]["cosine"] == pytest.approx(visible[0]["promotion"]["cosine"], abs=1e-3)
    assert records[0]["promotion"]["added_share"] > 0


@pytest.mark.slow
def test_every_phase_of_a_generator_is_masked_and_ends_as_a_visible_one(
    campaign: CampaignConfig, stores: Stores, machine: MachineConfig, tmp_path: Path
) -> None:
    length = PhaseConfig(rounds=1, local_steps=2, batch_size=2)
    generating = replace(
        campaign,
        degrade=DegradeConfig(kind="none"),
        enhance=EnhancerConfig(kind="none"),
        objective=ObjectiveConfig(kind="plain"),
        generate=GenerateConfig(
            kind="emit-diff", autoencoder=length, denoiser=length, controlnet=length, draw=DrawConfig(steps=1)
        ),
        augment=AugmentConfig(),
    )
    sites = only(stores, THREE)
    plain, _ = run(generating, sites, tmp_path / "visible", machine)
    weights, records = run(masked(generating), sites, tmp_path / "masked", machine)
    phases = [record["phase"] for record in records if "secagg" in record]
    assert phases == ["autoencoder", "denoiser", "controlnet"]
    for name, values in plain.items():
        np.testing.assert_allclose(weights[name], values, atol=1e-5)


def test_an_honest_site_keeps_within_the_norm_bound_itself(
    campaign: CampaignConfig, stores: Stores, machine: MachineConfig, tmp_path: Path
) -> None:
    bound = 1e-3
    bounded = replace(campaign, strategy=StrategyConfig(kind="fedavg", norm_bound=bound, weight_by="equal"))
    _, visible = run(bounded, stores, tmp_path / "visible", machine)
    assert visible[0]["dropped"] == {}
    for seen in visible[0]["sites_updates"].values():
        assert seen["norm"] == pytest.approx(bound, rel=1e-4)
    _, records = run(masked(bounded), stores, tmp_path / "masked", machine)
    assert records[0]["update_norm"] <= bound * (1 + 1e-4)


# ---------------------------------------------------------------------------------------------------------- drop-outs

# Messages of a site: 1 handshake, 2 offer, 3 train, 4 unmask. Where one does not offer, 3 is the others' second offer.


@pytest.mark.parametrize(
    ("message", "counted", "offered", "revealed"), [(2, 3, 3, 3), (3, 3, 4, 3), (4, 4, 4, 3)],
    ids=["offer", "train", "unmask"],
)  # fmt: skip
def test_a_round_goes_on_without_a_site_that_is_lost_at_any_stage(
    campaign: CampaignConfig,
    stores: Stores,
    machine: MachineConfig,
    tmp_path: Path,
    message: int,
    counted: int,
    offered: int,
    revealed: int,
) -> None:
    """The oracle is a visible round over the sites whose update is in the sum."""
    without: Faults = {("hill", 2): "drop"} if counted == 3 else {}
    plain, _ = run(campaign, stores, tmp_path / "visible", machine, without)
    weights, records = run(masked(campaign), stores, tmp_path / "masked", machine, {("hill", message): "drop"})
    step = records[0]["secagg"]["step"]
    assert_one_round_apart_by_a_step(weights, plain, step)
    assert records[0]["secagg"] == {"sites": counted, "offered": offered, "revealed": revealed, "step": step}
    assert sorted(records[0]["num_samples"]) == sorted(FOUR if counted == 4 else THREE)
    assert list(records[0]["dropped"]) == ([] if counted == 4 else ["hill"])


@pytest.mark.parametrize("message", [2, 3, 4], ids=["offer", "train", "unmask"])
def test_a_cohort_of_three_that_loses_one_opens_nothing_and_tries_again_in_a_new_session(
    campaign: CampaignConfig, stores: Stores, machine: MachineConfig, tmp_path: Path, message: int
) -> None:
    sites = only(stores, THREE)
    plain, _ = run(campaign, sites, tmp_path / "visible", machine)
    weights, records = run(masked(campaign), sites, tmp_path / "masked", machine, {("north", message): "error"})
    assert_one_round_apart_by_a_step(weights, plain, records[0]["secagg"]["step"])
    assert records[0]["secagg"]["sites"] == 3
    assert records[0]["participants"] == list(THREE)


@pytest.mark.slow
def test_a_resumed_masked_run_ends_with_the_weights_of_one_that_was_never_killed(
    campaign: CampaignConfig, stores: Stores, machine: MachineConfig, tmp_path: Path
) -> None:
    two = masked(replace(campaign, rounds=replace(campaign.rounds, rounds=2)))

    def kill(reply: Message) -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # in the second round, when two have trained
        run(two, stores, tmp_path / "killed", machine, {("north", 6): kill})
    resumed, _ = run(two, stores, tmp_path / "killed", machine)
    whole, _ = run(two, stores, tmp_path / "whole", machine)
    assert all(np.array_equal(resumed[name], values) for name, values in whole.items())


# ---------------------------------------------------------------------------------------- what the coordinator can see


class Watched(InProcessGrid):
    """Everything that reaches the coordinator, byte for byte."""

    seen: list[tuple[str, Record]]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            if not reply.has_error():
                self.seen.append((self._names[reply.metadata.src_node_id], to_record(reply.content)))
        return replies


def test_nothing_that_the_coordinator_receives_holds_a_single_update(
    campaign: CampaignConfig, stores: Stores, machine: MachineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import client.protect

    true: dict[str, np.ndarray] = {}
    Watched.seen = []
    whole = client.protect._masked

    def overheard(update: Any, plan: Any, setup: Any, agreed: Any) -> Record:
        from shared.masking import weights_of

        weights = weights_of(update.difference, update.num_samples, update.images, agreed)
        true[setup.name] = quantise(update.difference, weights, grid_of(agreed, len(FOUR)))
        return whole(update, plan, setup, agreed)

    monkeypatch.setattr(client.protect, "_masked", overheard)
    monkeypatch.setattr(simulation.run, "InProcessGrid", Watched)
    monkeypatch.setattr(server.collect, "decode_array", lambda *_: pytest.fail("an update was decoded"))
    run(masked(campaign), stores, tmp_path / "run", machine)

    assert true.keys() == set(FOUR)
    vectors = {}
    for site, record in Watched.seen:
        header = json.loads(record.header)
        if header["kind"] != "masked":
            assert record.arrays == {}, "arrays come masked or not at all"
            continue
        assert list(record.arrays) == [MASKED]
        vectors[site] = unpack(record.arrays[MASKED], true[site].size)
    assert vectors.keys() == set(FOUR)
    for subset in (1, 2, 3):  # of one site, of two, of three: still under masks that the others took away
        for first in range(4 - subset + 1):
            names = FOUR[first : first + subset]
            seen = sum(vectors[name].astype(object) for name in names) % 2**40
            meant = sum(true[name].astype(object) for name in names) % 2**40
            distance = (seen - meant).astype(np.float64) % 2**40 / 2**40
            assert np.unique(distance).size > 0.99 * distance.size, "no constant offset"
            assert np.quantile(distance, (0.25, 0.5, 0.75)) == pytest.approx((0.25, 0.5, 0.75), abs=0.05)

    reveals = [json.loads(record.header)["reveal"] for _, record in Watched.seen if b'"kind":"reveal"' in record.header]
    assert len(reveals) == 4
    assert all(reveal["key_shares"] == {} for reveal in reveals), "nobody was lost: no mask key is asked for"
    everything = b"".join(record.header for _, record in Watched.seen)
    sessions = [path.read_text() for path in (tmp_path / "run" / "sites").rglob("*.session")]
    assert sessions == [], "secrets of a session are gone when it is over"
    assert b"PRIVATE" not in everything


def test_what_a_site_keeps_of_a_session_is_for_its_owner_alone(
    campaign: CampaignConfig, stores: Stores, machine: MachineConfig, tmp_path: Path
) -> None:
    run(masked(campaign), stores, tmp_path / "run", machine, {("hill", 3): "drop"})
    homes = tmp_path / "run" / "sites"
    assert sorted(path.name for path in homes.iterdir()) == list(FOUR)
    for path in (homes, *homes.iterdir(), *homes.rglob("secagg")):
        assert path.stat().st_mode & 0o777 == 0o700
    files = [path for path in homes.rglob("*") if path.is_file() and path.suffix != ".pub"]
    assert files
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)
    left = list(homes.rglob("*.session"))
    assert [path.parent.parent.name for path in left] == ["hill"], "who was lost before the end has its secrets yet"
