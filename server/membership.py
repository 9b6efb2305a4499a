"""Peers in, sites that may take part out: the handshake before round 1, and for whoever comes later.

A site card is accepted through numbered checks, in this order:
(1) the name is the one that the peer was registered under, where it was   (2) the name is on the campaign's list
(3) no other connected peer bears it   (4) same campaign digest   (5) same architecture digest.
A refusal names the site and the reason in one line, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from shared.errors import DataError, PeerError, RefusedError, WardroundError
from shared.events import Event, SiteJoined, SiteRefused
from shared.types import SiteCard
from shared.wire.link import Failure, Link, Peer
from shared.wire.messages import Record, Refusal, read_answer

WAIT_S = 2.0
"""Longest single wait: how late a deadline or a new peer is noticed."""


@dataclass(frozen=True, slots=True)
class Admission:
    """Who may take part, and how long to wait for them."""

    config_digest: str
    architecture_digest: str
    allowed: frozenset[str] | None  # None: every site with the right digests
    quorum: int
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Members:
    """Peers by their number: cards of those that joined, reasons of those refused, tickets of those asked."""

    cards: Mapping[int, SiteCard] = field(default_factory=dict)
    refused: Mapping[int, WardroundError] = field(default_factory=dict)
    asked: Mapping[str, Peer] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)
    """Whose card was lost on the way; they are asked again after a wait."""


def online(members: Members, peers: Sequence[Peer]) -> dict[str, Peer]:
    """Joined sites that are connected now, in the order of their names: the order in which updates are added."""
    here = {members.cards[peer.id].site: peer for peer in peers if peer.id in members.cards}
    return dict(sorted(here.items()))


def join(
    link: Link,
    handshake: Record,
    members: Members,
    admission: Admission,
    *,
    on_event: Callable[[Event], None],
    now: Callable[[], float],
) -> Members:
    """Ask every new peer for its card and wait: for all at first, later only until the quorum is connected.

    Where fewer than the quorum are there by the deadline, raises DataError or RefusedError if sites were refused (by
    what they were refused for), else PeerError.
    """
    first = not members.cards
    members = replace(members, refused={})  # an operator may have put it right since
    deadline = now() + admission.deadline_s
    while True:
        peers = link.peers()
        members = _ask(link, handshake, members, peers, admission)
        complete = _is_complete(members, peers, admission, first=first)
        left_s = 0.0 if complete else deadline - now()
        answer = link.receive(members.asked, max(0.0, min(WAIT_S, left_s)))
        if answer is not None and answer[0] in members.asked:
            ticket, reply = answer
            members = _settle(members, ticket, reply, admission, peers, on_event=on_event)
        elif complete:
            return members
        elif now() >= deadline or _is_hopeless(members, peers, admission):
            return _with_quorum(members, link.peers(), admission)
        else:
            members = replace(members, failed={})


def _ask(link: Link, handshake: Record, members: Members, peers: Sequence[Peer], admission: Admission) -> Members:
    asked = {peer.id for peer in members.asked.values()}
    new = [
        peer
        for peer in peers
        if peer.id not in asked
        and peer.id not in members.cards
        and peer.id not in members.refused
        and peer.id not in members.failed
        and (admission.allowed is None or not peer.name or peer.name in admission.allowed)
    ]
    if not new:
        return members
    return replace(members, asked={**members.asked, **link.send("handshake", handshake, new)})


def _is_complete(members: Members, peers: Sequence[Peer], admission: Admission, *, first: bool) -> bool:
    here = online(members, peers)
    if len(here) < admission.quorum:
        return False
    # Later rounds do not wait for a newcomer's card: it is settled when it comes.
    return not first or (not members.asked and len(here) + len(members.refused) >= len(admission.allowed or ()))


def _is_hopeless(members: Members, peers: Sequence[Peer], admission: Admission) -> bool:
    """So many of the campaign's sites were refused that no wait can bring the quorum."""
    if admission.allowed is None:
        return False
    refused = {peer.name for peer in peers if peer.id in members.refused} & admission.allowed
    return len(admission.allowed) - len(refused) < admission.quorum


def _settle(
    members: Members,
    ticket: str,
    reply: Record | Failure,
    admission: Admission,
    peers: Sequence[Peer],
    *,
    on_event: Callable[[Event], None],
) -> Members:
    peer = members.asked[ticket]
    asked = {other: of for other, of in members.asked.items() if other != ticket}
    if isinstance(reply, Failure):
        reason = f"{peer.name or 'a peer'} gave no site card: {reply.reason}"
        return replace(members, asked=asked, failed={**members.failed, peer.id: reason})
    try:
        card = _checked(reply, peer, admission, online(members, peers))
    except (DataError, RefusedError) as error:
        on_event(SiteRefused(_name(reply, peer), str(error)))
        return replace(members, asked=asked, refused={**members.refused, peer.id: error})
    on_event(SiteJoined(card.site, card.counts, card.audit))
    return replace(members, asked=asked, cards={**members.cards, peer.id: card})


def _checked(reply: Record, peer: Peer, admission: Admission, here: Mapping[str, Peer]) -> SiteCard:
    try:
        card = read_answer(reply)
    except DataError as error:
        raise DataError(f"{peer.name or 'a peer'} sent no readable site card: {error}") from None
    if isinstance(card, Refusal):
        # A site without usable data is bad data here too, whoever found it.
        kind = DataError if card.error == DataError.__name__ else RefusedError
        raise kind(f"{peer.name or 'a site'} declined: {card.reason}")
    if not isinstance(card, SiteCard):
        raise DataError(f"{peer.name or 'a peer'} answered the handshake with something else than its card")
    site = card.site
    if peer.name and site != peer.name:  # (1)
        raise RefusedError(f"{site} is registered as {peer.name}; the site's name must be the registered one")
    if admission.allowed is not None and site not in admission.allowed:  # (2)
        raise RefusedError(f"{site} is not on the list of this campaign's sites; add it there if it should be")
    if site in here and here[site] != peer:  # (3)
        raise RefusedError(f"{site} is already connected as another peer; every site needs a name of its own")
    if card.config_digest != admission.config_digest:  # (4)
        raise RefusedError(
            f"{site} has campaign digest {card.config_digest[:12]}, expected {admission.config_digest[:12]}; "
            "the site must approve the coordinator's campaign file"
        )
    if card.architecture_digest != admission.architecture_digest:  # (5)
        raise RefusedError(
            f"{site} builds architecture {card.architecture_digest[:12]}, expected "
            f"{admission.architecture_digest[:12]}; install the same version of Wardround"
        )
    return card


def _name(reply: Record, peer: Peer) -> str:
    try:
        answer = read_answer(reply)
    except DataError:
        return peer.name
    return answer.site if isinstance(answer, SiteCard) else peer.name


def _with_quorum(members: Members, peers: Sequence[Peer], admission: Admission) -> Members:
    here = online(members, peers)
    if len(here) >= admission.quorum:
        return members
    found = f"expected at least {admission.quorum} sites, got {len(here)} ({', '.join(here) or 'none'})"
    if members.refused:
        reasons = list(members.refused.values())
        kind = DataError if all(isinstance(error, DataError) for error in reasons) else RefusedError
        waiting = ", ".join(sorted(peer.name for peer in members.asked.values() if peer.name))
        unheard = f"; no answer yet from {waiting}" if waiting else ""
        raise kind(f"{found}; {'; '.join(map(str, reasons))}{unheard}")
    missing = sorted((admission.allowed or frozenset()) - here.keys())
    who = f"; missing: {', '.join(missing)}" if missing else ""
    who += "".join(f"; {reason}" for reason in members.failed.values())
    raise PeerError(f"{found} within {admission.deadline_s:g} s{who}; start the sites, or raise round.join_deadline_s")
