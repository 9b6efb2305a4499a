"""One round under secure aggregation: three messages to every site, and the sum of their updates but no update.

    offer     every connected site: fresh keys, and shares of its secrets for each other site
              a site that does not offer is left out, and the others offer again for the cohort that is left
    train     plan, weights and all offers -> masked updates, added up one at a time as whole numbers
    unmask    who survived -> what takes the masks off the sum; after that the masks of the lost ones, too

shared/secagg/protocol.py says what each message holds and what it can tell. A site may be lost at any stage: while the
quorum and the protocol's threshold hold the round goes on without it (a site that is lost in the last stage has its
update in the sum), else it fails with PeerError and is tried again in a session of its own; a sum that would be wrong
is never opened, for what is revealed is held against what was offered.

What needs a single update is not done here: a site keeps the norm bound itself, and that the mean mask map is one is
seen of the sum of all. Counts, losses and metrics stay visible.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from server.asking import Replies, Run, ask, require
from server.collect import check_counts, check_prior, check_sender, check_shapes
from server.plan import plan_for
from shared.checkpoint import FederationState
from shared.config import CampaignConfig
from shared.errors import DataError
from shared.masking import grid_of, most_samples, start_digest, weights_of
from shared.secagg.fixed_point import Grid, Vector, add_packed, mean
from shared.secagg.protocol import (
    Offer,
    Reveal,
    Terms,
    check_offer,
    check_reveal,
    new_session,
    threshold,
    unmask,
)
from shared.types import Action, Arrays, Offered, Revealed
from shared.weights import ENHANCER, part_of, parts_of
from shared.wire.link import Peer
from shared.wire.messages import ADDED, Answer, ReceivedMasked, Record, metrics_json, plan_record


def masked_round(
    run: Run, sites: Mapping[str, Peer], state: FederationState, number: int, dropped: dict[str, str]
) -> Replies:
    """One attempt; `sites` are those that joined and are connected. Raises PeerError when too few go all the way."""
    total = MaskedSum(state.weights, run.campaign)
    replies = Replies(number, total, dropped=dropped)
    terms, offers = _offers(run, sites, state, replies)
    survivors = _updates(run, sites, state, replies, total, terms, offers)
    reveals = _reveals(run, sites, state, replies, terms, survivors)
    total.open(unmask(total.vector, terms, offers, survivors, reveals), terms)
    total.told = {"sites": len(survivors), "offered": len(terms.cohort), "revealed": len(reveals)}
    return replies


def _offers(
    run: Run, sites: Mapping[str, Peer], state: FederationState, replies: Replies
) -> tuple[Terms, dict[str, Offer]]:
    """A session in which every site of the cohort has offered: sites mask for a whole cohort or not at all."""
    campaign, cohort = run.campaign, dict(sites)
    start = start_digest(state.weights, run.frozen.digest)
    while True:  # with fewer sites each time
        require(campaign.rounds.quorum, len(cohort), replies)
        minimum = campaign.secagg.minimum_cohort
        terms = Terms(new_session(), state.config_digest, replies.round, tuple(sorted(cohort)), minimum, start)
        offers: dict[str, Offer] = {}

        def take(site: str, answer: Answer, terms: Terms = terms, offers: dict[str, Offer] = offers) -> None:
            if not isinstance(answer, Offered):
                raise DataError("answered a plan to offer with something else than an offer")
            offer = Offer.from_json(answer.offer)
            check_sender(answer, site, replies.round)
            if offer.site != site:
                raise DataError(f"expected an offer of {site}, got one of {offer.site}")
            check_offer(offer, terms)
            offers[site] = offer

        plan = _plan(run, state, replies.round, "offer", terms=terms.to_json())
        offered = ask(
            run, cohort, "offer", plan, replies, take,
            enough=campaign.rounds.quorum, patience_s=campaign.rounds.join_deadline_s,
        )  # fmt: skip
        if len(offered) == len(cohort):
            return terms, offers
        cohort = {site: cohort[site] for site in sorted(offered)}


def _updates(
    run: Run,
    sites: Mapping[str, Peer],
    state: FederationState,
    replies: Replies,
    total: MaskedSum,
    terms: Terms,
    offers: Mapping[str, Offer],
) -> tuple[str, ...]:
    """The sites whose masked updates are in `total`, in the order of their names."""

    def take(site: str, answer: Answer) -> None:
        if not isinstance(answer, ReceivedMasked):
            raise DataError("answered a plan to train under masks with something else than a masked update")
        check_sender(answer.head, site, replies.round)
        if answer.session != terms.session:
            raise DataError(f"expected an update of session {terms.session[:8]}, got one of another")
        total.add(answer, site)
        replies.training[site] = answer.head.training
        replies.evaluation[site] = metrics_json(answer.head.evaluation)

    rounds = run.campaign.rounds
    enough = max(rounds.quorum, threshold(len(terms.cohort), terms.minimum))
    offered = {site: offer.to_json() for site, offer in offers.items()}
    plan = _plan(run, state, replies.round, "train", terms=terms.to_json(), offers=offered)
    cohort = {site: sites[site] for site in terms.cohort}
    counted = ask(run, cohort, "train", plan, replies, take, enough=enough, patience_s=rounds.round_deadline_s)
    require(enough, len(counted), replies)
    return tuple(sorted(counted))


def _reveals(
    run: Run,
    sites: Mapping[str, Peer],
    state: FederationState,
    replies: Replies,
    terms: Terms,
    survivors: tuple[str, ...],
) -> dict[str, Reveal]:
    reveals: dict[str, Reveal] = {}

    def take(site: str, answer: Answer) -> None:
        if not isinstance(answer, Revealed):
            raise DataError("answered a plan to unmask with something else than a reveal")
        reveal = Reveal.from_json(answer.reveal)
        check_sender(answer, site, replies.round)
        if reveal.site != site:
            raise DataError(f"expected a reveal of {site}, got one of {reveal.site}")
        check_reveal(reveal, terms, survivors)
        reveals[site] = reveal

    enough = threshold(len(terms.cohort), terms.minimum)
    asked = {site: sites[site] for site in survivors}
    plan = _plan(run, state, replies.round, "unmask", terms=terms.to_json(), survivors=list(survivors))
    last = Replies(replies.round, replies.total)  # who is silent now is in the sum all the same
    ask(run, asked, "unmask", plan, last, take, enough=enough, patience_s=run.campaign.rounds.join_deadline_s)
    replies.bytes_up += last.bytes_up
    replies.bytes_down += last.bytes_down
    require(enough, len(reveals), last)
    return reveals


def _plan(run: Run, state: FederationState, number: int, action: Action, **secagg: Any) -> Record:
    plan = plan_for(state, action, number, run.frozen, manifest_digest=run.manifest_digest, secagg=secagg)
    return plan_record(plan)


class MaskedSum:
    """The running sum of one session's masked updates, modulo 2^40: one vector, whatever the number of sites.

    An update is checked whole before it is added: (1) not seen before   (2) counts as of a visible one   (3) bytes that
    stand for the names and shapes of the weights, in their order, and for what was added where the campaign promotes
    (4) as many bytes as that takes. What is in it nobody can check.
    """

    def __init__(self, weights: Arrays, campaign: CampaignConfig) -> None:
        self.samples: dict[str, int] = {}
        self.images: dict[str, Mapping[str, int]] = {}
        self.told: Mapping[str, int] = {}
        """What the record says of the session."""
        self._campaign = campaign
        self._parts = frozenset(parts_of(weights))
        self._priors = {name: values for name, values in weights.items() if part_of(name) == "prior"}
        self._shapes = {name: values.shape for name, values in weights.items()}
        if campaign.strategy.promotion != "none":
            self._shapes |= {ADDED + name: weights[name].shape for name in weights if name.startswith(ENHANCER)}
        self._total_weights = dict.fromkeys(self._shapes, 0)
        self.vector: Vector = np.zeros(sum(int(np.prod(shape)) for shape in self._shapes.values()), np.uint64)
        self._grid: Grid | None = None
        self._mean: Arrays = {}

    def add(self, update: ReceivedMasked, site: str) -> None:
        """Add the update of `site`; DataError, and nothing added, when it is not in order."""
        if site in self.samples:  # (1)
            raise DataError("an update of this round was already received")
        check_counts(update.head, self._parts, most_samples(self._campaign))  # (2)
        check_shapes(self._shapes, update.head.shapes)  # (3)
        if list(update.head.shapes) != list(self._shapes):
            raise DataError("the masked values stand for the arrays of the weights in another order")
        add_packed(self.vector, update.masked)  # (4)
        head = update.head
        for name, weight in weights_of(self._shapes, head.num_samples, head.images, self._campaign).items():
            self._total_weights[name] += weight
        self.samples[site] = head.num_samples
        self.images[site] = dict(head.images)

    def open(self, opened: Vector, terms: Terms) -> None:
        """Take the sum without masks; raises DataError where it leads to no mask map."""
        self._grid = grid_of(self._campaign, len(terms.cohort))
        self.vector = np.zeros(0, np.uint64)
        self._mean = mean(opened, self._shapes, self._total_weights, self._grid)
        for name, prior in self._priors.items():
            check_prior(name, prior + self._mean[name], self._total_weights[name])

    def mean(self) -> Arrays:
        return {name: values for name, values in self._mean.items() if not name.startswith(ADDED)}

    def added_mean(self) -> Arrays:
        return {name.removeprefix(ADDED): values for name, values in self._mean.items() if name.startswith(ADDED)}

    def record(self) -> dict[str, Any]:
        assert self._grid is not None, "opened before it is told of"
        return {"secagg": {**self.told, "step": self._grid.step}}
