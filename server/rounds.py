"""A campaign and a link in, a trained federation on disk out: the whole of a round stands on this page.

    handshake -> for each round:  plan -> send -> streamed weighted sum -> promotion -> strategy -> checkpoint -> record
              -> closing evaluation of the final weights

Evaluation rides on the train message and judges the weights that came in, so a round costs one download; the closing
round only evaluates. A round with fewer updates than the quorum fails, is tried again `rounds.retries` times and then
ends the run with PeerError: weights never go on without the round that they are called after. Under secure aggregation
a round has three stages, on a page of their own (server/masked.py).

Nothing here knows Flower, torch, or one site's data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from server.asking import Replies, Run, ask, require
from server.collect import check_sender, total_of
from server.membership import Admission, Members, join, online
from server.plan import plan_for
from server.records import RoundRecord, read_records, write_records
from server.strategies import STRATEGIES
from server.strategies.promotion import promoted
from shared.checkpoint import FederationState, load_latest, save_round
from shared.config import CampaignConfig, campaign_digest
from shared.errors import DataError, PeerError
from shared.events import CampaignResumed, RoundFailed, RoundFinished, RoundStarted
from shared.generate.average import averaged
from shared.types import Action, Arrays
from shared.weights import add, architecture_digest, learnt_and_prior, norm
from shared.wire.link import Peer
from shared.wire.messages import Answer, ReceivedUpdate, metrics_json, plan_record

CHECKPOINTS = "checkpoints"


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
        plan_record(plan_for(state, "handshake", state.round + 1, run.frozen, manifest_digest=run.manifest_digest)),
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


def attempt_round(
    run: Run, members: Members, state: FederationState, action: Action, number: int, *, attempt: int
) -> Replies:
    """Send the plan to every joined site that is connected, and take replies until all came, or quorum and grace,
    or the deadline. Raises PeerError, naming who is missing and why, when fewer than the quorum count.
    """
    began = time.perf_counter()
    sites = online(members, run.link.peers())
    run.on_event(RoundStarted(number, run.campaign.rounds.rounds, attempt, tuple(sites)))
    absent = {card.site for card in members.cards.values()} - sites.keys()
    dropped = dict.fromkeys(absent, "not connected")
    if action == "train" and run.campaign.secagg.masked:
        from server.masked import masked_round

        replies = masked_round(run, sites, state, number, dropped)
    else:
        replies = visible_round(run, sites, state, action, number, dropped)
    replies.seconds = time.perf_counter() - began
    return replies


def visible_round(
    run: Run, sites: Mapping[str, Peer], state: FederationState, action: Action, number: int, dropped: dict[str, str]
) -> Replies:
    """One message to every site; the coordinator decodes one update at a time."""
    rounds, equal = run.campaign.rounds, run.campaign.strategy.weight_by == "equal"
    total = total_of(state.weights, number, run.campaign)
    replies = Replies(number, total, dropped=dropped)

    def take(site: str, answer: Answer) -> None:
        if not isinstance(answer, ReceivedUpdate):
            raise DataError("answered a plan with something else than an update")
        check_sender(answer, site, number)
        if action == "train":
            total.add(answer, site=site, equal=equal)
            replies.training[site] = answer.training
        replies.evaluation[site] = metrics_json(answer.evaluation)

    plan = plan_record(plan_for(state, action, number, run.frozen, manifest_digest=run.manifest_digest))
    counted = ask(run, sites, action, plan, replies, take, enough=rounds.quorum, patience_s=rounds.round_deadline_s)
    require(rounds.quorum, len(counted), replies)
    return replies


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
    return after, replies.record(update_norm=norm(mean), **replies.total.record(), **more)


def publish(run: Run, records: tuple[RoundRecord, ...], record: RoundRecord) -> tuple[RoundRecord, ...]:
    records = (*records, record)
    write_records(run.run_dir, records)
    run.on_event(RoundFinished(record["round"], run.campaign.rounds.rounds, record))
    return records
