"""What a person reads before saying yes: what is learned from which images, what leaves, and where more leaves."""

from __future__ import annotations

from dataclasses import replace

from client.describe import describe
from shared.config import (
    AugmentConfig,
    CampaignConfig,
    DegradeConfig,
    EnhancerConfig,
    GenerateConfig,
    LearnConfig,
    ObjectiveConfig,
    PhaseConfig,
    PrivacyConfig,
    SelfRegConfig,
    StrategyConfig,
)


def test_what_recognition_caused_is_told_where_it_leaves_apart(campaign: CampaignConfig) -> None:
    promoting = replace(campaign, strategy=StrategyConfig(kind="fedavg", promotion="global"))
    assert "recognition caused (0.0 MB as float16)" in dict(describe(promoting))["leaves, each round"]
    assert "recognition caused" not in dict(describe(campaign))["leaves, each round"]


def alone(campaign: CampaignConfig, **learn: object) -> CampaignConfig:
    """A recogniser without an enhancer."""
    return replace(
        campaign,
        enhance=EnhancerConfig(kind="none"),
        degrade=DegradeConfig(kind="none"),
        objective=ObjectiveConfig(kind="plain"),
        learn=LearnConfig(**learn),  # type: ignore[arg-type]
    )


def test_recogniser_alone_is_described_by_what_it_is_asked_for(campaign: CampaignConfig) -> None:
    said = dict(describe(alone(campaign, kind="enc", segment=False)))
    assert said["learns"] == "to recognise diagnoses (none, lesion) in images (not degraded)"
    assert "recogniser.*" in said["leaves, each round"]
    assert "enhancer" not in said["leaves, each round"]
    both = dict(describe(campaign))["learns"]
    assert both == (
        "to enhance images (Gaussian noise added by us) and to recognise masks (organ, lesion) and diagnoses (none, "
        "lesion)"
    )


def test_learning_from_images_without_labels_and_what_it_counts_are_told(campaign: CampaignConfig) -> None:
    said = dict(describe(alone(campaign, kind="encssl", segment=False, pseudo_labels=True)))
    assert said["learns"].endswith("; from this site's images without labels, too")
    assert "pseudo-labels were offered, and accepted for each diagnosis, the rank of" in said["leaves beside it"]
    plain = dict(describe(campaign))
    assert "without labels" not in plain["learns"]
    assert "pseudo" not in plain["leaves beside it"]
    assert "how many images trained each part of the networks; per metric" in plain["leaves beside it"]
    regular = replace(campaign, selfreg=SelfRegConfig(consistency_weight=0.015))
    assert "each part of the networks, the rank of the features" in dict(describe(regular))["leaves beside it"]


def test_mean_mask_map_is_told_where_it_leaves_and_from_how_many_patients_on(campaign: CampaignConfig) -> None:
    federated = alone(campaign, kind="multimix", mask_ssl="federated", prior_patients=5)
    leaves = dict(describe(federated))["leaves, each round"]
    assert "prior.*" in leaves
    assert "where masks lie on average" in leaves
    assert "only from 5 patients on), never an image" in leaves
    here = dict(describe(alone(campaign, kind="multimix", mask_ssl="prior")))["leaves, each round"]
    assert "where masks lie" not in here
    assert "prior.*" not in here


def test_a_generator_is_described_by_what_leaves_in_each_phase_and_what_stays_at_other_sites(
    campaign: CampaignConfig,
) -> None:
    alone = replace(campaign, generate=GenerateConfig(kind="emit-diff", denoiser=PhaseConfig(rounds=3, local_steps=7)))
    said = dict(describe(alone))
    assert "denoiser 3 rounds of 7 steps" in said["in phases"]
    assert "autoencoder 0.7 MB; denoiser 4." in said["leaves, each round of a phase"]
    assert "could repeat one that it learned by heart" in said["stays at every site"]
    assert "wardround-site generate" in said["stays here"]
    assert "how long" not in said
    whole = dict(describe(replace(alone, augment=AugmentConfig(kind="emit-diff", mix="images"))))
    assert "4 synthetic images per training image" in whole["stays here"]
    assert (
        whole["how long"] == f"{campaign.rounds.rounds} rounds of {campaign.training.local_steps} steps on this machine"
    )


def test_under_privacy_no_loss_is_said_to_leave(campaign: CampaignConfig) -> None:
    private = replace(campaign, privacy=PrivacyConfig(kind="patient"))
    said = dict(describe(private))["leaves beside it"]
    assert said.startswith("the learning rate, the noise and the expected number of images")
    assert "loss" not in said
    assert "losses" in dict(describe(campaign))["leaves beside it"]
