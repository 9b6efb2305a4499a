"""A federation on one machine: the same seed gives the same bits, faults are survived, ray agrees."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.update import forget
from server.outcome import read_outcome
from server.records import read_records
from shared.config import CampaignConfig, MachineConfig, StrategyConfig, build, save_campaign, to_dict
from shared.errors import ConfigError, DataError, PeerError
from shared.events import Event, RoundFinished, SiteJoined, SiteStep
from simulation.bench.stores import write_random_store
from simulation.run import Fault, run_federation, run_inprocess, site_setups

Stores = Mapping[str, Path]
HEAVY = (
    *("monai", "matplotlib", "scipy", "hydra", "omegaconf", "ray", "pydicom"),
    *("highdicom", "skimage", "pandas", "nilearn", "sklearn", "PIL"),
)


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    return build(CampaignConfig, to_dict(campaign))


@pytest.fixture
def stores(campaign: CampaignConfig, tmp_path: Path) -> Stores:
    names = ("coast", "north", "valley")
    return {
        name: write_random_store(tmp_path / name, campaign.data, patients=4 + seed, slices=2, seed=seed)
        for seed, name in enumerate(names)
    }


def digest(weights: Mapping[str, np.ndarray]) -> bytes:
    return b"".join(values.tobytes() for values in weights.values())


def test_the_same_seed_gives_the_same_weights_bit_for_bit(
    campaign: CampaignConfig, stores: Stores, machine: MachineConfig, tmp_path: Path
) -> None:
    first = run_federation(campaign, stores, tmp_path / "one", "inprocess", machine)
    again = run_federation(campaign, dict(reversed(list(stores.items()))), tmp_path / "two", "inprocess", machine)
    other = run_federation(replace(campaign, seed=1), stores, tmp_path / "three", "inprocess", machine)
    assert digest(first.weights) == digest(again.weights)
    assert digest(first.weights) != digest(other.weights)
    assert [record["round"] for record in first.records] == [1, 2, 3]
    assert set(first.closing) == set(stores)
    assert first.closing["north"]["enhanced.psnr_db"].count > 0
    outcome = read_outcome(tmp_path / "one")
    assert outcome is not None
    assert outcome.completed


def test_progress_is_told_in_the_order_of_the_campaign(
    campaign: CampaignConfig, stores: Stores, machine: MachineConfig, tmp_path: Path
) -> None:
    events: list[Event] = []
    run_federation(campaign, stores, tmp_path / "run", "inprocess", machine, events.append)
    assert [event.site for event in events if isinstance(event, SiteJoined)] == sorted(stores)
    assert sum(isinstance(event, SiteStep) for event in events) == 2 * 3 * campaign.training.local_steps
    assert [event.round for event in events if isinstance(event, RoundFinished)] == [1, 2, 3]


@pytest.mark.parametrize(
    "strategy",
    [StrategyConfig(kind="fedprox", proximal_mu=0.1), StrategyConfig(kind="fedyogi", server_learning_rate=0.01)],
    ids=lambda strategy: strategy.kind,
)
def test_a_run_that_lost_its_coordinator_ends_with_the_weights_of_one_that_did_not(
    campaign: CampaignConfig, stores: Stores, machine: MachineConfig, tmp_path: Path, strategy: StrategyConfig
) -> None:
    campaign = replace(campaign, strategy=strategy)

    def kill(event: Event) -> None:
        if isinstance(event, SiteStep) and (event.site, event.round, event.step) == ("north", 2, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_federation(campaign, stores, tmp_path / "killed", "inprocess", machine, kill)
    assert [record["round"] for record in read_records(tmp_path / "killed")] == [1]
    resumed = run_federation(campaign, stores, tmp_path / "killed", "inprocess", machine)
    whole = run_federation(campaign, stores, tmp_path / "whole", "inprocess", machine)
    assert digest(resumed.weights) == digest(whole.weights)


@pytest.mark.parametrize("promotion", ["global", "layer", "projected"])
def test_a_federation_promotes_the_same_each_time(
    campaign: CampaignConfig, stores: Stores, machine: MachineConfig, tmp_path: Path, promotion: Any
) -> None:
    gated = replace(campaign, strategy=StrategyConfig(kind="fedavg", promotion=promotion))
    first = run_federation(gated, stores, tmp_path / "one", "inprocess", machine)
    again = run_federation(gated, stores, tmp_path / "two", "inprocess", machine)
    plain = run_federation(campaign, stores, tmp_path / "plain", "inprocess", machine)
    assert digest(first.weights) == digest(again.weights)
    assert [record.get("promotion") for record in first.records] == [r.get("promotion") for r in again.records]
    for record, without in zip(first.records[:2], plain.records[:2], strict=True):
        assert record["dropped"] == {}
        assert record["bytes_up"] > without["bytes_up"]
        seen = record["promotion"]
        assert 0 <= seen["open"] <= 1
        assert -1 <= seen["cosine"] <= 1
        assert 0 < seen["added_share"] < 1


def run_with(
    campaign: CampaignConfig, stores: Stores, machine: MachineConfig, folder: Path, faults: dict[tuple[str, int], Fault]
) -> list[Mapping[str, object]]:
    folder.mkdir()
    save_campaign(campaign, folder / "campaign.json")
    try:
        run_inprocess(site_setups(campaign, stores, folder, machine), folder, faults=faults)
    finally:
        forget()
    return read_records(folder)  # type: ignore[return-value]


def test_a_lost_and_a_failed_message_cost_one_site_one_round(
    campaign: CampaignConfig, stores: Stores, machine: MachineConfig, tmp_path: Path
) -> None:
    """Message 1 of a site is its handshake, message r + 1 its round r."""
    faults: dict[tuple[str, int], Fault] = {("coast", 2): "drop", ("valley", 3): "error"}
    records = run_with(campaign, stores, machine, tmp_path / "run", faults)
    assert records[0]["dropped"] == {"coast": "no reply within 1 s after the quorum"}
    assert records[1]["dropped"] == {"valley": "the site's program failed"}
    assert records[2]["participants"] == ["coast", "north", "valley"]


def test_a_round_that_keeps_losing_its_quorum_ends_the_run_with_an_outcome(
    campaign: CampaignConfig, stores: Stores, machine: MachineConfig, tmp_path: Path
) -> None:
    faults: dict[tuple[str, int], Fault] = {(site, n): "error" for site in ("coast", "valley") for n in (2, 3)}
    with pytest.raises(PeerError, match="round 1 failed 2 times; .* coast: the site's program failed"):
        run_with(campaign, stores, machine, tmp_path / "run", faults)
    outcome = read_outcome(tmp_path / "run")
    assert outcome is not None
    assert (outcome.completed, outcome.exit_code) == (False, 4)


def test_a_site_with_one_patient_is_left_out_or_ends_the_run_with_its_reason(
    campaign: CampaignConfig, stores: Stores, machine: MachineConfig, tmp_path: Path
) -> None:
    small = write_random_store(tmp_path / "small", campaign.data, patients=1, slices=2, seed=9)
    left_out = run_federation(campaign, {**stores, "small": small}, tmp_path / "run", "inprocess", machine)
    assert left_out.records[0]["participants"] == sorted(stores)
    needed = replace(campaign, rounds=replace(campaign.rounds, quorum=4))
    with pytest.raises(DataError, match="got 3 .* small declined: a site needs two patients or more"):
        run_federation(needed, {**stores, "small": small}, tmp_path / "needed", "inprocess", machine)


def test_a_quorum_that_can_never_be_met_is_refused_at_once(campaign: CampaignConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="round.quorum=2 can never be met by 1 sites; lower it"):
        run_federation(campaign, {"only": tmp_path}, tmp_path / "run")


def test_a_run_imports_nothing_heavy(campaign: CampaignConfig, stores: Stores, tmp_path: Path) -> None:
    """A federation of small networks must start as fast as torch does; also holds `simulate`'s bench."""
    tiny = replace(
        campaign,
        data=replace(campaign.data, masks=()),
        recognise=replace(campaign.recognise, kind="cnn", channels=8),
    )
    tiny_stores = {
        name: write_random_store(tmp_path / f"tiny-{name}", tiny.data, patients=4, slices=2, seed=1) for name in stores
    }
    save_campaign(tiny, tmp_path / "tiny.json")
    code = f"""
import sys
from pathlib import Path
from shared.config import MachineConfig, load_campaign
from simulation.run import run_federation
stores = {{name: Path(path) for name, path in {[(n, str(p)) for n, p in tiny_stores.items()]!r}}}
run_federation(load_campaign(Path({str(tmp_path / "tiny.json")!r})), stores, Path({str(tmp_path / "run")!r}),
               "inprocess", MachineConfig(device="cpu", threads=1))
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_ray_agrees_within_a_hundred_thousandth(
    campaign: CampaignConfig, stores: Stores, machine: MachineConfig, tmp_path: Path
) -> None:
    inprocess = run_federation(campaign, stores, tmp_path / "inprocess", "inprocess", machine)
    ray = run_federation(campaign, stores, tmp_path / "ray", "ray", machine)
    assert inprocess.weights.keys() == ray.weights.keys()
    for name, values in inprocess.weights.items():
        np.testing.assert_allclose(ray.weights[name], values, atol=1e-5, rtol=0)
    assert ray.records[0]["participants"] == sorted(stores)
