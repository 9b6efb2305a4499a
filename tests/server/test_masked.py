"""A masked round over a scripted link, with the very protocol at the sites: what is lost, late or out of order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import protect
from client.site import SiteSetup
from server.masked import MaskedSum
from server.records import read_records
from server.rounds import CHECKPOINTS, CampaignResult, Run, run_campaign
from shared.checkpoint import rounds_saved
from shared.config import CampaignConfig, MachineConfig, SecAggConfig, StrategyConfig
from shared.errors import DataError, PeerError, WardroundError
from shared.events import Event, RoundFailed, SiteReplied
from shared.masking import grid_of
from shared.secagg.fixed_point import BYTES
from shared.trust.identity import create_identity
from shared.types import Arrays, Plan, Update
from shared.weights import architecture_digest
from shared.wire.link import Failure
from shared.wire.messages import (
    ADDED,
    MASKED,
    Record,
    masked_record,
    offer_record,
    read_answer,
    refusal_record,
    reveal_record,
)
from tests.server.test_rounds import ALL, WEIGHTS, WITHOUT_B, Reply, ScriptedLink, Sites, moved

NAMES = ("a", "b", "c", "d")
OF_FOUR = (1 + 4 + 9 + 16) / 10
WITHOUT_D = ALL


class MaskedSites(Sites):
    """Site i learns i everywhere and drew i samples, and does with it what client/protect.py does."""

    def __init__(self, names: Iterable[str], campaign: CampaignConfig, folder: Path) -> None:
        super().__init__(names)
        self.campaign = campaign
        identities = {name: create_identity(name) for name in self.names}
        public = {name: identity.public for name, identity in identities.items()}
        self.setups = {
            name: SiteSetup(name, folder, MachineConfig(), {}, folder / "sites" / name, identities[name], public)
            for name in self.names
        }

    def reply(self, site: str, plan: Plan) -> Reply:
        try:
            return self.answer(site, plan)
        except WardroundError as error:
            return refusal_record(type(error).__name__, str(error))

    def answer(self, site: str, plan: Plan) -> Reply:
        setup = self.setups[site]
        if plan.action == "offer":
            return self.noted(site, plan, offer_record(protect.offered(plan, setup, self.campaign)))
        if plan.action == "unmask":
            return self.noted(site, plan, reveal_record(protect.revealed(plan, setup, self.campaign)))
        if plan.action == "train":
            update = self.update(site, plan)
            return self.noted(site, plan, protect.protected(update, plan, setup, self.campaign)[0])
        return super().reply(site, plan)

    def noted(self, site: str, plan: Plan, record: Record) -> Record:
        self.plans.append((site, plan))
        return record


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    rounds = replace(campaign.rounds, rounds=1, quorum=3)
    return replace(campaign, rounds=rounds, secagg=SecAggConfig(kind="masked"))


@pytest.fixture
def link(campaign: CampaignConfig, tmp_path: Path) -> ScriptedLink:
    return ScriptedLink(MaskedSites(NAMES, campaign, tmp_path))


def run(
    campaign: CampaignConfig, link: ScriptedLink, run_dir: Path, events: list[Event] | None = None
) -> CampaignResult:
    on_event = events.append if events is not None else lambda event: None
    run_dir.mkdir(exist_ok=True)
    return run_campaign(Run(campaign, link, run_dir, on_event=on_event, now=link.now), lambda: WEIGHTS)


def actions(link: ScriptedLink, site: str) -> list[str]:
    return [plan.action for of, plan in link.sites.plans if of == site]


def test_three_messages_around_one_training_and_the_mean_that_visible_updates_have(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    events: list[Event] = []
    result = run(campaign, link, tmp_path / "run", events)
    step = grid_of(campaign, 4).step
    assert moved(result) == pytest.approx(OF_FOUR, abs=1e-6)
    assert actions(link, "a") == ["handshake", "offer", "train", "unmask", "evaluate"]
    first = result.records[0]
    assert first["secagg"] == {"sites": 4, "offered": 4, "revealed": 4, "step": step}
    assert first["num_samples"] == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert first["images"]["d"] == {"encoder": 4}
    assert first["evaluation"]["a"]["enhanced.psnr_db"]["total"] == 41
    assert first["update_norm"] == pytest.approx(OF_FOUR * 10**0.5)
    assert len([event for event in events if isinstance(event, SiteReplied) and event.round == 1]) == 4
    plans = {plan.action: plan for site, plan in link.sites.plans if site == "a"}
    assert plans["offer"].weights == plans["unmask"].weights == {}
    assert plans["offer"].secagg["terms"] == plans["train"].secagg["terms"] == plans["unmask"].secagg["terms"]


def test_equal_weights_are_a_plain_mean(campaign: CampaignConfig, tmp_path: Path) -> None:
    equal = replace(campaign, strategy=StrategyConfig(kind="fedavg", weight_by="equal"))
    link = ScriptedLink(MaskedSites(NAMES, equal, tmp_path))
    assert moved(run(equal, link, tmp_path / "run")) == pytest.approx(2.5, abs=1e-6)


def test_a_session_is_fresh_in_every_attempt(campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path) -> None:
    for site in ("a", "b"):
        losing_once(link, site, "train")
    events: list[Event] = []
    result = run(campaign, link, tmp_path / "run", events)
    assert moved(result) == pytest.approx(OF_FOUR, abs=1e-6)
    sessions = [
        plan.secagg["terms"]["session"] for site, plan in link.sites.plans if (site, plan.action) == ("c", "offer")
    ]
    assert len(sessions) == len(set(sessions)) == 2
    assert [event.attempts_left for event in events if isinstance(event, RoundFailed)] == [1]


def losing_once(link: ScriptedLink, site: str, action: Any) -> None:
    lost: list[str] = []

    def reply(plan: Plan) -> Reply:
        if not lost:
            lost.append(site)
            return Failure("the site went offline")
        return link.sites.reply(site, plan)

    link.replies[(site, action, 1)] = reply


@pytest.mark.parametrize(
    ("action", "expected", "offered", "revealed"),
    [("offer", WITHOUT_D, 3, 3), ("train", WITHOUT_D, 4, 3), ("unmask", OF_FOUR, 4, 3)],
)
@pytest.mark.parametrize("how", ["offline", "silent", "unreachable"])
def test_one_of_four_may_be_lost_at_any_stage(
    campaign: CampaignConfig,
    link: ScriptedLink,
    tmp_path: Path,
    action: Any,
    expected: float,
    offered: int,
    revealed: int,
    how: str,
) -> None:
    if how == "unreachable":
        send = link.send

        def cannot_send(sent: Any, record: Record, peers: Any) -> Any:
            return send(sent, record, [peer for peer in peers if (sent, peer.name) != (action, "d")])

        link.send = cannot_send  # type: ignore[method-assign]
    else:
        link.replies[("d", action, 1)] = lambda plan: Failure("the site went offline") if how == "offline" else None
    result = run(campaign, link, tmp_path / "run")
    first = result.records[0]
    assert moved(result) == pytest.approx(expected, abs=1e-6)
    assert (first["secagg"]["offered"], first["secagg"]["revealed"]) == (offered, revealed)
    assert first["participants"] == sorted(first["num_samples"])
    assert list(first["dropped"]) == ([] if action == "unmask" else ["d"])


def test_a_late_masked_update_stays_masked(campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path) -> None:
    """Its mask key is opened for the sum; its own mask keeps it shut, and no site reveals that for a lost one."""
    link.arrives[("d", "train", 1)] = campaign.rounds.grace_s + 5
    result = run(campaign, link, tmp_path / "run")
    assert moved(result) == pytest.approx(WITHOUT_D, abs=1e-6)
    assert result.records[0]["dropped"] == {"d": "no reply within 1 s after the quorum"}
    asked = [plan.secagg["survivors"] for _, plan in link.sites.plans if plan.action == "unmask"]
    assert asked == [["a", "b", "c"]] * 3


@pytest.mark.parametrize("action", ["offer", "train", "unmask"])
def test_too_few_at_any_stage_end_the_run_in_words_and_no_weights_move(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path, action: Any
) -> None:
    for site in ("a", "b"):
        link.replies[(site, action, 1)] = lambda plan: Failure("the site went offline")
    with pytest.raises(PeerError, match="round 1 failed 2 times; last: expected 3 sites or more, got 2. .*a: the site"):
        run(campaign, link, tmp_path / "run")
    assert rounds_saved(tmp_path / "run" / CHECKPOINTS) == []
    assert read_records(tmp_path / "run") == []


def test_a_sum_that_was_opened_is_not_opened_again_without_one_of_its_sites(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    """A coordinator that lost what it opened, or says so, asks again when a site is gone: the difference of the two
    sums would be that site's update."""
    first = run(campaign, link, tmp_path / "lost")
    link.offline.add("d")
    with pytest.raises(PeerError, match="opened here for a cohort that differs by 1 sites"):
        run(campaign, link, tmp_path / "again")
    assert rounds_saved(tmp_path / "again" / CHECKPOINTS) == []
    link.offline.discard("d")
    assert moved(run(campaign, link, tmp_path / "same")) == moved(first)  # the same sites: it tells nothing new


def test_sites_that_hide_from_the_quorum_do_not_hold_the_run_up(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    for site in NAMES:
        link.replies[(site, "offer", 1)] = lambda plan: None
    with pytest.raises(PeerError, match="got 0"):
        run(campaign, link, tmp_path / "run")
    assert link.clock <= 2 * campaign.rounds.join_deadline_s + 5


# ------------------------------------------------------------------------------------------------------- out of order


def changed(**changes: Any) -> Callable[[Record], Record]:
    """Fields of the header changed; the masked bytes are as many as it then says."""

    def change(record: Record) -> Record:
        header = json.loads(record.header)
        header.update({key: value(header) if callable(value) else value for key, value in changes.items()})
        count = header.get("shapes", {}).get(MASKED, [0])[0]
        return Record(json.dumps(header).encode(), {MASKED: bytes(count)} if count else {})

    return change


def backwards(header: Mapping[str, Any]) -> dict[str, Any]:
    return dict(reversed(list(header["stands_for"].items())))


@pytest.mark.parametrize(
    ("action", "change", "reason"),
    [
        ("offer", changed(kind="reveal", reveal={}), "something else than an offer"),
        ("offer", changed(offer={}), "must have the fields"),
        ("offer", changed(site="b"), "expected a reply in the name of d, got one in the name of b"),
        (
            "offer",
            changed(offer=lambda header: header["offer"] | {"site": "b"}),
            "expected an offer of d, got one of b",
        ),
        ("offer", changed(round=7), "got one of round 7"),
        ("offer", changed(offer=lambda header: header["offer"] | {"terms_digest": "0" * 64}), "for another session"),
        ("train", changed(kind="update", added={}), "expected an update"),
        ("train", changed(kind="offer", offer={}), "something else than a masked update"),
        ("train", changed(session="0" * 32), "got one of another"),
        ("train", changed(site="b"), "expected a reply in the name of d, got one in the name of b"),
        ("train", changed(round=7), "got one of round 7"),
        ("train", changed(num_samples=10**6), "expected 0 to 16 samples, got 1000000"),
        ("train", changed(images={}), "expected images counted for the parts encoder; got none"),
        ("train", changed(images={"encoder": 17}), "expected 0 to 16 images for the encoder, got 17"),
        ("train", changed(stands_for={}), "array 'enhancer.w' is missing"),
        ("train", changed(stands_for=backwards), "in another order"),
        ("train", changed(shapes={MASKED: [10]}), "expected a masked update of 50 bytes, got 10"),
    ],
)
def test_a_site_out_of_order_is_dropped_by_name_and_the_sum_of_the_others_holds(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path, action: Any, change: Any, reason: str
) -> None:
    link.replies[("d", action, 1)] = lambda plan: change(link.sites.reply("d", plan))
    result = run(campaign, link, tmp_path / "run")
    first = result.records[0]
    assert list(first["dropped"]) == ["d"]
    if reason != "expected an update":  # an unmasked update does not pass for a masked one, however it is called
        assert reason in first["dropped"]["d"]
    assert moved(result) == pytest.approx(WITHOUT_D, abs=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        changed(reveal={}),
        changed(kind="offer", offer={}),
        changed(site="b"),
        changed(reveal=lambda header: header["reveal"] | {"site": "b"}),
        changed(reveal=lambda header: header["reveal"] | {"session": "0" * 32}),
        changed(reveal=lambda header: header["reveal"] | {"seed_shares": {}}),
    ],
)
def test_a_reveal_out_of_order_is_left_out_and_the_others_open_the_sum(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path, change: Any
) -> None:
    link.replies[("d", "unmask", 1)] = lambda plan: change(link.sites.reply("d", plan))
    result = run(campaign, link, tmp_path / "run")
    assert result.records[0]["secagg"]["revealed"] == 3
    assert moved(result) == pytest.approx(OF_FOUR, abs=1e-6)


def wrong_shares(header: Mapping[str, Any]) -> dict[str, Any]:
    shares = header["reveal"]["seed_shares"]
    return header["reveal"] | {"seed_shares": {of: "0" * len(share) for of, share in shares.items()}}


@pytest.mark.parametrize("liars", [("a",), ("a", "b")])
def test_wrong_shares_open_no_wrong_sum(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path, liars: tuple[str, ...]
) -> None:
    """Four reveal where three are needed: one liar is passed over, two keep the sum shut."""
    for liar in liars:
        link.replies[(liar, "unmask", 1)] = lambda plan, liar=liar: changed(reveal=wrong_shares)(
            link.sites.reply(liar, plan)  # type: ignore[arg-type]
        )
    if len(liars) == 1:
        assert moved(run(campaign, link, tmp_path / "run")) == pytest.approx(OF_FOUR, abs=1e-6)
        return
    with pytest.raises(PeerError, match="do not fit its offer"):
        run(campaign, link, tmp_path / "run")
    assert rounds_saved(tmp_path / "run" / CHECKPOINTS) == []


def test_an_update_beyond_the_agreed_range_stays_at_its_site(campaign: CampaignConfig, tmp_path: Path) -> None:
    narrow = replace(campaign, secagg=SecAggConfig(kind="masked", range=3.5))  # d learns 4
    link = ScriptedLink(MaskedSites(NAMES, narrow, tmp_path))

    result = run(narrow, link, tmp_path / "run")
    assert "beyond secagg.range=3.5; nothing was sent" in result.records[0]["dropped"]["d"]
    assert moved(result) == pytest.approx(WITHOUT_D, abs=1e-6)


# ------------------------------------------------------------------------------------------------------------ the sum


def test_what_nobody_trained_stays_as_it_was_and_the_rest_is_weighted_by_those_who_did(
    campaign: CampaignConfig, tmp_path: Path
) -> None:
    weights: Arrays = {"enhancer.w": np.zeros(3, np.float32), "recogniser.up.0.w": np.zeros(2, np.float32),
                       "recogniser.down.0.w": np.zeros(2, np.float32)}  # fmt: skip

    class Partly(MaskedSites):
        def update(self, site: str, plan: Plan) -> Update:
            update = super().update(site, plan)
            return replace(update, images={"encoder": update.num_samples, "decoder": 3 if site in "ab" else 0})

        def card(self, site: str, plan: Plan) -> Any:
            return replace(super().card(site, plan), architecture_digest=architecture_digest(weights))

    link = ScriptedLink(Partly(NAMES, campaign, tmp_path))
    (tmp_path / "run").mkdir()
    result = run_campaign(Run(campaign, link, tmp_path / "run", now=link.now), lambda: weights)
    after = result.state.weights
    assert after["recogniser.up.0.w"] == pytest.approx(1.5, abs=1e-6)  # a and b, 3 images each
    assert after["recogniser.down.0.w"] == pytest.approx(OF_FOUR, abs=1e-6)
    assert after["enhancer.w"] == pytest.approx(OF_FOUR, abs=1e-6)


def test_a_mean_mask_map_that_is_none_is_seen_of_the_sum_and_ends_the_run(
    campaign: CampaignConfig, tmp_path: Path
) -> None:
    weights: Arrays = {"enhancer.w": np.zeros(3, np.float32), "prior.map": np.full((2, 2, 2), 0.5, np.float32)}

    class Mapping_(MaskedSites):
        def card(self, site: str, plan: Plan) -> Any:
            return replace(super().card(site, plan), architecture_digest=architecture_digest(weights))

    link = ScriptedLink(Mapping_(NAMES, campaign, tmp_path))
    (tmp_path / "run").mkdir()
    with pytest.raises(DataError, match="does not lead to probabilities"):
        run_campaign(Run(campaign, link, tmp_path / "run", now=link.now), lambda: weights)
    assert rounds_saved(tmp_path / "run" / CHECKPOINTS) == []


def test_a_masked_sum_takes_one_vector_whatever_the_number_of_sites(campaign: CampaignConfig) -> None:
    total = MaskedSum(WEIGHTS, campaign)
    assert total.vector.nbytes == 8 * 10
    for number in range(6):
        update = Update(f"site-{number}", 1, 1, WEIGHTS, images={"encoder": 1})
        answer = read_answer(masked_record(update, "0" * 32, bytes([1]) * BYTES * 10))
        total.add(answer, f"site-{number}")  # type: ignore[arg-type]
    assert total.vector.nbytes == 8 * 10
    assert (total.vector == 6 * 0x0101010101).all()
    with pytest.raises(DataError, match="already received"):
        total.add(answer, "site-5")  # type: ignore[arg-type]
    assert (total.vector == 6 * 0x0101010101).all()


def test_what_recognition_added_is_a_part_of_the_masked_vector(campaign: CampaignConfig) -> None:
    promoting = replace(campaign, strategy=StrategyConfig(kind="fedavg", promotion="global"))
    total = MaskedSum(WEIGHTS, promoting)
    assert total.vector.size == 10 + 6
    update = Update("a", 1, 1, WEIGHTS, images={"encoder": 1}, added={"enhancer.w": WEIGHTS["enhancer.w"]})
    whole = read_answer(masked_record(update, "0" * 32, bytes(BYTES * 16)))
    assert list(whole.head.shapes)[-1] == ADDED + "enhancer.w"  # type: ignore[union-attr]
    total.add(whole, "a")  # type: ignore[arg-type]
    bare = read_answer(masked_record(replace(update, added={}), "0" * 32, bytes(BYTES * 10)))
    with pytest.raises(DataError, match=r"array 'added.enhancer.w' is missing"):
        total.add(bare, "b")  # type: ignore[arg-type]
    assert list(total.samples) == ["a"]


def test_any_site_may_be_the_lost_one_for_masks_go_both_ways(campaign: CampaignConfig, tmp_path: Path) -> None:
    rounds, secagg = replace(campaign.rounds, quorum=2), replace(campaign.secagg, minimum_cohort=2)
    pairs = replace(campaign, rounds=rounds, secagg=secagg)
    link = ScriptedLink(MaskedSites(("a", "b", "c"), pairs, tmp_path))
    link.replies[("b", "train", 1)] = lambda plan: Failure("the site went offline")
    assert moved(run(pairs, link, tmp_path / "run")) == pytest.approx(WITHOUT_B, abs=1e-6)
