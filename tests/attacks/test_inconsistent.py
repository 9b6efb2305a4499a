"""A coordinator, with all its keys, that sends sites different weights, or one round again and again with others.

Sites whose networks arrive dead send an update that is known beforehand, and the sum under the masks is then the update
of the one site that got live ones: its sites must all sign the same weights. And the number of rounds that an operator
approved must count sets of weights, not numbers in messages. Both are refused at the site, before anything is computed.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import protect
from client.asked import FOLDER, MOST_STARTS, note_start
from client.rules import SiteRules
from client.site import SiteSetup
from client.update import answer, forget
from server.app import initial_weights
from shared.config import CampaignConfig, MachineConfig, SecAggConfig, build, campaign_digest, save_campaign, to_dict
from shared.errors import DataError, RefusedError
from shared.masking import start_digest
from shared.secagg.protocol import Terms, new_session
from shared.trust.identity import create_identity
from shared.types import Arrays, Plan, Update
from shared.weights import architecture_digest
from simulation.bench.stores import write_random_store

NAMES = ("coast", "north", "valley")


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    masked = replace(campaign, secagg=SecAggConfig(kind="masked"), rounds=replace(campaign.rounds, quorum=3))
    return build(CampaignConfig, to_dict(masked))


@pytest.fixture
def sites(campaign: CampaignConfig, machine: MachineConfig, tmp_path: Path) -> Iterator[dict[str, SiteSetup]]:
    identities = {name: create_identity(name) for name in NAMES}
    public = {name: identity.public for name, identity in identities.items()}
    save_campaign(campaign, tmp_path / "campaign.json")
    approved = {campaign_digest(campaign): tmp_path / "campaign.json"}
    yield {
        name: SiteSetup(
            name,
            write_random_store(tmp_path / name / "store", campaign.data, patients=6, slices=1, seed=seed),
            machine,
            approved,
            home=tmp_path / name,
            identity=identities[name],
            peers=public,
            rules=SiteRules(),
        )
        for seed, name in enumerate(NAMES)
    }
    forget()


class Coordinator:
    """Asks every site for the round in which it trains from `weights`."""

    def __init__(self, campaign: CampaignConfig, weights: Arrays, *, names: str) -> None:
        self.campaign, self.weights, digest = campaign, weights, campaign_digest(campaign)
        self.terms = Terms(new_session(), digest, 1, NAMES, 3, names)
        self.offers: dict[str, Any] = {}

    def plan(self, action: Any, weights: Arrays, **secagg: Any) -> Plan:
        digest, architecture = campaign_digest(self.campaign), architecture_digest(self.weights)
        terms = {"terms": self.terms.to_json(), **secagg}
        return Plan(self.campaign.name, action, 1, digest, architecture, weights, secagg=terms)

    def ask_offers(self, sites: dict[str, SiteSetup]) -> None:
        for name, setup in sites.items():
            self.offers[name] = dict(protect.offered(self.plan("offer", {}), setup, self.campaign).offer)

    def train(self, setup: SiteSetup, weights: Arrays) -> Any:
        return answer(self.plan("train", weights, offers=self.offers), setup)


def kept(setup: SiteSetup) -> dict[str, bytes]:
    assert setup.home is not None
    files = (path for path in setup.home.rglob("*") if path.is_file() and "lock" not in path.name)
    return {str(path): path.read_bytes() for path in files}


def dead(weights: Arrays) -> Arrays:
    return {name: np.zeros_like(values) for name, values in weights.items()}


def test_sites_that_are_sent_other_weights_than_all_signed_send_nothing(
    campaign: CampaignConfig, sites: dict[str, SiteSetup], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = initial_weights(campaign)
    asking = Coordinator(campaign, live, names=start_digest(live, ""))
    asking.ask_offers(sites)
    assert isinstance(asking.train(sites["north"], live), Update)
    monkeypatch.setattr("client.train.charged.train_charged", lambda *_, **__: pytest.fail("trained"))
    for name in ("coast", "valley"):
        before = kept(sites[name])
        with pytest.raises(RefusedError, match="is for other weights than the plan brings"):
            asking.train(sites[name], dead(live))
        assert kept(sites[name]) == before


def test_offers_for_other_weights_are_offers_for_other_terms(
    campaign: CampaignConfig, sites: dict[str, SiteSetup]
) -> None:
    """Two sites that sign two digests do not mask together: an offer holds for the terms that it was made for."""
    live = initial_weights(campaign)
    asking = Coordinator(campaign, live, names=start_digest(live, ""))
    lying = Coordinator(campaign, live, names=start_digest(dead(live), ""))
    lying.terms = replace(lying.terms, session=asking.terms.session)
    asking.ask_offers({"north": sites["north"]})
    lying.ask_offers({name: sites[name] for name in ("coast", "valley")})
    asking.offers |= lying.offers
    plan = asking.plan("train", live, offers=asking.offers)
    update = asking.train(sites["north"], live)
    before = kept(sites["north"])
    with pytest.raises(RefusedError, match="the offer of coast is for another session or other terms"):
        protect.protected(update, plan, sites["north"], campaign)
    assert kept(sites["north"]) == before


def test_what_a_phase_does_not_train_is_part_of_what_all_signed() -> None:
    weights = {"w": np.ones(2, np.float32)}
    assert len({start_digest(weights, ""), start_digest(weights, "a" * 64), start_digest({}, "")}) == 3


@pytest.mark.parametrize("action", ["train", "evaluate"])
def test_a_round_is_answered_with_two_sets_of_weights_and_a_third_is_refused(
    campaign: CampaignConfig, sites: dict[str, SiteSetup], action: Any
) -> None:
    setup, asking = sites["north"], Coordinator(campaign, {}, names="0" * 64)
    plans = [asking.plan(action, {"w": np.full(2, value, np.float32)}) for value in range(MOST_STARTS + 1)]
    for plan in plans[:-1]:
        note_start(plan, setup)
    before = kept(setup)
    with pytest.raises(RefusedError, match="a further one would be a round that was not approved"):
        note_start(plans[-1], setup)
    for plan in plans[:-1]:
        note_start(plan, setup)  # a round that was lost is repeated as often as it takes
    assert kept(setup) == before
    note_start(replace(plans[-1], round=2), setup)
    folder = setup.store.parent / FOLDER
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", [b"", b"[1]", b"\xff", b"[" * 100_000, json.dumps({"train 1": ["x"]}).encode()])
def test_a_damaged_list_of_weights_stops_the_campaign_and_stays_as_it_is(
    campaign: CampaignConfig, sites: dict[str, SiteSetup], damage: bytes
) -> None:
    setup, plan = sites["north"], Coordinator(campaign, {}, names="0" * 64).plan("train", {})
    note_start(plan, setup)
    path = setup.store.parent / FOLDER / f"{plan.config_digest}.json"
    path.write_bytes(damage)
    with pytest.raises(DataError, match="damaged; nothing more of this campaign is answered here"):
        note_start(plan, setup)
    assert path.read_bytes() == damage


def test_a_lost_round_is_noted_in_a_coordinators_own_terms() -> None:
    """The terms must name the weights, by a digest."""
    for wrong in ("", "x" * 64, "0" * 63):
        with pytest.raises(DataError, match="digest of the weights must be 64 hexadecimal digits"):
            Terms(new_session(), "0" * 64, 1, NAMES, 3, wrong)
