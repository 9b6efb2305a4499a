"""A campaign over a scripted link: what counts, what is dropped, what fails loudly, and what a resume goes on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server import rounds
from server.records import read_records
from server.rounds import CHECKPOINTS, CampaignResult, Run, run_campaign
from shared.checkpoint import rounds_saved
from shared.config import CampaignConfig, StrategyConfig
from shared.errors import DataError, PeerError, RefusedError
from shared.events import CampaignResumed, Event, RoundFailed, SiteJoined, SiteRefused
from shared.types import Action, Arrays, Moments, Plan, SiteCard, Update
from shared.weights import architecture_digest, parts_of
from shared.wire.link import Failure, Peer
from shared.wire.messages import Record, card_record, read_plan, refusal_record, update_record

WEIGHTS: Arrays = {"enhancer.w": np.zeros((2, 3), np.float32), "recogniser.v": np.ones(4, np.float32)}
Reply = Record | Failure | None


class Sites:
    """Honest sites: site i learns i everywhere and drew i samples."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self.plans: list[tuple[str, Plan]] = []

    def reply(self, site: str, plan: Plan) -> Reply:
        self.plans.append((site, plan))
        if plan.action == "handshake":
            return card_record(self.card(site, plan))
        return update_record(self.update(site, plan))

    def card(self, site: str, plan: Plan) -> SiteCard:
        return SiteCard(site, plan.config_digest, architecture_digest(WEIGHTS), "0.1.0", {"patients": 3})

    def update(self, site: str, plan: Plan) -> Update:
        value = float(self.names.index(site) + 1)
        evaluation = {"enhanced.psnr_db": Moments(2, 40 + plan.round, 900.0)}
        if plan.action == "evaluate":
            return Update(site, plan.round, 0, {}, {}, evaluation)
        learned = {name: np.full_like(values, value) for name, values in plan.weights.items()}
        images = dict.fromkeys(parts_of(plan.weights), int(value))
        return Update(site, plan.round, int(value), learned, {"loss_enhance": 1 / value}, evaluation, images=images)


class ScriptedLink:
    """Replies are there at once; waiting moves the clock, and `arrives` may hold a reply back until a time."""

    def __init__(self, sites: Sites) -> None:
        self.sites = sites
        self.clock = 0.0
        self.offline: set[str] = set()
        self.unreachable: set[str] = set()
        self.arrives: dict[tuple[str, Action, int], float] = {}
        self.replies: dict[tuple[str, Action, int], Callable[[Plan], Reply]] = {}
        self.mail: dict[str, tuple[float, Reply]] = {}
        self.count = 0

    def now(self) -> float:
        return self.clock

    def peers(self) -> Sequence[Peer]:
        return [Peer(i, site) for i, site in enumerate(self.sites.names) if site not in self.offline]

    def send(self, action: Action, record: Record, peers: Sequence[Peer]) -> dict[str, Peer]:
        tickets = {}
        for peer in peers:
            if peer.name in self.unreachable:
                continue
            self.count += 1
            plan = read_plan(record)
            assert plan.action == action
            key = (peer.name, action, plan.round)
            made = self.replies[key](plan) if key in self.replies else self.sites.reply(peer.name, plan)
            self.mail[f"t{self.count}"] = (self.clock + self.arrives.get(key, 0.0), made)
            tickets[f"t{self.count}"] = peer
        return tickets

    def receive(self, tickets: Collection[str], timeout_s: float) -> tuple[str, Record | Failure] | None:
        answer = self.arrived(tickets)
        if answer is None:
            self.clock += max(timeout_s, 0.01)
            answer = self.arrived(tickets)
        return answer

    def arrived(self, tickets: Collection[str]) -> tuple[str, Record | Failure] | None:
        for ticket in tickets:
            due, reply = self.mail.get(ticket, (0.0, None))
            if reply is not None and due <= self.clock:
                self.mail[ticket] = (0.0, None)
                return ticket, reply
        return None


@pytest.fixture
def link() -> ScriptedLink:
    return ScriptedLink(Sites(["a", "b", "c"]))


def run(
    campaign: CampaignConfig,
    link: ScriptedLink,
    run_dir: Path,
    events: list[Event] | None = None,
    initial: Callable[[], Arrays] = lambda: WEIGHTS,
    **more: Any,
) -> CampaignResult:
    on_event = events.append if events is not None else lambda event: None
    run_dir.mkdir(exist_ok=True)
    return run_campaign(Run(campaign, link, run_dir, on_event=on_event, now=link.now, **more), initial)


ALL = (1 + 4 + 9) / 6  # mean of 1, 2, 3 weighted by 1, 2, 3
WITHOUT_B = (1 + 9) / 4


def moved(result: CampaignResult) -> float:
    """By how much every weight has moved; all move alike."""
    moves = {float(v) for name in WEIGHTS for v in np.unique(result.state.weights[name] - WEIGHTS[name])}
    assert max(moves) - min(moves) < 1e-6
    return moves.pop()


def test_two_rounds_and_a_closing_evaluation(campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path) -> None:
    result = run(campaign, link, tmp_path / "run")
    assert moved(result) == pytest.approx(2 * ALL)
    assert [record["round"] for record in result.records] == [1, 2, 3]
    assert rounds_saved(tmp_path / "run" / CHECKPOINTS) == [1, 2]
    first, _, closing = result.records
    assert first["participants"] == ["a", "b", "c"]
    assert first["num_samples"] == {"a": 1, "b": 2, "c": 3}
    assert first["images"] == {"a": {"encoder": 1}, "b": {"encoder": 2}, "c": {"encoder": 3}}
    assert first["training"]["b"] == {"loss_enhance": 0.5}
    assert first["evaluation"]["a"]["enhanced.psnr_db"]["total"] == 41
    assert closing["evaluation"]["c"]["enhanced.psnr_db"]["total"] == 43
    assert closing["training"] == closing["num_samples"] == closing["images"] == {}
    assert first["bytes_down"] > 3 * 40
    assert first["bytes_up"] > 3 * 40
    assert read_records(tmp_path / "run") == list(result.records)


def test_evaluation_judges_the_weights_that_came_in_and_the_closing_one_the_last(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    result = run(campaign, link, tmp_path)
    seen = {(plan.action, plan.round): plan for site, plan in link.sites.plans if site == "a"}
    assert seen[("handshake", 1)].weights == {}
    np.testing.assert_array_equal(seen[("train", 1)].weights["enhancer.w"], WEIGHTS["enhancer.w"])
    np.testing.assert_array_equal(seen[("evaluate", 3)].weights["enhancer.w"], result.state.weights["enhancer.w"])


def test_equal_weighting_is_a_plain_mean(campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path) -> None:
    equal = replace(campaign, strategy=StrategyConfig(kind="fedavg", weight_by="equal"))
    assert moved(run(equal, link, tmp_path)) == pytest.approx(2 * 2.0)


# ------------------------------------------------------------------------------------------------------- bad replies


def changed(**changes: Any) -> Callable[[ScriptedLink], Callable[[Plan], Reply]]:
    return lambda link: lambda plan: update_record(replace(link.sites.update("b", plan), **changes))


def counting(images: dict[str, int]) -> Callable[[ScriptedLink], Callable[[Plan], Reply]]:
    """What our own writer would never write."""

    def reply(link: ScriptedLink, plan: Plan) -> Reply:
        record = update_record(link.sites.update("b", plan))
        return replace(record, header=json.dumps(json.loads(record.header) | {"images": images}).encode())

    return lambda link: lambda plan: reply(link, plan)


def poisoned(link: ScriptedLink) -> Callable[[Plan], Reply]:
    def reply(plan: Plan) -> Reply:
        update = link.sites.update("b", plan)
        update.difference["recogniser.v"][2] = np.nan
        return update_record(update)

    return reply


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (poisoned, "array 'recogniser.v' holds values that are not finite"),
        (changed(round=7), "expected an update of round 1, got one of round 7"),
        (changed(site="a"), "expected a reply in the name of b, got one in the name of a"),
        (changed(num_samples=10**6), "expected 0 to 16 samples, got 1000000"),
        (changed(images={"encoder": 17}), "expected 0 to 16 images for the encoder, got 17"),
        (counting({"encoder": 2, "decoder": 2}), "expected images counted for the parts encoder; got decoder, encoder"),
        (counting({}), "expected images counted for the parts encoder; got none"),
        (counting({"critic": 1}), "images are counted for encoder, decoder, diagnosis, prior, not for 'critic'"),
        (changed(difference={"recogniser.v": np.ones(4, np.float32)}), "array 'enhancer.w' is missing"),
        (lambda link: lambda plan: Record(b"{}"), "not an object with a kind"),
        (lambda link: lambda plan: Failure("the site went offline"), "the site went offline"),
        (lambda link: lambda plan: refusal_record("Exception", "site error: KeyError"), "site error: KeyError"),
        (lambda link: lambda plan: card_record(link.sites.card("b", plan)), "something else than an update"),
    ],
)
def test_a_bad_reply_is_dropped_with_its_site_and_reason_and_the_round_goes_on(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path, reply: Any, reason: str
) -> None:
    link.replies[("b", "train", 1)] = reply(link)
    result = run(campaign, link, tmp_path)
    assert list(result.records[0]["dropped"]) == ["b"]
    assert reason in result.records[0]["dropped"]["b"]
    assert result.records[0]["participants"] == ["a", "c"]
    assert moved(result) == pytest.approx(WITHOUT_B + ALL)


def test_a_reply_that_comes_twice_counts_once(campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path) -> None:
    plain = link.receive
    seen: list[tuple[str, Record | Failure]] = []

    def twice(tickets: Collection[str], timeout_s: float) -> tuple[str, Record | Failure] | None:
        if seen:
            return seen.pop()
        answer = plain(tickets, timeout_s)
        if answer is not None:
            seen.append(answer)
        return answer

    link.receive = twice  # type: ignore[method-assign]
    assert moved(run(campaign, link, tmp_path)) == pytest.approx(2 * ALL)


# -------------------------------------------------------------------------------------------- quorum, deadline, grace


def test_a_slow_site_is_waited_for_within_the_grace(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    link.arrives[("c", "train", 1)] = campaign.rounds.grace_s * 0.9
    assert run(campaign, link, tmp_path).records[0]["participants"] == ["a", "b", "c"]


def test_after_the_grace_the_round_goes_on_without_it_and_its_late_reply_is_not_looked_at(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    link.arrives[("b", "train", 1)] = campaign.rounds.grace_s + 5
    result = run(campaign, link, tmp_path)
    assert result.records[0]["dropped"] == {"b": "no reply within 1 s after the quorum"}
    assert result.records[1]["participants"] == ["a", "b", "c"]
    assert moved(result) == pytest.approx(WITHOUT_B + ALL)


def test_sites_that_share_a_machine_are_waited_for_in_their_turn(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    link.arrives[("c", "train", 1)] = campaign.rounds.round_deadline_s * 2.5
    result = run(campaign, link, tmp_path, in_turns=True)
    assert result.records[0]["participants"] == ["a", "b", "c"]


def test_too_few_replies_fail_the_round_which_is_tried_again(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    attempts: list[str] = []

    def once_lost(site: str) -> Callable[[Plan], Reply]:
        def reply(plan: Plan) -> Reply:
            attempts.append(site)
            return None if attempts.count(site) == 1 else update_record(link.sites.update(site, plan))

        return reply

    for site in ("a", "b"):
        link.replies[(site, "train", 2)] = once_lost(site)
    events: list[Event] = []
    result = run(campaign, link, tmp_path, events)
    assert moved(result) == pytest.approx(2 * ALL)
    failed = [event for event in events if isinstance(event, RoundFailed)]
    assert [(event.round, event.attempts_left) for event in failed] == [(2, 1)]
    assert failed[0].reason == ("expected 2 sites or more, got 1. a: no reply within 30 s; b: no reply within 30 s")


def test_after_the_last_try_the_run_ends_and_names_who_was_missing_and_why(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    for site in ("a", "b"):
        link.replies[(site, "train", 2)] = lambda plan: Failure("the site went offline")
    with pytest.raises(PeerError, match="round 2 failed 2 times; .*a: the site went offline; b: the site went offline"):
        run(campaign, link, tmp_path)
    assert rounds_saved(tmp_path / CHECKPOINTS) == [1]  # nothing stale was called round 2
    assert [record["round"] for record in read_records(tmp_path)] == [1]


def test_a_closing_evaluation_without_a_quorum_is_no_good_end(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    for site in ("b", "c"):
        link.replies[(site, "evaluate", 3)] = lambda plan: None
    with pytest.raises(PeerError, match="round 3 failed 2 times"):
        run(campaign, link, tmp_path)


def test_a_site_that_is_away_for_a_round_comes_back(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    def leaves(plan: Plan) -> Reply:
        link.offline.add("b")
        return Failure("the site went offline")

    def others(plan: Plan) -> Reply:
        if plan.round == 2:
            link.offline.discard("b")
        return update_record(link.sites.update("a", plan))

    link.replies[("b", "train", 1)] = leaves
    link.replies[("a", "train", 2)] = others
    result = run(campaign, link, tmp_path)
    assert result.records[0]["dropped"] == {"b": "the site went offline"}
    assert result.records[1]["dropped"] == {"b": "not connected"}
    assert result.records[2]["participants"] == ["a", "b", "c"]


def test_a_site_that_cannot_be_sent_to_is_named(campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path) -> None:
    def now_unreachable(plan: Plan) -> Reply:
        link.unreachable.add("c")
        return update_record(link.sites.update("a", plan))

    link.replies[("a", "train", 1)] = now_unreachable
    result = run(campaign, link, tmp_path)
    assert result.records[1]["dropped"] == {"c": "could not be sent to"}


def huge_update(update: Update, size: float) -> Record:
    return update_record(
        replace(update, difference={name: np.full_like(values, size) for name, values in update.difference.items()})
    )


def test_weights_that_overflow_end_the_run_before_they_are_kept(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    huge = replace(campaign, strategy=StrategyConfig(kind="fedavg", server_learning_rate=1e3))
    for site in link.sites.names:
        link.replies[(site, "train", 1)] = lambda plan, site=site: huge_update(link.sites.update(site, plan), 1e37)  # type: ignore[misc]
    with pytest.raises(DataError, match="round 1 made 'enhancer.w' overflow"):
        run(huge, link, tmp_path)
    assert rounds_saved(tmp_path / CHECKPOINTS) == []


# ---------------------------------------------------------------------------------------------------------- handshake


def test_a_round_in_which_nobody_trained_is_no_round(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    """A run must not end well on the weights that it began with; one site that trains is enough."""

    def idle(plan: Plan, site: str) -> Reply:
        still = {name: np.zeros_like(values) for name, values in plan.weights.items()}
        return update_record(Update(site, plan.round, 0, still, images=dict.fromkeys(parts_of(plan.weights), 0)))

    for site in link.sites.names[1:]:
        link.replies[site, "train", 1] = partial(idle, site=site)
        link.replies[site, "train", 2] = partial(idle, site=site)
    assert run(campaign, link, tmp_path / "one").state.round == 2
    link.replies["a", "train", 1] = partial(idle, site="a")
    with pytest.raises(DataError, match="no site has anything to learn from"):
        run(campaign, link, tmp_path / "none")
    assert not rounds_saved(tmp_path / "none" / CHECKPOINTS)


def test_a_site_with_another_architecture_is_refused_by_name_and_the_others_train(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    link.replies[("b", "handshake", 1)] = lambda plan: card_record(
        replace(link.sites.card("b", plan), architecture_digest="f" * 64)
    )
    events: list[Event] = []
    result = run(campaign, link, tmp_path, events)
    assert result.records[0]["participants"] == ["a", "c"]
    refused = next(event for event in events if isinstance(event, SiteRefused))
    assert refused.site == "b"
    assert refused.reason.startswith("b builds architecture ffffffffffff, expected ")
    assert ("b", 1) not in {(site, plan.round) for site, plan in link.sites.plans if plan.action == "train"}


def test_a_refused_site_that_was_put_right_takes_part_in_the_next_round(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    link.replies[("b", "handshake", 1)] = lambda plan: refusal_record("RefusedError", "campaign is not approved at b")
    result = run(campaign, link, tmp_path, allowed=frozenset("abc"))
    assert [record["participants"] for record in result.records] == [["a", "c"], ["a", "b", "c"], ["a", "b", "c"]]


def test_a_site_with_another_campaign_is_refused_by_name(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    other = replace(campaign, rounds=replace(campaign.rounds, quorum=3))
    link.replies[("c", "handshake", 1)] = lambda plan: card_record(
        replace(link.sites.card("c", plan), config_digest="f" * 64)
    )
    with pytest.raises(RefusedError, match="at least 3 sites, got 2 .a, b.; c has campaign digest ffffffffffff"):
        run(other, link, tmp_path)
    assert not (tmp_path / CHECKPOINTS).exists()


def test_data_that_a_site_cannot_use_is_a_data_error_here(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    for site in ("a", "b"):
        link.replies[(site, "handshake", 1)] = lambda plan: refusal_record("DataError", "a site needs two patients")
    with pytest.raises(DataError, match="got 1 .c.; a declined: a site needs two patients; b declined"):
        run(campaign, link, tmp_path)


def test_refusals_that_leave_no_quorum_end_the_wait_at_once(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    for site in ("a", "b"):
        link.replies[(site, "handshake", 1)] = lambda plan: refusal_record("RefusedError", "not approved here")
    link.arrives[("c", "handshake", 1)] = 100.0
    with pytest.raises(RefusedError, match="a declined: not approved here; b declined.*; no answer yet from c$"):
        run(campaign, link, tmp_path, allowed=frozenset("abc"))
    assert link.clock < campaign.rounds.join_deadline_s


def test_too_few_sites_by_the_join_deadline_is_a_peer_error_naming_the_missing(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    link.offline |= {"b", "c"}
    with pytest.raises(PeerError, match="at least 2 sites, got 1 .a. within 5 s; missing: b, c; start the sites"):
        run(campaign, link, tmp_path, allowed=frozenset("abc"))
    # Every attempt waits for the deadline, and no longer.
    assert link.clock == pytest.approx(2 * 5, abs=0.1)


def test_joining_waits_for_all_named_sites_but_not_longer_than_the_deadline(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    link.arrives[("c", "handshake", 1)] = 4.0
    result = run(campaign, link, tmp_path, allowed=frozenset("abc"))
    assert result.records[0]["participants"] == ["a", "b", "c"]
    late = ScriptedLink(Sites(["a", "b", "c"]))
    late.arrives[("c", "handshake", 1)] = 50.0
    result = run(campaign, late, tmp_path / "late", allowed=frozenset("abc"))
    assert result.records[0]["participants"] == ["a", "b"]
    assert late.clock < 10


def test_a_site_whose_card_was_lost_is_asked_again(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    asked: list[int] = []

    def lost_once(plan: Plan) -> Reply:
        asked.append(plan.round)
        return Failure("the site's program failed") if len(asked) == 1 else card_record(link.sites.card("b", plan))

    link.replies[("b", "handshake", 1)] = lost_once
    result = run(campaign, link, tmp_path, allowed=frozenset("abc"))
    assert len(asked) == 2
    assert result.records[0]["participants"] == ["a", "b", "c"]


def test_sites_that_never_give_a_card_do_not_hold_the_run_up(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    for site in ("a", "b"):
        link.replies[(site, "handshake", 1)] = lambda plan: Failure("the site's program failed")
    with pytest.raises(PeerError, match="missing: a, b; a gave no site card: the site's program failed; b gave"):
        run(campaign, link, tmp_path, allowed=frozenset("abc"))
    assert link.clock < 2 * 6


def test_plans_go_to_named_sites_only(campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path) -> None:
    result = run(campaign, link, tmp_path, allowed=frozenset("ac"))
    assert moved(result) == pytest.approx(2 * WITHOUT_B)
    assert {site for site, _ in link.sites.plans} == {"a", "c"}


def test_a_site_cannot_take_the_name_of_another(campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path) -> None:
    link.replies[("b", "handshake", 1)] = lambda plan: card_record(link.sites.card("a", plan))
    events: list[Event] = []
    result = run(campaign, link, tmp_path, events)
    assert result.records[0]["participants"] == ["a", "c"]
    assert SiteRefused("a", "a is registered as b; the site's name must be the registered one") in events
    assert [event.site for event in events if isinstance(event, SiteJoined)][:2] == ["a", "c"]


def test_of_two_nameless_peers_with_one_name_the_second_is_refused(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    link.peers = lambda: [Peer(1), Peer(2), Peer(3)]  # type: ignore[method-assign]
    names = {1: "a", 2: "a", 3: "c"}
    plain = link.send

    def send(action: Action, record: Record, peers: Sequence[Peer]) -> dict[str, Peer]:
        named = plain(action, record, [Peer(peer.id, names[peer.id]) for peer in peers])
        return {ticket: Peer(peer.id) for ticket, peer in named.items()}

    link.send = send  # type: ignore[method-assign]
    events: list[Event] = []
    result = run(campaign, link, tmp_path, events)
    assert result.records[0]["participants"] == ["a", "c"]
    assert any(
        isinstance(event, SiteRefused) and "already connected as another peer" in event.reason for event in events
    )


# ------------------------------------------------------------------------------------------------------------- resume


class KilledError(Exception):
    """Stands for kill -9: nothing is cleaned up."""


def killed_at(campaign: CampaignConfig, run_dir: Path, round: int) -> None:
    link = ScriptedLink(Sites(["a", "b", "c"]))

    def kill(plan: Plan) -> Reply:
        raise KilledError

    link.replies[("b", "train", round)] = kill
    with pytest.raises(KilledError):
        run(campaign, link, run_dir)


@pytest.mark.parametrize("kind", ["fedavg", "fedadam", "fedyogi"])
def test_a_resumed_run_ends_with_the_weights_of_one_that_was_never_killed(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path, kind: Any
) -> None:
    longer = replace(campaign, strategy=StrategyConfig(kind=kind), rounds=replace(campaign.rounds, rounds=4))
    killed_at(longer, tmp_path / "killed", 3)
    events: list[Event] = []
    resumed = run(longer, link, tmp_path / "killed", events, initial=lambda: pytest.fail("starts anew"))
    whole = run(longer, ScriptedLink(Sites(["a", "b", "c"])), tmp_path / "whole")
    assert CampaignResumed(2) in events
    for name in WEIGHTS:
        assert resumed.state.weights[name].tobytes() == whole.state.weights[name].tobytes()
    assert [record["round"] for record in read_records(tmp_path / "killed")] == [1, 2, 3, 4, 5]
    assert {plan.round for _, plan in link.sites.plans if plan.action == "train"} == {3, 4}


def test_a_line_lost_between_checkpoint_and_record_comes_back_from_the_checkpoint(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    killed_at(campaign, tmp_path, 2)
    (tmp_path / "rounds.jsonl").write_text('{"round": 1, "cut": tr')
    result = run(campaign, link, tmp_path)
    assert [record["round"] for record in read_records(tmp_path)] == [1, 2, 3]
    assert read_records(tmp_path)[0]["participants"] == ["a", "b", "c"]
    assert moved(result) == pytest.approx(2 * ALL)


def test_a_run_killed_twice_before_its_records_were_written_lacks_none(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = replace(campaign, rounds=replace(campaign.rounds, rounds=4))

    def killed(*_: Any) -> None:
        raise KilledError

    for _ in range(2):  # each time a round is saved, and the next step would have written its record
        with monkeypatch.context() as patched:
            patched.setattr(rounds, "publish", killed)
            with pytest.raises(KilledError):
                run(longer, ScriptedLink(Sites(["a", "b", "c"])), tmp_path / "killed")
    assert rounds_saved(tmp_path / "killed" / CHECKPOINTS) == [1, 2]
    resumed = run(longer, link, tmp_path / "killed")
    whole = run(longer, ScriptedLink(Sites(["a", "b", "c"])), tmp_path / "whole")
    assert [record["round"] for record in resumed.records] == [1, 2, 3, 4, 5]
    assert read_records(tmp_path / "killed") == list(resumed.records)
    for ours, theirs in zip(resumed.records, whole.records, strict=True):
        assert ours["evaluation"] == theirs["evaluation"]


def test_a_finished_run_is_not_run_again(campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path) -> None:
    first = run(campaign, link, tmp_path)
    again = ScriptedLink(Sites([]))
    second = run(campaign, again, tmp_path)
    assert second.records == tuple(json.loads(json.dumps(first.records)))
    assert again.count == 0


def test_a_damaged_last_round_ends_the_run_and_its_removal_goes_back_one(
    campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path
) -> None:
    run(campaign, ScriptedLink(Sites(["a", "b", "c"])), tmp_path)
    damaged = tmp_path / CHECKPOINTS / "round_00002"
    (damaged / "weights.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="remove the folder checkpoints/round_00002 to resume from before"):
        run(campaign, link, tmp_path)
    for path in damaged.iterdir():
        path.unlink()
    damaged.rmdir()
    assert moved(run(campaign, link, tmp_path)) == pytest.approx(2 * ALL)
    assert {plan.round for _, plan in link.sites.plans if plan.action == "train"} == {2}
    assert [record["round"] for record in read_records(tmp_path)] == [1, 2, 3]


def test_another_campaigns_folder_is_refused(campaign: CampaignConfig, link: ScriptedLink, tmp_path: Path) -> None:
    run(campaign, link, tmp_path)
    with pytest.raises(RefusedError, match="choose another run_dir"):
        run(replace(campaign, seed=1), link, tmp_path)


# ------------------------------------------------------------------------------------------- parts, and the mask map

TRUE_MAPS = {"a": 0.25, "b": 1.0}
COUNTS = {"a": 3, "b": 1, "c": 0}
PARTED: Arrays = {
    **WEIGHTS,
    "recogniser.up.w": np.ones(2, np.float32),
    "prior.map_KHW": np.zeros((2, 2, 2), np.float32),
}


class Labelled(Sites):
    """Site a has 3 images with a mask, b one, c none; who has any answers with the map that is true there."""

    def card(self, site: str, plan: Plan) -> SiteCard:
        return replace(super().card(site, plan), architecture_digest=architecture_digest(PARTED))

    def update(self, site: str, plan: Plan) -> Update:
        update = super().update(site, plan)
        if plan.action == "evaluate":
            return update
        here = plan.weights["prior.map_KHW"]
        change = np.full_like(here, TRUE_MAPS[site]) - here if site in TRUE_MAPS else np.full_like(here, 9)
        images = {"encoder": update.num_samples, "decoder": COUNTS[site], "prior": COUNTS[site]}
        return replace(update, difference={**update.difference, "prior.map_KHW": change}, images=images)


def federate(campaign: CampaignConfig, run_dir: Path, strategy: StrategyConfig, link: Any = None) -> CampaignResult:
    link = link or ScriptedLink(Labelled("abc"))
    return run(replace(campaign, strategy=strategy), link, run_dir, initial=lambda: PARTED)


STRATEGIES = [
    StrategyConfig(kind="fedavg"),
    StrategyConfig(kind="fedavg", server_learning_rate=1.5),
    StrategyConfig(kind="fedprox", proximal_mu=0.1, server_learning_rate=0.5),
    StrategyConfig(kind="fedadam", server_learning_rate=0.1),
    StrategyConfig(kind="fedyogi", server_learning_rate=0.1),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: f"{s.kind}-{s.server_learning_rate}")
def test_the_mask_map_is_the_counted_mean_of_the_sites_maps_whatever_the_strategy(
    campaign: CampaignConfig, tmp_path: Path, strategy: StrategyConfig
) -> None:
    result = federate(campaign, tmp_path, strategy)
    np.testing.assert_allclose(result.state.weights["prior.map_KHW"], (3 * 0.25 + 1.0) / 4, rtol=1e-6)
    assert list(result.state.weights) == list(PARTED)
    assert all("prior.map_KHW" not in arrays for arrays in result.state.optimiser.values())
    assert result.records[0]["dropped"] == {}
    assert result.records[0]["images"]["c"] == {"encoder": 3, "decoder": 0, "prior": 0}


def test_the_mask_map_changes_nothing_of_what_is_learnt(campaign: CampaignConfig, tmp_path: Path) -> None:
    """The same sites without the map learn the same bits, and the round's norm is of what is learnt."""
    adam = StrategyConfig(kind="fedadam", server_learning_rate=0.1)
    with_map, without = federate(campaign, tmp_path / "map", adam), tmp_path / "none"
    plain = run(replace(campaign, strategy=adam), ScriptedLink(Sites("abc")), without)
    for name in WEIGHTS:
        assert with_map.state.weights[name].tobytes() == plain.state.weights[name].tobytes()
    learnt = [ALL] * 10 + [(3 * 1 + 1 * 2) / 4] * 2
    assert with_map.records[0]["update_norm"] == pytest.approx(sum(v * v for v in learnt) ** 0.5)


def test_the_decoder_is_averaged_over_the_sites_that_have_masks(campaign: CampaignConfig, tmp_path: Path) -> None:
    result = federate(campaign, tmp_path, StrategyConfig(kind="fedavg"))
    np.testing.assert_allclose(result.state.weights["recogniser.up.w"], 1 + 2 * (3 * 1 + 1 * 2) / 4, rtol=1e-6)
    np.testing.assert_allclose(result.state.weights["recogniser.v"], 1 + 2 * ALL, rtol=1e-6)


@pytest.mark.parametrize("kind", ["fedavg", "fedadam"])
def test_a_resumed_run_goes_on_with_the_mask_map(campaign: CampaignConfig, tmp_path: Path, kind: Any) -> None:
    killing = ScriptedLink(Labelled("abc"))

    def kill(plan: Plan) -> Reply:
        raise KilledError

    killing.replies[("b", "train", 2)] = kill
    with pytest.raises(KilledError):
        federate(campaign, tmp_path / "killed", StrategyConfig(kind=kind), killing)
    resumed = federate(campaign, tmp_path / "killed", StrategyConfig(kind=kind))
    whole = federate(campaign, tmp_path / "whole", StrategyConfig(kind=kind))
    for name in PARTED:
        assert resumed.state.weights[name].tobytes() == whole.state.weights[name].tobytes()
    assert [r["images"] for r in resumed.records] == [r["images"] for r in whole.records]


def test_a_site_whose_map_is_none_of_probabilities_does_not_count(campaign: CampaignConfig, tmp_path: Path) -> None:
    link, liar = ScriptedLink(Labelled("abc")), Labelled("abc")

    def lie(plan: Plan) -> Reply:
        update = liar.update("b", plan)
        return update_record(
            replace(update, difference={**update.difference, "prior.map_KHW": -PARTED["prior.map_KHW"] - 7})
        )

    link.replies[("b", "train", 1)] = link.replies[("b", "train", 2)] = lie
    result = federate(campaign, tmp_path, StrategyConfig(kind="fedavg"), link)
    assert "expected a mean mask map within [0, 1]" in result.records[0]["dropped"]["b"]
    np.testing.assert_allclose(result.state.weights["prior.map_KHW"], 0.25, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------- federated gate


class Steered(Sites):
    """Site i's enhancer learns i by its own loss and `added` by recognition; told apart where somebody asks."""

    def __init__(self, names: Iterable[str], added: float, *, told: bool = True) -> None:
        super().__init__(names)
        self.added, self.told = np.float32(added), told

    def update(self, site: str, plan: Plan) -> Update:
        update = super().update(site, plan)
        if plan.action == "evaluate":
            return update
        learned = {**update.difference, "enhancer.w": update.difference["enhancer.w"] + self.added}
        added = {"enhancer.w": np.full_like(WEIGHTS["enhancer.w"], self.added)}
        return replace(update, difference=learned, added=added if self.told else {})


def promoting(campaign: CampaignConfig, kind: Any, **more: Any) -> CampaignConfig:
    return replace(campaign, strategy=StrategyConfig(kind="fedavg", promotion=kind, **more))


@pytest.mark.parametrize("kind", ["global", "layer", "projected"])
@pytest.mark.parametrize("weight_by", ["samples", "equal"])
def test_with_all_gates_open_the_result_is_that_of_plain_federated_averaging(
    campaign: CampaignConfig, tmp_path: Path, kind: Any, weight_by: Any
) -> None:
    gates = promoting(campaign, kind, weight_by=weight_by)
    none = promoting(campaign, "none", weight_by=weight_by)
    gated = run(gates, ScriptedLink(Steered("abc", 0.3)), tmp_path / "gated")
    plain = run(none, ScriptedLink(Steered("abc", 0.3, told=False)), tmp_path / "plain")
    for name in WEIGHTS:
        assert gated.state.weights[name].tobytes() == plain.state.weights[name].tobytes()
    main = ALL if weight_by == "samples" else 2.0
    for record, without in zip(gated.records[:2], plain.records[:2], strict=True):
        assert record["promotion"] == pytest.approx({"open": 1, "cosine": 1, "added_share": 0.3 / main}, rel=1e-3)
        assert record["update_norm"] == without["update_norm"]
    assert "promotion" not in gated.records[2]
    assert all("promotion" not in record for record in plain.records)


@pytest.mark.parametrize("kind", ["global", "layer", "projected"])
def test_what_works_against_the_sites_together_stays_out(campaign: CampaignConfig, tmp_path: Path, kind: Any) -> None:
    result = run(promoting(campaign, kind), ScriptedLink(Steered("abc", -0.5)), tmp_path)
    assert moved(result) == pytest.approx(2 * ALL)
    assert [record["promotion"]["open"] for record in read_records(tmp_path)[:2]] == [0, 0]


@pytest.mark.parametrize("kind", ["fedavg", "fedadam", "fedyogi"])
def test_a_resumed_run_promotes_like_one_that_was_never_killed(
    campaign: CampaignConfig, tmp_path: Path, kind: Any
) -> None:
    gated = replace(campaign, strategy=StrategyConfig(kind=kind, promotion="projected"))
    killing = ScriptedLink(Steered("abc", -0.5))

    def kill(plan: Plan) -> Reply:
        raise KilledError

    killing.replies[("b", "train", 2)] = kill
    with pytest.raises(KilledError):
        run(gated, killing, tmp_path / "killed")
    resumed = run(gated, ScriptedLink(Steered("abc", -0.5)), tmp_path / "killed")
    whole = run(gated, ScriptedLink(Steered("abc", -0.5)), tmp_path / "whole")
    for name in WEIGHTS:
        assert resumed.state.weights[name].tobytes() == whole.state.weights[name].tobytes()
    assert [r.get("promotion") for r in resumed.records] == [r.get("promotion") for r in whole.records]


@pytest.mark.parametrize(
    ("kind", "told", "reason"),
    [
        ("global", False, "lacks what recognition added, which strategy.promotion asks for"),
        ("none", True, "what recognition added, which strategy.promotion=none does not ask for"),
    ],
)
def test_a_site_that_keeps_back_or_brings_unasked_what_was_added_does_not_count(
    campaign: CampaignConfig, tmp_path: Path, kind: Any, told: bool, reason: str
) -> None:
    link, liar = ScriptedLink(Steered("abc", 0.3, told=not told)), Steered("abc", 0.3, told=told)
    link.replies[("b", "train", 1)] = lambda plan: update_record(liar.update("b", plan))
    result = run(promoting(campaign, kind), link, tmp_path)
    assert reason in result.records[0]["dropped"]["b"]
    assert result.state.weights["recogniser.v"] - 1 == pytest.approx(WITHOUT_B + ALL)


class Huge(Steered):
    """Every number is finite, and what the enhancement loss alone did, the difference of two of them, is not."""

    def update(self, site: str, plan: Plan) -> Update:
        update = super().update(site, plan)
        if plan.action == "evaluate":
            return update
        added = np.full_like(WEIGHTS["enhancer.w"], np.finfo(np.float32).max)
        learned = added.copy()
        learned[0, 0] *= -1
        return replace(update, difference={**update.difference, "enhancer.w": learned}, added={"enhancer.w": added})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["global", "layer", "projected", "orthogonal"])
def test_a_huge_part_that_looks_honest_ends_the_run_in_words(
    campaign: CampaignConfig, tmp_path: Path, kind: Any
) -> None:
    with pytest.raises(DataError, match="round 1 made 'enhancer.w' overflow"):
        run(promoting(campaign, kind), ScriptedLink(Huge("abc", 0.0)), tmp_path)
    assert rounds_saved(tmp_path / CHECKPOINTS) == []
