"""What a site learned in, what may be seen of it out: cut to the norm bound, noised, and masked, as was agreed.

The order: (1) the norm bound (strategy.norm_bound)   (2) the site's noise (privacy=site)   (3) integers on the agreed
grid under masks (secagg=masked). A campaign that agreed on masks never leaves unmasked: a plan without a session is
refused. What is measured stays beside the masks in the open, and is for client/policy.py to judge.

Before and after a masked update a site answers two messages of its own, which need no data: an offer of keys, and, when
the coordinator says whose updates it has, what removes the masks from their sum (shared/secagg/protocol.py says what
each side may learn).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from client import sessions
from client.site import SiteSetup
from shared.config import CampaignConfig
from shared.errors import DataError, RefusedError
from shared.types import Arrays, Offered, Plan, Revealed, SiteCard, Update
from shared.weights import learnt_and_prior, norm
from shared.wire.messages import (
    ADDED,
    MAX_SITES,
    Record,
    card_record,
    masked_record,
    offer_record,
    reveal_record,
    site_name,
    update_record,
)

if TYPE_CHECKING:
    from shared.secagg.protocol import Offer, Terms
    from shared.trust.identity import Identity

Done = SiteCard | Offered | Update | Revealed


def protected(
    done: Done, plan: Plan, setup: SiteSetup, campaign: CampaignConfig
) -> tuple[Record, Mapping[str, float | bool]]:
    """The message that `done` becomes, and what the site's own log says of it; `campaign` is the approved one, in the
    phase of the plan.

    Raises RefusedError for a plan without the session that the campaign needs, DataError for a value that does not fit
    the agreed range.
    """
    if isinstance(done, SiteCard):
        return card_record(done), {}
    if isinstance(done, Offered):
        return offer_record(done), {}
    if isinstance(done, Revealed):
        return reveal_record(done), {}
    if not done.difference:  # of a closing evaluation
        return update_record(done), {}
    bounded = within(done, campaign.strategy.norm_bound)  # (1)
    noised = _noised(bounded, setup, campaign)  # (2)
    masked = campaign.secagg.masked
    record = _masked(noised, plan, setup, campaign) if masked else update_record(noised)  # (3)
    return record, {"norm": norm(noised.difference), "masked": masked}


def within(update: Update, bound: float | None) -> Update:
    """The update scaled down to an L2 norm of `bound` over all that is learnt, where it is longer.

    The mean mask map is a statistic and is not learnt. What recognition added shrinks with the whole that it is a part
    of.
    """
    learnt, prior = learnt_and_prior(update.difference)
    length = norm(learnt)
    if bound is None or length <= bound:
        return update
    factor = np.float32(bound / length)
    return replace(
        update, difference={**_scaled(update.difference, factor), **prior}, added=_scaled(update.added, factor)
    )


def _scaled(arrays: Arrays, factor: np.float32) -> Arrays:
    return {name: np.asarray(values * factor) for name, values in arrays.items()}


def _noised(update: Update, setup: SiteSetup, campaign: CampaignConfig) -> Update:
    if campaign.privacy.kind != "site":
        return update
    from client import privacy

    noised = privacy.site_noised(update.difference, campaign, update.noise_multiplier)
    rehearsed = {privacy.COSINE: privacy.cosine(noised, update.difference)} if privacy.compares(setup) else {}
    return replace(update, difference=noised, training={**update.training, **rehearsed})


# ------------------------------------------------------------------------------------------------- secure aggregation


def check_can_mask(setup: SiteSetup, campaign: CampaignConfig) -> None:
    """At the handshake: RefusedError where a masked campaign would find this site without keys or peers."""
    if campaign.secagg.masked:
        _keys(setup)


def offered(plan: Plan, setup: SiteSetup, campaign: CampaignConfig) -> Offered:
    """A fresh session, kept here, and what the others need of it."""
    from shared.secagg.protocol import offer

    identity, home = _keys(setup)
    terms = terms_of(plan, setup, campaign)
    with sessions.alone(home, terms):
        session, made = offer(identity, setup.peers, terms)
        sessions.keep(home, session)
    return Offered(setup.name, plan.round, made.to_json())


def check_session(plan: Plan, setup: SiteSetup, campaign: CampaignConfig) -> None:
    """Before anything is computed or charged to a budget: a plan to train under masks is of the live session, and
    brings the weights that all sites of its cohort signed."""
    if not campaign.secagg.masked:
        return
    from shared.masking import start_digest

    _, home = _keys(setup)
    terms = terms_of(plan, setup, campaign)
    if start_digest(plan.weights, plan.frozen_digest) != terms.weights:
        raise RefusedError(
            f"session {terms.session[:8]} is for other weights than the plan brings: sites that train from different "
            "ones would not be hidden in their sum; the coordinator must send all sites the same"
        )
    sessions.kept(home, terms)
    _offers(plan)


def _masked(update: Update, plan: Plan, setup: SiteSetup, campaign: CampaignConfig) -> Record:
    from shared.masking import grid_of, weights_of
    from shared.secagg.fixed_point import quantise
    from shared.secagg.protocol import mask

    identity, home = _keys(setup)
    terms = terms_of(plan, setup, campaign)
    arrays = update.difference | {ADDED + name: values for name, values in update.added.items()}
    weights = weights_of(arrays, update.num_samples, update.images, campaign)
    shares = campaign.privacy.kind == "site"  # of noise, which must not be cut
    vector = quantise(arrays, weights, grid_of(campaign, len(terms.cohort)), wraps=shares)
    with sessions.alone(home, terms):
        session, masked = mask(sessions.kept(home, terms), _offers(plan), vector, identity)
        sessions.keep(home, session)
    return masked_record(update, terms.session, masked)


def revealed(plan: Plan, setup: SiteSetup, campaign: CampaignConfig) -> Revealed:
    """What opens the sum over the plan's survivors, once; the session is gone before it leaves."""
    from shared.secagg.protocol import reveal

    _, home = _keys(setup)
    terms = terms_of(plan, setup, campaign)
    survivors = _names(plan.secagg.get("survivors"), "survivors")
    with sessions.alone(home, terms):
        _, made = reveal(sessions.kept(home, terms), survivors, sessions.opened(home, terms))
        sessions.note_opening(home, terms, survivors)
        sessions.drop(home, terms)
    return Revealed(setup.name, plan.round, made.to_json())


def terms_of(plan: Plan, setup: SiteSetup, campaign: CampaignConfig) -> Terms:
    """The terms in a plan, which must be of this campaign, this round, and a cohort that this site is in."""
    from shared.secagg.protocol import Terms

    if not campaign.secagg.masked:
        raise RefusedError(
            "the approved campaign agreed on secagg=visible_updates, and the plan asks for masks; the coordinator must "
            "ask by the approved campaign"
        )
    if "terms" not in plan.secagg:
        raise RefusedError(
            "the approved campaign agreed on secagg=masked, and the plan names no session: nothing leaves unmasked"
        )
    terms = Terms.from_json(plan.secagg["terms"])
    expected = (plan.config_digest, plan.round, campaign.secagg.minimum_cohort)
    if (terms.campaign_digest, terms.round, terms.minimum) != expected:
        raise RefusedError(
            f"session {terms.session[:8]} has another campaign, round or minimum cohort than was approved; the "
            "coordinator must ask by the approved campaign"
        )
    if setup.name not in terms.cohort:
        raise RefusedError(
            f"the cohort of session {terms.session[:8]} does not name {setup.name}; nothing is sent in it"
        )
    return terms


def _offers(plan: Plan) -> dict[str, Offer]:
    from shared.secagg.protocol import Offer

    values = plan.secagg.get("offers")
    if not isinstance(values, Mapping) or len(values) > MAX_SITES:
        raise DataError("a plan to train under secagg=masked brings the offers of its session")
    return {site_name(name): Offer.from_json(offer) for name, offer in values.items()}


def _names(values: Any, what: str) -> tuple[str, ...]:
    """Sorted, distinct, bounded names of sites; DataError otherwise."""
    if not isinstance(values, list) or len(values) > MAX_SITES or not all(isinstance(name, str) for name in values):
        raise DataError(f"the {what} of a session must be a list of at most {MAX_SITES} names")
    names = tuple(map(site_name, values))
    if list(names) != sorted(set(names)):
        raise DataError(f"the {what} of a session must be in order, and name no site twice")
    return names


def _keys(setup: SiteSetup) -> tuple[Identity, Path]:
    if setup.identity is None or setup.home is None:
        raise RefusedError(
            f"{setup.name} has no exchange key, or nowhere to keep a session, which secagg=masked needs; renew the "
            "site's keys: wardround-site renew"
        )
    if not setup.peers:
        raise RefusedError(
            f"{setup.name} has pinned no other site's key, which secagg=masked needs; approve the campaign's manifest"
        )
    return setup.identity, setup.home
