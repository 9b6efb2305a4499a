"""Budgets are charged before anything is computed and never passed; a sum of noised updates has the noise it needs."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client import privacy, site
from client.privacy import charge, compares, cosine, one_round, site_noised
from client.rules import SiteRules
from client.site import SiteSetup
from client.train import charged
from shared.config import CampaignConfig, MachineConfig, PrivacyConfig, SecAggConfig
from shared.errors import ConfigError, DataError, RefusedError
from shared.masking import weights_of
from shared.networks import Networks, build_networks
from shared.privacy.accountant import Steps, epsilon
from shared.privacy.ledger import LEDGER, read_ledger, spent_on
from shared.types import Arrays
from shared.weights import load_arrays, norm, to_arrays
from tests.client.slices import disc_slices


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    rounds = replace(campaign.rounds, rounds=6, retries=2)
    return replace(campaign, rounds=rounds, privacy=PrivacyConfig(kind="patient", epsilon=8.0))


def of_site(campaign: CampaignConfig, *, masked: bool = True, **changes: Any) -> CampaignConfig:
    """privacy=site with all that it needs."""
    secagg = SecAggConfig(kind="masked", range=64.0) if masked else SecAggConfig()
    return replace(
        campaign,
        privacy=PrivacyConfig(kind="site", epsilon=8.0, **changes),
        secagg=secagg,
        rounds=replace(campaign.rounds, quorum=3),
        strategy=replace(campaign.strategy, weight_by="equal"),
    )


def setup_of(home: Path, machine: MachineConfig, **changes: Any) -> SiteSetup:
    return SiteSetup("a", home / "store", machine, {}, home=home, **changes)


def arrays(value: float, count: int = 1000) -> Arrays:
    return {"enhancer.a": np.full(count, value, np.float32), "recogniser.b": np.full((2, count), value, np.float32)}


# ------------------------------------------------------------------------------------------------------------- budget


def charged_until(setup: SiteSetup, campaign: CampaignConfig, rounds: Iterable[int], reason: str) -> int:
    """How many of `rounds` were charged before one was refused for `reason`; a refusal leaves the ledger as it was."""
    assert setup.home is not None
    for done, round in enumerate(rounds):
        path = setup.home / LEDGER
        before = path.read_bytes() if path.is_file() else b""
        said = ""
        try:
            charge(setup, campaign, round, 40)
        except RefusedError as error:
            said = str(error)
        if said:
            assert reason in said
            assert path.read_bytes() == before
            return done
    raise AssertionError("nothing was refused")


def test_a_campaign_without_repetitions_has_the_same_noise_in_every_round_and_keeps_epsilon(
    campaign: CampaignConfig, tmp_path: Path, machine: MachineConfig
) -> None:
    setup = setup_of(tmp_path, machine)
    multipliers = [charge(setup, campaign, round, 40) for round in range(1, 7)]
    assert len(set(multipliers)) == 1
    charges = read_ledger(tmp_path)
    assert spent_on(charges) == privacy.spent(setup, campaign) <= 8.0
    steps = Steps(multipliers[0], 4 / 40, 6 * 4)  # rounds of four local steps
    assert spent_on(charges) == pytest.approx(epsilon([steps], 1e-5))


def test_lost_attempts_are_charged_and_the_rest_pays_with_noise(
    campaign: CampaignConfig, tmp_path: Path, machine: MachineConfig
) -> None:
    setup = setup_of(tmp_path, machine)
    first = charge(setup, campaign, 1, 40)
    later = [charge(setup, campaign, round, 40) for round in (1, 2, 2, 3, 4, 5, 6, 6)]
    assert len(read_ledger(tmp_path)) == 9
    assert later[-1] > first
    assert later[-1] < 3 * first
    assert privacy.spent(setup, campaign) <= 8.0


def test_who_asks_for_the_first_round_for_ever_gets_no_more_than_epsilon(
    campaign: CampaignConfig, tmp_path: Path, machine: MachineConfig
) -> None:
    setup = setup_of(tmp_path, machine)
    short = of_site(replace(campaign, rounds=replace(campaign.rounds, rounds=2)))
    assert 5 < charged_until(setup, short, [1] * 100, "epsilon of 8 is spent") < 20
    assert 7.0 < privacy.spent(setup, short) <= 8.0


def test_a_named_noise_multiplier_is_used_until_epsilon_is_spent_and_across_restarts(
    campaign: CampaignConfig, tmp_path: Path, machine: MachineConfig
) -> None:
    named = of_site(campaign, noise_multiplier=1.2)
    assert charge(setup_of(tmp_path, machine), named, 1, 40) == 1.2
    restarted = setup_of(tmp_path, machine)
    rounds = 1 + charged_until(restarted, named, range(2, 7), "would bring the campaign to epsilon")
    assert epsilon([Steps(1.2, 1.0, rounds)], 1e-5) <= 8.0 < epsilon([Steps(1.2, 1.0, rounds + 1)], 1e-5)
    assert len(read_ledger(tmp_path)) == rounds


def test_the_sites_own_total_stops_a_second_campaign(
    campaign: CampaignConfig, tmp_path: Path, machine: MachineConfig
) -> None:
    setup = setup_of(tmp_path, machine, rules=SiteRules(epsilon_total=9.0))
    for round in range(1, 7):
        charge(setup, campaign, round, 40)
    second = replace(campaign, name="second")
    charged_until(setup, second, range(1, 7), "its rules allow 9")
    charge(replace(setup, rules=None), second, 1, 40)  # it was the rules that stopped it


def test_nothing_is_trained_where_the_ledger_is_damaged_missing_or_spent(
    campaign: CampaignConfig, tmp_path: Path, machine: MachineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("something was computed")

    monkeypatch.setattr(charged, "train_private", never)
    monkeypatch.setattr(charged, "train_round", never)
    networks: Any = None
    setup = setup_of(tmp_path, machine)
    charge(setup, campaign, 1, 8)
    with (tmp_path / LEDGER).open("ab") as file:
        file.write(b"half a li")
    with pytest.raises(DataError, match="not whole"):
        charged.train_charged(networks, disc_slices(8), campaign, setup, round=2)
    with pytest.raises(RefusedError, match="no folder"):
        charged.train_charged(networks, disc_slices(8), campaign, replace(setup, home=None), round=2)


def test_the_charge_is_on_the_disk_before_training_begins(
    campaign: CampaignConfig, tmp_path: Path, machine: MachineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(charged, "train_private", lambda *_, **given: seen.append(len(read_ledger(tmp_path))) or given)
    networks: Any = None
    given, _, multiplier = charged.train_charged(
        networks, disc_slices(8), campaign, setup_of(tmp_path, machine), round=1
    )
    assert seen == [1]
    assert given["multiplier"] == multiplier == read_ledger(tmp_path)[0].multiplier
    assert given["compare"] is False


def test_a_delta_that_lets_one_of_the_patients_be_told_is_refused_before_anything_is_charged(
    campaign: CampaignConfig, tmp_path: Path, machine: MachineConfig
) -> None:
    wide = replace(campaign, privacy=replace(campaign.privacy, delta=1e-2))
    setup = setup_of(tmp_path, machine)
    for patients in (100, 101):
        with pytest.raises(RefusedError, match=f"delta=0.01 promises little where {patients} patients train"):
            charge(setup, wide, 1, patients)
    assert read_ledger(tmp_path) == ()
    charge(setup, wide, 1, 99)
    assert len(read_ledger(tmp_path)) == 1


def test_a_small_site_draws_everybody_and_one_without_patients_is_refused(campaign: CampaignConfig) -> None:
    assert one_round(campaign, 3, multiplier=1.0).rate == 1.0
    assert one_round(campaign, 40, multiplier=1.0) == Steps(1.0, 0.1, 4)
    with pytest.raises(DataError, match="has none"):
        one_round(campaign, 0, multiplier=1.0)


# ------------------------------------------------------------------------------------------------------ a site's update


@pytest.mark.parametrize("answering", [3, 5])
def test_a_sum_of_masked_updates_has_the_target_noise_at_least(campaign: CampaignConfig, answering: int) -> None:
    masked, multiplier, count = of_site(campaign, clip_norm=0.5), 2.0, 20_000
    updates = [site_noised(arrays(0.0, count), masked, multiplier) for _ in range(answering)]
    total = np.concatenate([np.sum([u[name].ravel() for u in updates], axis=0) for name in updates[0]])
    target = (multiplier * 0.5) ** 2
    spread = 5 * (2 / total.size) ** 0.5
    assert total.var() == pytest.approx(target * answering / 3, rel=spread)
    assert total.var() >= target * (1 - spread)
    assert abs(total.mean()) < 5 * target**0.5 * 2 / total.size**0.5


def test_a_visible_update_has_all_of_the_noise_by_itself(campaign: CampaignConfig) -> None:
    visible = of_site(campaign, masked=False)
    noised = site_noised(arrays(0.0, 20_000), visible, 2.0)
    values = np.concatenate([array.ravel() for array in noised.values()])
    assert values.var() == pytest.approx(4.0, rel=0.03)


@pytest.mark.parametrize("value", [0.001, 1.0, 1e30, float("nan"), float("inf")])
def test_a_site_adds_the_clipping_norm_at_most(campaign: CampaignConfig, value: float) -> None:
    masked, rng = of_site(campaign), torch.Generator().manual_seed(0)
    zero = site_noised(arrays(0.0), masked, 1e-9, rng=rng)
    moved = site_noised(arrays(value), masked, 1e-9, rng=rng.manual_seed(0))
    added = {name: moved[name] - zero[name] for name in zero}
    assert norm(added) <= masked.privacy.clip_norm * (1 + 1e-5)
    if value == 0.001:  # within the bound: untouched
        assert norm(added) == pytest.approx(0.001 * 3000**0.5, rel=1e-5)


def test_what_is_not_trained_stays_0_without_noise_and_no_share_of_noise_is_cut_to_the_range(
    campaign: CampaignConfig,
) -> None:
    masked = of_site(campaign)
    noised = site_noised(arrays(0.5), masked, 1.0, names=("recogniser.b",))
    assert not noised["enhancer.a"].any()
    assert noised["recogniser.b"].all()
    narrow = replace(masked, secagg=replace(masked.secagg, range=0.25))
    shares = np.concatenate([values.ravel() for values in site_noised(arrays(0.0, 20_000), narrow, 1.0).values()])
    assert float(shares.std()) == pytest.approx(1 / 3**0.5, rel=0.02)


@pytest.mark.parametrize("multiplier", [0.0, -1.0, float("nan")])
def test_an_update_that_no_noise_was_charged_for_does_not_leave(campaign: CampaignConfig, multiplier: float) -> None:
    with pytest.raises(RefusedError, match="charged no noise"):
        site_noised(arrays(0.1), of_site(campaign), multiplier)


def test_a_generator_is_not_trained_under_privacy(campaign: CampaignConfig) -> None:
    for private in (campaign, of_site(campaign)):
        with pytest.raises(ConfigError, match="choose generate=none"):
            replace(private, generate=replace(private.generate, kind="emit-diff"))


def of_hospital(
    campaign: CampaignConfig, setup: SiteSetup, monkeypatch: pytest.MonkeyPatch, trained: Callable[..., Any]
) -> tuple[dict[str, float], Arrays, Arrays]:
    """A round of privacy=site in which `trained` is what the training comes to: record, weights before and after."""
    monkeypatch.setattr(charged, "train_round", trained)
    networks = build_networks(campaign)
    before = to_arrays(networks)
    training, state, multiplier = charged.train_charged(networks, disc_slices(8), campaign, setup, round=1)
    assert state is None
    assert multiplier == training["privacy.multiplier"] == read_ledger(setup.home or Path())[-1].multiplier
    return dict(training), before, to_arrays(networks)


def test_a_sites_record_is_the_same_whatever_its_images_are_and_counts_every_site_in_every_array(
    campaign: CampaignConfig, tmp_path: Path, machine: MachineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = of_site(campaign, noise_multiplier=2.0)
    told = {
        "loss_enhance": 0.1, "gate_open_rate": 0.5, "samples": 3.0, "learning_rate": 9.0, "seconds": 2.0,
        "images.encoder": 3.0, "images.decoder": 0.0,
    }  # fmt: skip
    setup = setup_of(tmp_path, machine)
    record, _, _ = of_hospital(named, setup, monkeypatch, lambda *_, **__: (told, None))
    nothing, _, _ = of_hospital(named, setup, monkeypatch, lambda *_, **__: ({"samples": 0.0}, None))
    assert record == nothing
    parts = {"images.encoder", "images.decoder", "images.diagnosis"}
    assert record.keys() == {"samples", "learning_rate", "privacy.multiplier", *parts}
    images = {part.removeprefix("images."): int(record[part]) for part in parts}
    weights = weights_of(to_arrays(build_networks(named)), int(record["samples"]), images, named)
    assert set(weights.values()) == {1}


def test_a_site_whose_training_fails_says_so_to_nobody_and_moves_nothing(
    campaign: CampaignConfig, tmp_path: Path, machine: MachineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflows(networks: Networks, *_: Any, **__: Any) -> None:
        load_arrays(networks, {name: values + 1 for name, values in to_arrays(networks).items()})
        raise DataError("a loss or gradient is not finite")

    setup, named = setup_of(tmp_path, machine), of_site(campaign, noise_multiplier=2.0)
    failed, before, after = of_hospital(named, setup, monkeypatch, overflows)
    assert all((before[name] == values).all() for name, values in after.items())
    went_well, _, _ = of_hospital(named, setup, monkeypatch, lambda *_, **__: ({}, None))
    assert failed == went_well


# --------------------------------------------------------------------------------------------------------- a rehearsal


def test_the_true_update_is_compared_in_a_simulation_alone(tmp_path: Path, machine: MachineConfig) -> None:
    setup = setup_of(tmp_path, machine)
    assert not compares(setup)
    assert compares(replace(setup, simulation=True))
    something: Any = object()
    for deployed in ({"manifests": {"d": something}}, {"rules": SiteRules()}, {"audit": something}):
        assert not compares(replace(setup, simulation=True, **deployed))


def test_a_folder_of_a_site_makes_no_setup_that_is_a_simulation() -> None:
    calls = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(site)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "SiteSetup"
    ]
    assert calls
    assert all(keyword.arg not in ("simulation", None) for call in calls for keyword in call.keywords)
    assert all(len(call.args) < 12 for call in calls)


def test_the_cosine_of_updates() -> None:
    first = arrays(1.0)
    assert cosine(first, first) == pytest.approx(1)
    assert cosine(first, {name: -values for name, values in first.items()}) == pytest.approx(-1)
    assert cosine(first, arrays(0.0)) == 0.0
