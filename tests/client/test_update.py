"""A site answers approved plans of its own campaign, learns the same each time, and refuses the rest untouched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import client.update
from client.site import SiteSetup
from client.update import answer, forget
from server.app import initial_weights
from shared.config import CampaignConfig, MachineConfig, SecAggConfig, build, campaign_digest, save_campaign, to_dict
from shared.errors import DataError, RefusedError
from shared.events import SiteStep
from shared.secagg.protocol import Terms, new_session
from shared.trust.identity import create_identity
from shared.types import Arrays, Offered, Plan, SiteCard, Update
from shared.weights import architecture_digest
from simulation.bench.stores import write_random_store


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    forget()
    yield
    forget()


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    return build(CampaignConfig, to_dict(campaign))


@pytest.fixture
def setup(campaign: CampaignConfig, machine: MachineConfig, tmp_path: Path) -> SiteSetup:
    save_campaign(campaign, tmp_path / "campaign.json")
    store = write_random_store(tmp_path / "store", campaign.data, patients=6, slices=2, seed=1)
    approved = {campaign_digest(campaign): tmp_path / "campaign.json"}
    return SiteSetup("north", store, machine, approved)


def plan(campaign: CampaignConfig, weights: Arrays, action: str = "train", round: int = 1) -> Plan:
    digest = architecture_digest(weights)
    return Plan(campaign.name, action, round, campaign_digest(campaign), digest, weights)  # type: ignore[arg-type]


def test_the_handshake_shows_digests_and_counts_only(campaign: CampaignConfig, setup: SiteSetup) -> None:
    weights = initial_weights(campaign)
    card = answer(plan(campaign, {}, "handshake"), setup)
    assert isinstance(card, SiteCard)
    assert (card.site, card.config_digest) == ("north", campaign_digest(campaign))
    assert card.architecture_digest == architecture_digest(weights)
    assert card.counts["patients"] == 6


def test_an_update_is_the_difference_and_the_evaluation_of_what_came_in(
    campaign: CampaignConfig, setup: SiteSetup
) -> None:
    weights = initial_weights(campaign)
    trained = answer(plan(campaign, weights), setup)
    judged = answer(plan(campaign, weights, "evaluate"), setup)
    assert isinstance(trained, Update)
    assert isinstance(judged, Update)
    assert trained.num_samples == campaign.training.local_steps * campaign.training.batch_size
    assert list(trained.difference) == list(weights)
    assert any(np.abs(values).max() > 0 for values in trained.difference.values())
    assert {"loss_enhance", "loss_recognise"} <= trained.training.keys()
    ends = {key: value for key, value in judged.evaluation.items() if not key.startswith(("accept.", "describe."))}
    assert dict(trained.evaluation) == ends
    assert judged.evaluation["accept.gain.psnr_db"].count == 4  # with the closing evaluation alone
    assert judged.difference == {}
    assert judged.num_samples == 0
    assert {"enhanced.psnr_db", "degraded.psnr_db", "clean.dice"} <= judged.evaluation.keys()


def approving(campaign: CampaignConfig, setup: SiteSetup, folder: Path) -> SiteSetup:
    save_campaign(campaign, folder / "other.json")
    return replace(setup, approved={campaign_digest(campaign): folder / "other.json"})


@pytest.mark.parametrize("promotion", ["none", "global"])
def test_what_recognition_added_leaves_only_where_the_campaign_promotes(
    campaign: CampaignConfig, setup: SiteSetup, tmp_path: Path, promotion: Any
) -> None:
    objective = replace(campaign.objective, kind="joint")  # no gate that might be closed
    promoting = replace(campaign, objective=objective, strategy=replace(campaign.strategy, promotion=promotion))
    setup, weights = approving(promoting, setup, tmp_path), initial_weights(promoting)
    judged, trained = (answer(plan(promoting, weights, action, 2), setup) for action in ("evaluate", "train"))
    assert isinstance(judged, Update)
    assert isinstance(trained, Update)
    assert judged.added == {}
    if promotion == "none":
        assert trained.added == {}
        return
    enhancer = {name: values for name, values in weights.items() if name.startswith("enhancer.")}
    assert list(trained.added) == list(enhancer)
    assert all(values.dtype == np.float32 for values in trained.added.values())
    assert all(values.shape == enhancer[name].shape for name, values in trained.added.items())
    assert any(values.any() for values in trained.added.values())


def test_nothing_is_added_while_the_recogniser_warms_up(
    campaign: CampaignConfig, setup: SiteSetup, tmp_path: Path
) -> None:
    """Arrays of zeros, and not none: an update has the same arrays in every round."""
    strategy = replace(campaign.strategy, promotion="layer")
    warm = replace(campaign, strategy=strategy, objective=replace(campaign.objective, warmup=0.5))
    update = answer(plan(warm, initial_weights(warm)), approving(warm, setup, tmp_path))
    assert isinstance(update, Update)
    assert update.added
    assert not any(values.any() for values in update.added.values())


def test_where_recognition_drowns_the_other_loss_it_has_added_the_whole_movement(
    campaign: CampaignConfig, setup: SiteSetup, tmp_path: Path
) -> None:
    objective = replace(campaign.objective, kind="joint", warmup=0.0, task_weight=1e6, relative=False)
    steered = replace(campaign, objective=objective, strategy=replace(campaign.strategy, promotion="layer"))
    setup, weights = approving(steered, setup, tmp_path), initial_weights(steered)
    first, again = (answer(plan(steered, weights), setup) for _ in range(2))
    assert isinstance(first, Update)
    assert isinstance(again, Update)
    for name, values in first.added.items():
        assert values.tobytes() == again.added[name].tobytes()
        np.testing.assert_allclose(values, first.difference[name], atol=1e-4)
    assert any(np.abs(values).max() > 1e-3 for values in first.added.values())


def test_the_same_plan_gives_the_same_bytes_also_after_another_round(
    campaign: CampaignConfig, setup: SiteSetup
) -> None:
    """Nothing is kept between rounds but data: a site that was killed learns the same."""
    weights = initial_weights(campaign)
    first = answer(plan(campaign, weights), setup)
    answer(plan(campaign, {name: values + 1 for name, values in weights.items()}, round=2), setup)
    again = answer(plan(campaign, weights), setup)
    forget()
    anew = answer(plan(campaign, weights), setup)
    assert isinstance(first, Update)
    assert isinstance(again, Update)
    assert isinstance(anew, Update)
    for name, values in first.difference.items():
        assert values.tobytes() == again.difference[name].tobytes() == anew.difference[name].tobytes()


def test_the_data_set_is_read_once(campaign: CampaignConfig, setup: SiteSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(plan(campaign, {}, "handshake"), setup)
    monkeypatch.setattr("client.dataset.open_site", lambda *_: pytest.fail("read again"))
    answer(plan(campaign, initial_weights(campaign)), setup)


def test_steps_are_told_as_they_are_done(campaign: CampaignConfig, setup: SiteSetup) -> None:
    steps: list[SiteStep] = []
    answer(plan(campaign, initial_weights(campaign), round=2), setup, on_step=steps.append)
    assert steps == [SiteStep("north", 2, done, 4) for done in (1, 2, 3, 4)]


def test_a_campaign_that_is_not_approved_is_refused_before_any_data_is_read(
    campaign: CampaignConfig, setup: SiteSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.update, "_open", lambda *_: pytest.fail("opened"))
    with pytest.raises(RefusedError, match="is not approved at north; its operator decides: wardround-site approve"):
        answer(plan(replace(campaign, seed=9), {}, "handshake"), setup)


def test_a_campaign_file_changed_since_the_approval_is_refused(campaign: CampaignConfig, setup: SiteSetup) -> None:
    (path,) = setup.approved.values()
    save_campaign(replace(campaign, seed=9), path)
    with pytest.raises(RefusedError, match="was changed since; approve it again"):
        answer(plan(campaign, {}, "handshake"), setup)


def test_another_architecture_is_refused(campaign: CampaignConfig, setup: SiteSetup) -> None:
    weights = {**initial_weights(campaign), "enhancer.more": np.ones(1, np.float32)}
    with pytest.raises(RefusedError, match="expected architecture .* same version of Wardround"):
        answer(plan(campaign, weights), setup)


@pytest.mark.parametrize(("action", "round"), [("train", 0), ("train", 3), ("evaluate", 4)])
def test_rounds_that_the_campaign_does_not_have_are_refused(
    campaign: CampaignConfig, setup: SiteSetup, action: str, round: int
) -> None:
    with pytest.raises(RefusedError, match=f"has 2 rounds; expected 1 to ., got round {round}"):
        answer(plan(campaign, initial_weights(campaign), action, round), setup)


def test_weights_that_are_not_finite_are_refused(campaign: CampaignConfig, setup: SiteSetup) -> None:
    weights = initial_weights(campaign)
    next(iter(weights.values())).flat[0] = np.inf
    with pytest.raises(DataError, match="not finite"):
        answer(plan(campaign, weights), setup)


@pytest.mark.parametrize(("patients", "reason"), [(0, "no series"), (1, "two patients or more")])
def test_a_site_without_enough_data_says_so_without_a_path(
    campaign: CampaignConfig, setup: SiteSetup, tmp_path: Path, patients: int, reason: str
) -> None:
    store = write_random_store(tmp_path / "small", campaign.data, patients=patients, slices=2, seed=1)
    with pytest.raises(DataError, match=reason) as refused:
        answer(plan(campaign, {}, "handshake"), replace(setup, store=store))
    assert str(tmp_path) not in str(refused.value)


# ------------------------------------------------------------------------------------------------- secure aggregation


def masking(campaign: CampaignConfig, setup: SiteSetup, folder: Path) -> tuple[CampaignConfig, SiteSetup]:
    rounds = replace(campaign.rounds, quorum=3)
    masked = replace(campaign, rounds=rounds, secagg=SecAggConfig(kind="masked"))
    identities = {name: create_identity(name) for name in ("coast", "north", "valley")}
    public = {name: identity.public for name, identity in identities.items()}
    setup = replace(approving(masked, setup, folder), home=folder / "home", identity=identities["north"], peers=public)
    return masked, setup


def test_offers_and_reveals_read_no_data_and_are_bound_to_the_approved_rounds(
    campaign: CampaignConfig, setup: SiteSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked, setup = masking(campaign, setup, tmp_path)
    monkeypatch.setattr("client.dataset.open_site", lambda *_: pytest.fail("data was read"))
    terms = Terms(new_session(), campaign_digest(masked), 1, ("coast", "north", "valley"), 3)
    asked = replace(plan(masked, {}, "offer"), secagg={"terms": terms.to_json()})
    offered = answer(asked, setup)
    assert isinstance(offered, Offered)
    assert offered.offer["shares"].keys() == {"coast", "valley"}
    for action in ("offer", "unmask"):
        with pytest.raises(RefusedError, match="expected 1 to 2, got round 3"):
            answer(replace(asked, action=action, round=3), setup)  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match="is not approved at north"):
        answer(replace(asked, config_digest="0" * 64), setup)


def test_a_masked_campaign_does_not_train_without_its_session(
    campaign: CampaignConfig, setup: SiteSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked, setup = masking(campaign, setup, tmp_path)
    monkeypatch.setattr("client.train.charged.train_charged", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(RefusedError, match="names no session: nothing leaves unmasked"):
        answer(plan(masked, initial_weights(masked)), setup)


def test_a_site_that_cannot_mask_says_so_at_the_handshake(
    campaign: CampaignConfig, setup: SiteSetup, tmp_path: Path
) -> None:
    masked, able = masking(campaign, setup, tmp_path)
    assert isinstance(answer(plan(masked, {}, "handshake"), able), SiteCard)
    with pytest.raises(RefusedError, match="has no exchange key"):
        answer(plan(masked, {}, "handshake"), replace(able, identity=None))
    with pytest.raises(RefusedError, match="has pinned no other site's key"):
        answer(plan(masked, {}, "handshake"), replace(able, peers={}))
