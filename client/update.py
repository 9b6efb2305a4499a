"""A plan and a site's setup in, the site's answer out: its card, or what it learned and measured in one round.

The order of one round: load the weights that came, judge them on the site's own test patients, train from them, answer
with the difference. Refused, before any data is read: a campaign that is not approved here, another architecture, a
round that the campaign does not have.

The data set and the networks of a campaign stay in this process between rounds; nothing else does, so that a site that
was killed, or runs each round in a new process, learns the same. Torch is imported when the first plan is answered.

In a campaign with a generator (shared/generate) the handshake brings the networks that a phase does not train, which
the site keeps on disk (client/generators.py); a round refers to them by a digest. In its last phase, `train`, the
site's training images have synthetic ones beside them, drawn by the site at its first round of the phase.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from client.asked import note_start
from client.generation import forget_synthetic, load_frozen, receive, training_slices
from client.generators import built_generator, generator_folder, keep
from client.protect import check_can_mask, check_session, offered, revealed
from client.site import SiteSetup
from shared.audit import START, Anchor, last_head
from shared.config import CampaignConfig, agreed_phase, campaign_digest, load_campaign
from shared.errors import RefusedError
from shared.events import SiteStep
from shared.types import Arrays, Offered, Plan, Revealed, SiteCard, Update

if TYPE_CHECKING:
    from client.dataset import SiteData, Slices
    from shared.generate.networks import Generator
    from shared.networks import Networks

OnStep = Callable[[SiteStep], None]
Told = Callable[[int, int], None]
GLIMPSE = 48
"""Test slices that a generator is judged on between rounds; its closing evaluation takes all."""


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A campaign at this site, ready to work: kept between rounds."""

    agreed: CampaignConfig
    """As the site approved it."""
    campaign: CampaignConfig
    """The phase of it that rounds are in; the same where there are no phases."""
    data: SiteData
    networks: Networks | Generator
    architecture_digest: str
    """Of what travels."""


def answer(plan: Plan, setup: SiteSetup, *, on_step: OnStep | None = None) -> SiteCard | Offered | Update | Revealed:
    """Do what the plan says; raises RefusedError or DataError, whose text may cross the site's border."""
    if plan.action in ("offer", "unmask"):
        _, campaign = agreed_of(plan, setup)
        check_round(plan, campaign)
        return (offered if plan.action == "offer" else revealed)(plan, setup, campaign)
    opened = _opened(setup, plan.config_digest)
    if plan.action == "handshake":
        check_can_mask(setup, opened.campaign)
        if plan.frozen_digest:
            receive(plan, setup.generators, opened.agreed, opened.campaign)
        return SiteCard(
            setup.name,
            plan.config_digest,
            opened.architecture_digest,
            version("wardround"),
            dict(opened.data.counts),
            (setup.audit is not None and last_head(setup.audit.path)) or Anchor(0, START),
        )
    _check_plan(plan, opened)
    if plan.action == "train":
        check_session(plan, setup, opened.campaign)
    note_start(plan, setup)
    told = partial(_step_done, on_step, setup.name, plan.round) if on_step else None
    if opened.campaign.generates:
        return _phase_round(plan, setup, opened, told)
    return _round(plan, setup, opened, told)


def _check_plan(plan: Plan, opened: Opened) -> None:
    if opened.agreed.phases and opened.campaign.generate.phase == "all":
        raise RefusedError("the approved campaign runs in phases, and the plan names none; run the same version of "
                           "Wardround at the coordinator")  # fmt: skip
    if plan.architecture_digest != opened.architecture_digest:
        raise RefusedError(
            f"expected architecture {opened.architecture_digest[:12]}, got {plan.architecture_digest[:12]}; "
            "coordinator and site must run the same version of Wardround"
        )
    check_round(plan, opened.campaign)


def check_round(plan: Plan, campaign: CampaignConfig) -> None:
    """RefusedError for a round that the campaign does not have; after the last one its weights are judged."""
    rounds = campaign.rounds.rounds
    last = rounds if plan.action in ("offer", "train", "unmask") else rounds + 1
    if not 1 <= plan.round <= last:
        raise RefusedError(f"the approved campaign has {rounds} rounds; expected 1 to {last}, got round {plan.round}")


def _round(plan: Plan, setup: SiteSetup, opened: Opened, told: Told | None) -> Update:
    from client.acceptance import accepted
    from client.evaluate import evaluate, summarise
    from client.train.charged import train_charged
    from client.train.local import added_change
    from shared.networks import Networks
    from shared.weights import PARTS, difference, load_arrays, to_arrays

    campaign, data, networks = opened.campaign, opened.data, opened.networks
    assert isinstance(networks, Networks)
    load_arrays(networks, plan.weights)
    evaluation = summarise(evaluate(networks, data.test, campaign, setup.machine))
    if plan.action == "evaluate":  # the last: of these weights a release may be made
        evaluation = {**evaluation, **accepted(networks, data.test, campaign, setup.machine)}
        return Update(setup.name, plan.round, 0, {}, {}, evaluation)
    slices = training_slices(plan, setup, opened.agreed, opened.campaign, data)
    training, state, multiplier = train_charged(networks, slices, campaign, setup, round=plan.round, on_step=told)
    learned = difference(to_arrays(networks), plan.weights)
    added = _added(learned, added_change(networks, state)) if state and campaign.strategy.promotion != "none" else {}
    images = {part: int(training[f"images.{part}"]) for part in PARTS if f"images.{part}" in training}
    samples = int(training["samples"])
    return Update(setup.name, plan.round, samples, learned, training, evaluation, added, images, multiplier)


def _phase_round(plan: Plan, setup: SiteSetup, opened: Opened, told: Told | None) -> Update:
    """A round of a generator's phase; with its closing evaluation the site keeps what the phase has trained."""
    from client.train.phases import evaluate_phase, train_phase
    from shared.generate.networks import TRAINED, Generator, load_parts, parts_arrays
    from shared.weights import difference

    campaign, generator = opened.campaign, opened.networks
    assert isinstance(generator, Generator)
    phase = campaign.generate.phase
    assert phase != "all"
    load_frozen(generator, plan, setup.generators, opened.agreed, phase)
    load_parts(generator, plan.weights, TRAINED[phase])
    test = opened.data.test if plan.action == "evaluate" else _glimpse(opened.data.test)
    evaluation = dict(evaluate_phase(generator, test, campaign, setup.machine))
    if plan.action == "evaluate":
        if "latents.square" in evaluation:  # what the scale of latents is made of is part of training, not of judging
            train = evaluate_phase(generator, _glimpse(opened.data.train), campaign, setup.machine)
            evaluation["latents.square"] = train["latents.square"]
        keep(generator_folder(setup.generators, opened.agreed), opened.agreed, plan.weights)
        return Update(setup.name, plan.round, 0, {}, {}, evaluation)
    training, _ = train_phase(
        generator,
        opened.data.train,
        campaign,
        setup.machine,
        site=setup.name,
        round=plan.round,
        steps=campaign.training.local_steps,
        on_step=told,
    )
    learned = difference(parts_arrays(generator, TRAINED[phase]), plan.weights)
    return Update(setup.name, plan.round, int(training["samples"]), learned, training, evaluation)


def _glimpse(slices: Slices) -> Slices:
    """Some slices at even distances: between rounds, where all of them would take longer than the round."""
    from client.reading import taken

    count = min(len(slices), GLIMPSE)
    return taken(slices, [place * len(slices) // count for place in range(count)])


def _added(learned: Arrays, change: Arrays) -> Arrays:
    """What recognition added to every array of the enhancer: 0 in those that are not trained."""
    from shared.weights import ENHANCER

    enhancer = {name: values for name, values in learned.items() if name.startswith(ENHANCER)}
    return {name: change[name] if name in change else np.zeros_like(values) for name, values in enhancer.items()}


def _step_done(on_step: OnStep, site: str, round: int, step: int, steps: int) -> None:
    on_step(SiteStep(site, round, step, steps))


def agreed_of(plan: Plan, setup: SiteSetup) -> tuple[CampaignConfig, CampaignConfig]:
    """The approved campaign that the plan is of, and the same in the plan's phase; RefusedError where there is none."""
    return _agreed(_file_of(setup, plan.config_digest), plan.config_digest)


def _opened(setup: SiteSetup, digest: str) -> Opened:
    return _open(setup.name, setup.store, _file_of(setup, digest), digest)


def _file_of(setup: SiteSetup, digest: str) -> Path:
    """The approved campaign that `digest` is of, or of a phase of."""
    if digest in setup.approved:
        return setup.approved[digest]
    approved = setup.approved.items()
    file = next((file for whole, file in approved if digest in _phase_digests(file, whole)), None)
    if file is None:
        raise RefusedError(
            f"campaign {digest[:12]} is not approved at {setup.name}; its operator decides: wardround-site approve"
        )
    return file


@lru_cache(maxsize=64)
def _phase_digests(campaign_file: Path, whole: str) -> tuple[str, ...]:
    campaign = _campaign(campaign_file, whole)
    return tuple(campaign_digest(campaign.in_phase(phase)) for phase in campaign.phases)


@lru_cache(maxsize=64)
def _open(site: str, store: Path, campaign_file: Path, digest: str) -> Opened:
    from client.dataset import open_site
    from shared.weights import architecture_digest, to_arrays

    agreed, campaign = _agreed(campaign_file, digest)
    networks = _networks(campaign_file, digest)
    if campaign.generates:
        from shared.generate.networks import TRAINED, Generator, parts_arrays

        assert isinstance(networks, Generator)
        travelling = parts_arrays(networks, TRAINED[campaign.generate.phase])
    else:
        travelling = to_arrays(networks)  # type: ignore[arg-type]
    return Opened(agreed, campaign, open_site(store, site, campaign), networks, architecture_digest(travelling))


@lru_cache(maxsize=8)
def _networks(campaign_file: Path, digest: str) -> Networks | Generator:
    """Shared by all simulated sites of a process: every round begins by loading weights into them."""
    _, campaign = _agreed(campaign_file, digest)
    if campaign.generates:
        return built_generator(campaign)
    from shared.networks import build_networks

    return build_networks(campaign)


def _agreed(path: Path, digest: str) -> tuple[CampaignConfig, CampaignConfig]:
    """The campaign of a file, and the phase of it that `digest` is of."""
    campaign = load_campaign(path)
    phase = agreed_phase(campaign, digest)
    if phase is None:
        raise RefusedError(f"the approved file of campaign {digest[:12]} was changed since; approve it again")
    return campaign, phase


def _campaign(path: Path, digest: str) -> CampaignConfig:
    return _agreed(path, digest)[0]


def forget() -> None:
    """Let go of all data sets and networks: a simulation that starts the next campaign calls this."""
    from client.train.phases import forget as forget_phases

    _open.cache_clear()
    _networks.cache_clear()
    _phase_digests.cache_clear()
    forget_synthetic()
    forget_phases()
