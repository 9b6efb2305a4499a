"""A cohort of sites, a coordinator that relays and keeps everything it receives, and vectors to add."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from shared.secagg import fixed_point
from shared.secagg.fixed_point import Vector
from shared.secagg.protocol import Offer, Reveal, SiteSession, Terms, mask, new_session, offer, reveal, unmask
from shared.trust.identity import Identity, PublicIdentity, create_identity

CAMPAIGN = "c" * 64
MODULO = np.uint64(2**fixed_point.BITS - 1)


@dataclass
class Cohort:
    identities: dict[str, Identity]
    peers: dict[str, PublicIdentity]
    terms: Terms
    sessions: dict[str, SiteSession] = field(default_factory=dict)
    offers: dict[str, Offer] = field(default_factory=dict)
    masked: dict[str, bytes] = field(default_factory=dict)
    reveals: dict[str, Reveal] = field(default_factory=dict)
    """All that the coordinator receives is in the last three."""

    def total(self, survivors: Iterable[str], count: int) -> Vector:
        total = np.zeros(count, np.uint64)
        for name in survivors:
            fixed_point.add_packed(total, self.masked[name])
        return total

    def mask(self, vectors: dict[str, Vector]) -> None:
        for name, vector in vectors.items():
            session, data = mask(wired(self.sessions[name]), offers_over_the_wire(self), vector, self.identities[name])
            self.sessions[name], self.masked[name] = session, data

    def reveal(self, survivors: Sequence[str], answering: Iterable[str]) -> None:
        for name in answering:
            self.sessions[name], answer = reveal(wired(self.sessions[name]), survivors)
            self.reveals[name] = Reveal.from_json(json.loads(json.dumps(answer.to_json())))

    def opened(self, survivors: Sequence[str], count: int) -> Vector:
        return unmask(self.total(survivors, count), self.terms, self.offers, survivors, self.reveals)


def names(n: int) -> tuple[str, ...]:
    return tuple(f"site-{i:02d}" for i in range(n))


def make(n: int, minimum: int = 3, *, round: int = 1, of: Cohort | None = None) -> Cohort:
    """Sites that have offered; `of` lends its identities to another session."""
    identities = of.identities if of else {name: create_identity(name) for name in names(n)}
    peers = of.peers if of else {name: identity.public for name, identity in identities.items()}
    cohort = Cohort(identities, peers, Terms(new_session(), CAMPAIGN, round, names(n), minimum))
    for name in cohort.terms.cohort:
        cohort.sessions[name], cohort.offers[name] = offer(identities[name], peers, cohort.terms)
    return cohort


def offers_over_the_wire(cohort: Cohort) -> dict[str, Offer]:
    return {name: Offer.from_json(json.loads(json.dumps(offer.to_json()))) for name, offer in cohort.offers.items()}


def wired(session: SiteSession) -> SiteSession:
    """As a site finds it in its folder, in the process that answers the next message."""
    return SiteSession.from_json(json.loads(json.dumps(session.to_json())))


def random_vectors(sites: Iterable[str], count: int, seed: int = 0) -> dict[str, Vector]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 2**fixed_point.BITS, count, dtype=np.uint64) for name in sites}


def plain_sum(vectors: dict[str, Vector], survivors: Iterable[str]) -> Vector:
    """Exact: 2^24 such integers fit into 64 bits."""
    chosen = list(survivors)
    assert 0 < len(chosen) < 2**24
    total = sum((vectors[name] for name in chosen[1:]), vectors[chosen[0]])
    return np.asarray(total & MODULO)
