"""A campaign in, the mechanisms of its rounds and the noise that they need out: the same at a site, which charges them,
and at a coordinator, which says beforehand what they will be."""

from __future__ import annotations

from collections.abc import Sequence

from shared.config import CampaignConfig
from shared.errors import DataError
from shared.privacy.accountant import Steps, least_multiplier


def one_round(campaign: CampaignConfig, train_patients: int, *, multiplier: float) -> Steps:
    """The mechanisms of a round at a site with so many training patients."""
    privacy = campaign.privacy
    assert privacy.on
    if privacy.kind == "site":
        return Steps(multiplier, 1.0, 1)
    if train_patients < 1:
        raise DataError("privacy=patient draws training patients, and this site has none; ingest more studies")
    return Steps(multiplier, min(1.0, privacy.patients / train_patients), campaign.training.local_steps)


def rounds_to_pay(campaign: CampaignConfig, round: int) -> int:
    """Rounds that what is left of epsilon is spread over from 1-based `round` on: those that are left and, where lost
    rounds are repeated, one that is always kept back; else a lost last round would find nothing."""
    spare = 1 if campaign.rounds.retries else 0
    return campaign.rounds.rounds - round + 1 + spare


def least_noise(campaign: CampaignConfig, one: Steps, round: int, spent: Sequence[Steps] = ()) -> float | None:
    """The least noise multiplier from `round` on that keeps the campaign's epsilon; None where none does."""
    privacy, steps = campaign.privacy, rounds_to_pay(campaign, round) * one.steps
    return least_multiplier(privacy.epsilon, privacy.delta, rate=one.rate, steps=steps, spent=tuple(spent))


def noise_shares(campaign: CampaignConfig) -> int:
    """In how many sites' updates the noise of privacy=site is surely there when a sum is opened."""
    return campaign.secagg.minimum_cohort if campaign.secagg.masked else 1
