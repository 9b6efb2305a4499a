"""A plan and sites in, their answers one at a time out: how long the coordinator waits, and who is dropped and why.

A reply counts by the ticket that was handed out for it: what comes late, for an earlier round or attempt, or twice, is
not looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from server.membership import WAIT_S
from server.plan import Frozen
from server.records import RoundRecord
from shared.config import CampaignConfig
from shared.errors import DataError, PeerError, RefusedError
from shared.events import Event, SiteReplied
from shared.types import Action, Arrays
from shared.wire.link import Failure, Link, Peer
from shared.wire.messages import Answer, Record, Refusal, read_answer


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
    manifest_digest: str = ""
    """Of the signed manifest that the sites approved; empty where there is none."""


class Total(Protocol):
    """What the updates of a round come to, whether or not a single one can be seen."""

    @property
    def samples(self) -> Mapping[str, int]: ...
    @property
    def images(self) -> Mapping[str, Mapping[str, int]]:
        """By site: images that moved each part."""
        ...

    def mean(self) -> Arrays:
        """Once, last."""
        ...

    def added_mean(self) -> Arrays:
        """Of what recognition added to the enhancer; once, last."""
        ...

    def record(self) -> Mapping[str, Any]:
        """What the round's record tells of the updates; after `mean`."""
        ...


@dataclass(slots=True)
class Replies:
    """What one attempt at a round has brought so far."""

    round: int
    total: Total
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


def ask(
    run: Run,
    sites: Mapping[str, Peer],
    action: Action,
    plan: Record,
    replies: Replies,
    take: Callable[[str, Answer], None],
    *,
    enough: int,
    patience_s: float,
) -> tuple[str, ...]:
    """Send the plan and hand each answer to `take`, until all came, or `enough` and the grace, or the deadline.

    Returns the sites whose answer counts. `take` raises DataError, PeerError or RefusedError for one that does not,
    and must leave no trace of it; the others stand in `replies.dropped` with the reason.
    """
    names = {peer.id: site for site, peer in sites.items()}
    pending = {ticket: names[peer.id] for ticket, peer in run.link.send(action, plan, list(sites.values())).items()}
    replies.dropped.update(dict.fromkeys(sites.keys() - set(pending.values()), "could not be sent to"))
    replies.bytes_down += plan.num_bytes * len(pending)
    del plan

    patience_s *= max(len(pending), 1) if run.in_turns else 1
    deadline = run.now() + patience_s
    waited_for = f"within {patience_s:g} s"
    counted: list[str] = []
    in_grace = False
    while pending and run.now() < deadline:
        answer = run.link.receive(pending, min(WAIT_S, deadline - run.now()))
        if answer is None or answer[0] not in pending:  # nothing yet, or nothing that is waited for
            continue
        site = pending.pop(answer[0])
        if _counts(run, replies, site, answer[1], action, take):
            counted.append(site)
        del answer  # one reply in memory at a time
        if not in_grace and not run.in_turns and len(counted) >= enough:
            in_grace = True
            deadline = min(deadline, run.now() + run.campaign.rounds.grace_s)
            waited_for = f"within {run.campaign.rounds.grace_s:g} s after the quorum"
    for site in pending.values():
        replies.dropped[site] = f"no reply {waited_for}"
    return tuple(counted)


def _counts(
    run: Run,
    replies: Replies,
    site: str,
    reply: Record | Failure,
    action: Action,
    take: Callable[[str, Answer], None],
) -> bool:
    try:
        if isinstance(reply, Failure):
            raise PeerError(reply.reason)
        replies.bytes_up += reply.num_bytes
        answer = read_answer(reply)
        if isinstance(answer, Refusal):
            raise RefusedError(answer.reason)
        take(site, answer)
    except (DataError, PeerError, RefusedError) as error:
        replies.dropped[site] = str(error)
    reason = replies.dropped.get(site, "")
    if reason or action in ("train", "evaluate"):
        run.on_event(SiteReplied(site, replies.round, reason))
    return not reason


def require(enough: int, counted: int, replies: Replies) -> None:
    """PeerError, naming who is missing and why, when fewer than `enough` count."""
    if counted < enough:
        missing = "; ".join(f"{site}: {reason}" for site, reason in sorted(replies.dropped.items()))
        raise PeerError(f"expected {enough} sites or more, got {counted}. {missing}")
