"""What a round may cost and what noise pays for it: the ledger is charged first, and a site's update is noised last.

    charge       both units: the noise multiplier of this round, or a refusal; the ledger is written before it returns
    site_noised  unit site: the whole update, clipped and noised (unit patient: client/train/private.py, step by step)

Noise is fitted to the campaign's epsilon at every round anew: what is left of it is spread over the rounds that are
left. Where nothing is repeated all rounds have the same noise; after an attempt that was lost the others have more, and
epsilon is kept. (Where round.retries allows a repetition, one more round is always kept back for it.) A coordinator
that asks for the first round for ever gets ever more noise, then refusals, and never more epsilon. Where the campaign
names a noise multiplier it is used as it is, and the round that would go beyond epsilon is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from client.site import SiteSetup
from shared.config import CampaignConfig, campaign_digest
from shared.errors import RefusedError
from shared.privacy.accountant import Steps, epsilon
from shared.privacy.ledger import Charge, append, held, of_campaign, read_ledger, spent_in_total, spent_on
from shared.privacy.noise import normal
from shared.privacy.plan import least_noise, noise_shares, one_round, rounds_to_pay
from shared.types import Arrays
from shared.weights import norm

if TYPE_CHECKING:
    import torch

MULTIPLIER = "privacy.multiplier"
"""In the record of a round: standard deviation of the noise over privacy.clip_norm."""
COSINE = "privacy.cosine"
"""In the record of a simulated round: cos(noised update, update without clipping and noise)."""
MOST_GROWTH = 10.0
"""Times the noise of the first round; a site that would need more takes no part, for its noise is all that it adds."""


def charge(setup: SiteSetup, campaign: CampaignConfig, round: int, train_patients: int) -> float:
    """Charge one attempt at 1-based `round` to the site's ledger; returns the noise multiplier to train it with.

    `train_patients` counts the patients of the training split; it is taken as known (a site's card tells it). Raises
    RefusedError where the campaign's epsilon or the site's own total (rules.json) would be passed, or its delta is too
    large for so many patients, and DataError for a ledger that is damaged; nothing may be computed then.
    """
    home = _home(setup)
    _check_delta(campaign, train_patients)
    with held(home):
        charges = read_ledger(home)
        mine = of_campaign(charges, campaign_digest(campaign))
        one = one_round(campaign, train_patients, multiplier=1.0)
        multiplier = _multiplier(campaign, [past.spent for past in mine], one, round)
        asked = Charge(
            campaign=campaign_digest(campaign),
            name=campaign.name,
            unit=campaign.privacy.kind,
            round=round,
            multiplier=multiplier,
            rate=one.rate,
            steps=one.steps,
            delta=campaign.privacy.delta,
            epsilon=campaign.privacy.epsilon,
        )
        _check_campaign([*mine, asked], campaign)
        _check_total([*charges, asked], setup)
        append(home, asked)
    return multiplier


def spent(setup: SiteSetup, campaign: CampaignConfig) -> float:
    """Epsilon that the campaign has spent at this site so far, of its own unit."""
    return spent_on(of_campaign(read_ledger(_home(setup)), campaign_digest(campaign)))


def site_noised(
    difference: Arrays,
    campaign: CampaignConfig,
    multiplier: float,
    *,
    names: Collection[str] | None = None,
    rng: torch.Generator | None = None,
) -> Arrays:
    """privacy=site: the update with its L2 norm cut to clip_norm, and this site's share of the noise added.

    Noise per value, standard deviation:
        secagg=masked           multiplier * clip_norm / sqrt(secagg.minimum_cohort)
        secagg=visible_updates  multiplier * clip_norm
    A sum of n masked updates has n shares, and no site opens one of fewer than minimum_cohort: the target is reached at
    least, and passed by sqrt(n / minimum_cohort) where more answer. Why not round.quorum, which may be larger: the
    coordinator alone keeps it. A visible update is seen alone, so it carries the whole noise. Sites that collude know
    their own shares: against k of them the sum of n is only as noisy as that of n - k.

    A share may lie beyond secagg.range, and is not cut to it: a sum of shares that were cut has not the noise that was
    charged for. Under masks it wraps around instead (client/protect.py), which is done to the sum as well as to its
    parts and so costs nothing; where it happens the noise has drowned the update.

    `names` are the arrays that the campaign trains (shared.privacy.parts.trained_names); the others are returned as 0
    and have no noise. Without it they are looked up. `rng` is for tests; else the noise is the operating system's.
    """
    privacy = campaign.privacy
    assert privacy.kind == "site", privacy.kind
    if not multiplier > 0:
        raise RefusedError("privacy=site: this update was charged no noise for, so it does not leave")
    chosen = _trained(campaign, difference) if names is None else names
    # An update that is not finite would leave no noise to see it under.
    safe = {name: np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0) for name, values in difference.items()}
    moved = {name: values for name, values in safe.items() if name in chosen}
    scale = min(1.0, privacy.clip_norm / max(norm(moved), np.finfo(np.float64).tiny))
    std = multiplier * privacy.clip_norm / noise_shares(campaign) ** 0.5
    noise = normal(sum(values.size for values in moved.values()), std, rng)
    noised, begin = {}, 0
    for name, values in difference.items():
        if name not in moved:
            noised[name] = np.zeros_like(values)
            continue
        share = noise[begin : begin + values.size].reshape(values.shape)
        noised[name] = (scale * moved[name].astype(np.float64) + share).astype(np.float32)
        begin += values.size
    return noised


def compares(setup: SiteSetup) -> bool:
    """Whether the true update may be computed beside the noised one: in a simulation that says so. A site that was
    enrolled, has rules or keeps an audit log is none, whatever it says."""
    deployed = bool(setup.manifests) or setup.rules is not None or setup.audit is not None
    return setup.simulation and not deployed


def cosine(first: Arrays, second: Arrays) -> float:
    """Of two updates with the same names; 0 where one of them is 0."""
    dot = sum(float(np.vdot(first[name].astype(np.float64), second[name])) for name in first)
    norms = norm(first) * norm(second)
    return dot / norms if norms else 0.0


def _multiplier(campaign: CampaignConfig, past: Sequence[Steps], one: Steps, round: int) -> float:
    privacy = campaign.privacy
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    if past:  # as before, where nothing was repeated
        same = Steps(past[-1].multiplier, one.rate, rounds_to_pay(campaign, round) * one.steps)
        if epsilon([*past, same], privacy.delta) <= privacy.epsilon:
            return same.multiplier
    found = least_noise(campaign, one, round, past)
    if found is None or (past and found > MOST_GROWTH * past[0].multiplier):
        raise RefusedError(
            f"the campaign's epsilon of {privacy.epsilon:g} is spent at this site: {len(past)} attempts were charged, "
            "and what is left would drown in noise; approve a new campaign with an epsilon of its own"
        )
    return found


def _check_delta(campaign: CampaignConfig, train_patients: int) -> None:
    """With a delta of 1 / patients it would be allowed to tell all of one of them, drawn at random (Dwork, Roth. The
    Algorithmic Foundations of Differential Privacy. 2014, section 2.3)."""
    privacy = campaign.privacy
    if privacy.kind == "patient" and privacy.delta * train_patients >= 1:
        raise RefusedError(
            f"privacy.delta={privacy.delta:g} promises little where {train_patients} patients train: it must be below "
            f"1 / {train_patients}; agree on a campaign with a smaller one"
        )


def _check_campaign(charges: Sequence[Charge], campaign: CampaignConfig) -> None:
    would = spent_on(charges)
    if would > campaign.privacy.epsilon:
        raise RefusedError(
            f"this round would bring the campaign to epsilon {would:.3g} at this site, and "
            f"{campaign.privacy.epsilon:g} was approved; approve a new campaign, with a larger "
            "privacy.noise_multiplier or fewer rounds"
        )


def _check_total(charges: Sequence[Charge], setup: SiteSetup) -> None:
    most = None if setup.rules is None else setup.rules.epsilon_total
    if most is None:
        return
    would = spent_in_total(charges)
    if would > most:
        raise RefusedError(
            f"this round would bring all campaigns together to epsilon {would:.3g} at this site, and its rules allow "
            f"{most:g}; its operator decides: wardround-site rules epsilon_total=..."
        )


def _home(setup: SiteSetup) -> Path:
    if setup.home is None:
        raise RefusedError("this site has no folder for its privacy ledger, without which nothing private is computed")
    return setup.home


def _trained(campaign: CampaignConfig, difference: Arrays) -> frozenset[str]:
    if campaign.privacy.trained == "all":
        return frozenset(difference)
    from shared.networks import build_networks
    from shared.privacy.parts import trained_names

    return trained_names(build_networks(campaign), campaign)
