"""What protection can be kept together with what else a campaign asks for; the rest is refused with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.errors import ConfigError

if TYPE_CHECKING:
    from shared.config.campaign import CampaignConfig


def check_protection(campaign: CampaignConfig) -> None:
    """Raises ConfigError for a protection that could not be kept."""
    if campaign.secagg.masked:
        _check_masked(campaign)
    if campaign.strategy.robust != "none":
        _check_robust(campaign)
    if campaign.privacy.on:
        _check_private(campaign)
    if campaign.privacy.kind == "patient":
        _check_patient(campaign)


def _check_masked(campaign: CampaignConfig) -> None:
    if campaign.rounds.quorum < campaign.secagg.minimum_cohort:
        raise ConfigError(
            f"secagg=masked opens no sum of fewer than secagg.minimum_cohort={campaign.secagg.minimum_cohort} sites, "
            f"which round.quorum={campaign.rounds.quorum} allows; raise round.quorum, or choose secagg=visible_updates"
        )
    if campaign.strategy.robust != "none":
        raise ConfigError(
            f"strategy.robust={campaign.strategy.robust} compares the updates of single sites, which secagg=masked "
            "hides; choose secagg=visible_updates, or strategy.norm_bound, which every site keeps for itself"
        )


def _check_robust(campaign: CampaignConfig) -> None:
    robust, malicious, quorum = campaign.strategy.robust, campaign.strategy.malicious, campaign.rounds.quorum
    fewest = {"median": 2 * malicious + 1, "trimmed_mean": 2 * malicious + 1}.get(robust, 2 * malicious + 3)
    if quorum < fewest:
        raise ConfigError(
            f"strategy.robust={robust} against strategy.malicious={malicious} sites needs {fewest} updates or more in "
            f"every round (Blanchard et al. 2017, Yin et al. 2018); got round.quorum={quorum}"
        )
    if campaign.strategy.promotion != "none":
        raise ConfigError("strategy.promotion splits a mean, and strategy.robust has none; choose one of them")


def _check_private(campaign: CampaignConfig) -> None:
    if campaign.generate.on:
        raise ConfigError("privacy accounts for one sequence of rounds, and a generator's phases are several with a "
                          "closing step each; choose generate=none")  # fmt: skip
    if campaign.strategy.promotion != "none":
        raise ConfigError("strategy.promotion tells what recognition added, which privacy does not cover; choose none")
    if campaign.learn.mask_ssl == "federated":
        raise ConfigError(
            "learn.mask_ssl=federated shares mean mask maps, which no privacy noise covers; choose learn=supervised"
        )
    if campaign.privacy.kind == "site" and campaign.strategy.weight_by != "equal":
        raise ConfigError(
            "privacy=site bounds what one site adds to the mean, which needs strategy.weight_by=equal; a site that "
            "counts by its images has no bound"
        )


def _check_patient(campaign: CampaignConfig) -> None:
    """One mechanism per step: a sum over patients of gradients that depend on no other patient."""
    objective, because = campaign.objective, "privacy=patient clips the gradients of each patient alone"
    if campaign.augment.balance:
        raise ConfigError(f"{because}, each drawn with the same chance; choose augment.balance=false")
    if campaign.learn.streams or campaign.selfreg.on:
        raise ConfigError(f"{because}; learn={campaign.learn.kind} and selfreg compare patients: learn=supervised")
    if objective.adversarial:
        raise ConfigError(f"{because}; objective={objective.kind} has a critic, which is not: choose gradprom or plain")
    if objective.gated and objective.gate != "global":
        raise ConfigError(f"{because} and gates what was noised by gate=global; got gate={objective.gate}")
    if objective.auxiliaries != "together":
        raise ConfigError(f"{because} with one auxiliary loss; choose objective.auxiliaries=together")
    if campaign.training.adam_states != "one":
        raise ConfigError(f"{because}; choose training.adam_states=one")
    if campaign.strategy.kind == "fedprox":
        raise ConfigError(f"{because}; FedProx's pull is no patient's: choose strategy=fedavg")
