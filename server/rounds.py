"""A campaign and a link in, a trained federation on disk out: the whole of a round stands on this page.

    handshake -> for each round:  plan -> send -> streamed weighted sum -> promotion -> strategy -> checkpoint -> record
              -> closing evaluation of the final weights

Evaluation rides on the train message and judges the weights that came in, so a round costs one download; the closing
round only evaluates. A round with fewer updates than the quorum fails, is tried again `rounds.retries` times and then
ends the run with PeerError: weights never go on without the round that they are called after. A reply counts by the
ticket that was handed out for it: what comes late, for an earlier round or attempt, or twice, is not looked at.

Nothing here knows Flower, torch, or one site's data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from server.collect import WeightedSum, check_sender
from server.membership import WAIT_S, Admission, Members, join, online
from server.plan import Frozen, plan_for
from server.records import RoundRecord, read_records, write_records
from server.strategies import STRATEGIES
from server.strategies.promotion import promoted
from shared.checkpoint import FederationState, load_latest, save_round
from shared.config import CampaignConfig, campaign_digest
from shared.errors import DataError, PeerError, RefusedError
from shared.events import CampaignResumed, Event, RoundFailed, RoundFinished, RoundStarted, SiteReplied
from shared.generate.average import averaged
from shared.types import Action, Arrays
from shared.weights import add, architecture_digest, learnt_and_prior, norm
from shared.wire.link import Failure, Link
from shared.wire.messages import ReceivedUpdate, Record, Refusal, metrics_json, plan_record, read_answer

CHECKPOINTS = "checkpoints"


def ignore(event: Event) -> None:
    """Nobody watches."""


@dataclass(frozen=True, slots=True)
class Run:
    """What stays the same from the first round to the last."""

    campaign: CampaignConfig
    link: Link
    run_dir: Path
    allowed: frozenset[str] | None = None
    """Names of the sites that plans go to; None: whoever shows the right digests."""
    on_event: Callable[[Event], None] = ignore
    now: Callable[[], float] = time.monotonic
    start_up_s: float = 0.0
    """What the transport itself takes until it can deliver: added to the first join deadline."""
    in_turns: bool = False
    """Sites share one machine's cores: the round's deadline is for each of them, and no grace leaves one behind."""
    phase: str = ""
    """Of a campaign with a generator (server/phases.py); stands in its records."""
    frozen: Frozen = field(default_factory=Frozen)


@dataclass(frozen=True, slots=True, eq=False)
class CampaignResult:
    state: FederationState
    records: tuple[RoundRecord, ...]


def run_campaign(run: Run, initial: Callable[[], Arrays]) -> CampaignResult:
    """Train from the last complete checkpoint (or from `initial()`) to the last round, and judge the final weights.

    Raises PeerError when too few sites answer, RefusedError when too few may take part or the folder is another
    campaign's, DataError when the last checkpoint is damaged.
    """
    rounds = run.campaign.rounds.rounds
    state, records = begin(run, initial)
    members = Members()
    while state.round < rounds:
        members, replies = insist(run, members, state, "train", state.round + 1)
        state, record = finish(run.campaign, state, replies)
        record = {**record, **_phase(run)}
        save_round(run.run_dir / CHECKPOINTS, state, record)
        records = publish(run, records, record)
    final = ended(run.campaign, state)
    if not records or records[-1]["round"] <= rounds:
        _, replies = insist(run, members, final, "evaluate", rounds + 1)
        records = publish(run, records, replies.record(**_phase(run)))
    return CampaignResult(final, records)


def ended(campaign: CampaignConfig, state: FederationState) -> FederationState:
    """The state that the last round leads to: a generator's phase ends with the moving average of its weights."""
    if not campaign.generates or "ema" not in state.optimiser:
        return state
    return replace(state, weights=dict(state.optimiser["ema"]))


def _phase(run: Run) -> dict[str, str]:
    return {"phase": run.phase} if run.phase else {}


def begin(run: Run, initial: Callable[[], Arrays]) -> tuple[FederationState, tuple[RoundRecord, ...]]:
    """The state to go on from, and the records that belong to it; lines of rounds that were lost are forgotten."""
    digest = campaign_digest(run.campaign)
    checkpoint = load_latest(run.run_dir / CHECKPOINTS, digest)
    if checkpoint is None:
        weights = initial()
        config = run.campaign.strategy
        state = FederationState(
            campaign=run.campaign.name,
            config_digest=digest,
            architecture_digest=architecture_digest(weights),
            round=0,
            weights=weights,
            optimiser=STRATEGIES[config.kind].init(learnt_and_prior(weights)[0], config),
        )
        return state, ()
    state, rounds = checkpoint.state, run.campaign.rounds.rounds
    run.on_event(CampaignResumed(state.round))
    last = rounds + 1 if state.round == rounds else state.round
    known = {record["round"]: record for record in read_records(run.run_dir) if record["round"] <= last}
    known[state.round] = checkpoint.record
    records = tuple(known[number] for number in sorted(known))
    write_records(run.run_dir, records)  # at once: killed again in the next round, the checkpoint after it lacks this
    return state, records


def insist(run: Run, members: Members, state: FederationState, action: Action, number: int) -> tuple[Members, Replies]:
    """One round, tried again where too few answer; raises PeerError or RefusedError after the last try."""
    rounds = run.campaign.rounds
    attempts = rounds.retries + 1
    for attempt in range(1, attempts + 1):
        try:
            members = admit(run, members, state)
            replies = attempt_round(run, members, state, action, number, attempt=attempt)
            return _still_in(run, members, replies), replies
        except PeerError as error:
            members = _still_in(run, members, None)
            run.on_event(RoundFailed(number, str(error), attempts - attempt))
            reason = str(error)
    raise PeerError(f"round {number} failed {attempts} times; last: {reason}; bring the sites back, then resume")


def _still_in(run: Run, members: Members, replies: Replies | None) -> Members:
    """Where the handshake brings what is frozen, whoever dropped out is asked again: it may have lost it."""
    if not run.frozen.digest:
        return members
    dropped = replies.dropped if replies else {card.site for card in members.cards.values()}
    return replace(members, cards={peer: card for peer, card in members.cards.items() if card.site not in dropped})


def admit(run: Run, members: Members, state: FederationState) -> Members:
    rounds = run.campaign.rounds
    start_up_s = 0.0 if members.cards else run.start_up_s
    return join(
        run.link,
        plan_record(plan_for(state, "handshake", state.round + 1, run.frozen)),
        members,
        Admission(
            state.config_digest,
            state.architecture_digest,
            run.allowed,
            rounds.quorum,
            rounds.join_deadline_s + start_up_s,
        ),
        on_event=run.on_event,
        now=run.now,
    )


@dataclass(slots=True)
class Replies:
    """What one attempt at a round has brought so far."""

    round: int
    total: WeightedSum
    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    training: dict[str, Mapping[str, float]] = field(default_factory=dict)
    evaluation: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)

    def record(self, **more: Any) -> RoundRecord:
        return {
            "round": self.round,
            "seconds": round(self.seconds, 3),
            "participants": sorted(self.evaluation),
            "dropped": dict(sorted(self.dropped.items())),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "num_samples": dict(sorted(self.total.samples.items())),
            "images": dict(sorted(self.total.images.items())),
            "training": dict(sorted(self.training.items())),
            "evaluation": dict(sorted(self.evaluation.items())),
            **more,
        }


def attempt_round(
    run: Run, members: Members, state: FederationState, action: Action, number: int, *, attempt: int
) -> Replies:
    """Send the plan to every joined site that is connected, and take replies until all came, or quorum and grace,
    or the deadline. Raises PeerError, naming who is missing and why, when fewer than the quorum count.
    """
    rounds, training = run.campaign.rounds, run.campaign.training
    began = time.perf_counter()
    sites = online(members, run.link.peers())
    run.on_event(RoundStarted(number, rounds.rounds, attempt, tuple(sites)))
    promotes = run.campaign.strategy.promotion != "none"
    max_samples = training.local_steps * run.campaign.images_per_step
    total = WeightedSum(state.weights, round=number, max_samples=max_samples, promotes=promotes)
    replies = Replies(number, total)
    absent = {card.site for card in members.cards.values()} - sites.keys()
    replies.dropped.update(dict.fromkeys(absent, "not connected"))

    plan = plan_record(plan_for(state, action, number, run.frozen))
    names = {peer.id: site for site, peer in sites.items()}
    pending = {ticket: names[peer.id] for ticket, peer in run.link.send(action, plan, list(sites.values())).items()}
    replies.dropped.update(dict.fromkeys(sites.keys() - set(pending.values()), "could not be sent to"))
    replies.bytes_down = plan.num_bytes * len(pending)
    del plan

    patience_s = rounds.round_deadline_s * (max(len(pending), 1) if run.in_turns else 1)
    deadline = run.now() + patience_s
    waited_for = f"within {patience_s:g} s"
    in_grace = False
    while pending and run.now() < deadline:
        answer = run.link.receive(pending, min(WAIT_S, deadline - run.now()))
        if answer is None or answer[0] not in pending:  # nothing yet, or nothing that is waited for
            continue
        site = pending.pop(answer[0])
        take(run, replies, site, answer[1], action)
        del answer  # one reply in memory at a time
        if not in_grace and not run.in_turns and len(replies.evaluation) >= rounds.quorum:
            in_grace = True
            deadline = min(deadline, run.now() + rounds.grace_s)
            waited_for = f"within {rounds.grace_s:g} s after the quorum"
    for site in pending.values():
        replies.dropped[site] = f"no reply {waited_for}"
    replies.seconds = time.perf_counter() - began
    if len(replies.evaluation) < rounds.quorum:
        missing = "; ".join(f"{site}: {reason}" for site, reason in sorted(replies.dropped.items()))
        raise PeerError(f"expected {rounds.quorum} sites or more, got {len(replies.evaluation)}. {missing}")
    return replies


def take(run: Run, replies: Replies, site: str, reply: Record | Failure, action: Action) -> None:
    """Count one reply in, or drop it with the reason; a dropped one leaves the sum as it was."""
    try:
        if isinstance(reply, Failure):
            raise PeerError(reply.reason)
        replies.bytes_up += reply.num_bytes
        update = read_answer(reply)
        if isinstance(update, Refusal):
            raise RefusedError(update.reason)
        if not isinstance(update, ReceivedUpdate):
            raise DataError("answered a plan with something else than an update")
        if action == "train":
            equal = run.campaign.strategy.weight_by == "equal"
            replies.total.add(update, site=site, equal=equal)
            replies.training[site] = update.training
        check_sender(update, site, replies.round)
        replies.evaluation[site] = metrics_json(update.evaluation)
    except (DataError, PeerError, RefusedError) as error:
        replies.dropped[site] = str(error)
    run.on_event(SiteReplied(site, replies.round, replies.dropped.get(site, "")))


def finish(campaign: CampaignConfig, state: FederationState, replies: Replies) -> tuple[FederationState, RoundRecord]:
    """The state one round on, and the round's record; raises DataError rather than spread weights that overflowed, or
    call it a round where no site had anything to learn from.

    The mean mask map is a statistic: it becomes the mean of the sites' maps, and no strategy or gate sees it.
    """
    if not any(replies.total.samples.values()):
        raise DataError(
            f"no site has anything to learn from under learn={campaign.learn.kind}: round {replies.round} would leave "
            "the weights as they were; bring a site with the labels that it asks for, or choose learn=multimix"
        )
    mean, prior_change = learnt_and_prior(replies.total.mean())
    weights, prior = learnt_and_prior(state.weights)
    config = campaign.strategy
    more: dict[str, Any] = {}
    with np.errstate(over="ignore", invalid="ignore"):  # refused below, in words
        if config.promotion != "none":
            mean, promotion = promoted(mean, replies.total.added_mean(), config.promotion)
            more["promotion"] = asdict(promotion)
        after = STRATEGIES[config.kind].apply(replace(state, weights=weights), mean, config)
    assert after.round == replies.round, (after.round, replies.round)
    moved = after.weights | add(prior, prior_change)
    after = replace(after, weights={name: moved[name] for name in state.weights})
    if campaign.generates and campaign.generate.ema > 0:
        ema = averaged(state.optimiser.get("ema"), after.weights, after.round, campaign.generate.ema)
        after = replace(after, optimiser={**after.optimiser, "ema": ema})
    for name, values in after.weights.items():
        if not np.isfinite(values).all():
            raise DataError(
                f"round {replies.round} made {name!r} overflow; lower training.learning_rate or "
                "strategy.server_learning_rate and resume"
            )
    return after, replies.record(update_norm=norm(mean), **more)


def publish(run: Run, records: tuple[RoundRecord, ...], record: RoundRecord) -> tuple[RoundRecord, ...]:
    records = (*records, record)
    write_records(run.run_dir, records)
    run.on_event(RoundFinished(record["round"], run.campaign.rounds.rounds, record))
    return records
