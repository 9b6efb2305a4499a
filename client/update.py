"""A plan and a site's setup in, the site's answer out: its card, or what it learned and measured in one round.

The order of one round: load the weights that came, judge them on the site's own test patients, train from them, answer
with the difference. Refused, before any data is read: a campaign that is not approved here, another architecture, a
round that the campaign does not have.

The data set and the networks of a campaign stay in this process between rounds; nothing else does, so that a site that
was killed, or runs each round in a new process, learns the same. Torch is imported when the first plan is answered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from client.site import SiteSetup
from shared.config import CampaignConfig, campaign_digest, load_campaign
from shared.errors import RefusedError
from shared.events import SiteStep
from shared.types import Arrays, Plan, SiteCard, Update

if TYPE_CHECKING:
    from client.dataset import SiteData
    from shared.networks import Networks

OnStep = Callable[[SiteStep], None]


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A campaign at this site, ready to work: kept between rounds."""

    campaign: CampaignConfig
    data: SiteData
    networks: Networks
    architecture_digest: str


def answer(plan: Plan, setup: SiteSetup, *, on_step: OnStep | None = None) -> SiteCard | Update:
    """Do what the plan says; raises RefusedError or DataError, whose text may cross the site's border."""
    opened = _opened(setup, plan.config_digest)
    if plan.action == "handshake":
        return SiteCard(
            setup.name, plan.config_digest, opened.architecture_digest, version("wardround"), dict(opened.data.counts)
        )
    _check_plan(plan, opened)
    return _round(plan, setup, opened, on_step)


def _check_plan(plan: Plan, opened: Opened) -> None:
    if plan.architecture_digest != opened.architecture_digest:
        raise RefusedError(
            f"expected architecture {opened.architecture_digest[:12]}, got {plan.architecture_digest[:12]}; "
            "coordinator and site must run the same version of Wardround"
        )
    rounds = opened.campaign.rounds.rounds
    last = rounds if plan.action == "train" else rounds + 1
    if not 1 <= plan.round <= last:
        raise RefusedError(f"the approved campaign has {rounds} rounds; expected 1 to {last}, got round {plan.round}")


def _round(plan: Plan, setup: SiteSetup, opened: Opened, on_step: OnStep | None) -> Update:
    from client.evaluate import evaluate, summarise
    from client.train.local import added_change, train_round
    from shared.weights import PARTS, difference, load_arrays, to_arrays

    campaign, data, networks = opened.campaign, opened.data, opened.networks
    load_arrays(networks, plan.weights)
    evaluation = summarise(evaluate(networks, data.test, campaign, setup.machine))
    if plan.action == "evaluate":
        return Update(setup.name, plan.round, 0, {}, {}, evaluation)
    training, state = train_round(
        networks,
        data.train,
        campaign,
        setup.machine,
        site=setup.name,
        round=plan.round,
        steps=campaign.training.local_steps,
        on_step=partial(_step_done, on_step, setup.name, plan.round) if on_step else None,
    )
    learned = difference(to_arrays(networks), plan.weights)
    added = _added(learned, added_change(networks, state)) if campaign.strategy.promotion != "none" else {}
    images = {part: int(training[f"images.{part}"]) for part in PARTS if f"images.{part}" in training}
    return Update(setup.name, plan.round, int(training["samples"]), learned, training, evaluation, added, images)


def _added(learned: Arrays, change: Arrays) -> Arrays:
    """What recognition added to every array of the enhancer: 0 in those that are not trained."""
    from shared.weights import ENHANCER

    enhancer = {name: values for name, values in learned.items() if name.startswith(ENHANCER)}
    return {name: change[name] if name in change else np.zeros_like(values) for name, values in enhancer.items()}


def _step_done(on_step: OnStep, site: str, round: int, step: int, steps: int) -> None:
    on_step(SiteStep(site, round, step, steps))


def _opened(setup: SiteSetup, digest: str) -> Opened:
    if digest not in setup.approved:
        raise RefusedError(
            f"campaign {digest[:12]} is not approved at {setup.name}; its operator decides: wardround-site approve"
        )
    return _open(setup.name, setup.store, setup.approved[digest], digest)


@lru_cache(maxsize=64)
def _open(site: str, store: Path, campaign_file: Path, digest: str) -> Opened:
    from client.dataset import open_site
    from shared.weights import architecture_digest, to_arrays

    campaign = _campaign(campaign_file, digest)
    networks = _networks(campaign_file, digest)
    return Opened(campaign, open_site(store, site, campaign), networks, architecture_digest(to_arrays(networks)))


@lru_cache(maxsize=8)
def _networks(campaign_file: Path, digest: str) -> Networks:
    """Shared by all simulated sites of a process: every round begins by loading weights into them."""
    from shared.networks import build_networks

    return build_networks(_campaign(campaign_file, digest))


def _campaign(path: Path, digest: str) -> CampaignConfig:
    campaign = load_campaign(path)
    if campaign_digest(campaign) != digest:
        raise RefusedError(f"the approved file of campaign {digest[:12]} was changed since; approve it again")
    return campaign


def forget() -> None:
    """Let go of all data sets and networks: a simulation that starts the next campaign calls this."""
    _open.cache_clear()
    _networks.cache_clear()
