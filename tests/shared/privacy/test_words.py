"""What a run will cost in words, against the arithmetic by hand; releases and reports say what was agreed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.private import of_row, sentences
from shared.config import CampaignConfig, PrivacyConfig, SecAggConfig, to_dict
from shared.networks import build_networks
from shared.privacy.accountant import Steps, epsilon
from shared.privacy.parts import trained_counts
from shared.privacy.plan import least_noise, one_round, rounds_to_pay
from shared.privacy.words import dimension_of, expected, in_release, signal_to_noise


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    return replace(campaign, privacy=PrivacyConfig(kind="patient", epsilon=8.0, patients=4))


def test_the_noise_of_a_step_is_that_of_every_value_that_is_noised(campaign: CampaignConfig) -> None:
    counts = trained_counts(build_networks(campaign), campaign)
    dimension = 2 * counts[0] + counts[1]  # g, v, r
    assert dimension_of(campaign, counts) == dimension
    plain = replace(campaign, objective=replace(campaign.objective, kind="plain"))
    assert dimension_of(plain, counts) == sum(counts)
    assert signal_to_noise(campaign, dimension, 2.0, 40, 3) == pytest.approx(4 / (2.0 * dimension**0.5))
    assert signal_to_noise(campaign, dimension, 2.0, 2, 3) == pytest.approx(2 / (2.0 * dimension**0.5))


def test_a_sum_of_sites_has_their_signal_and_the_shares_of_their_noise(campaign: CampaignConfig) -> None:
    site = replace(
        campaign,
        privacy=PrivacyConfig(kind="site"),
        secagg=SecAggConfig(kind="masked", minimum_cohort=3),
        rounds=replace(campaign.rounds, quorum=3),
        strategy=replace(campaign.strategy, weight_by="equal"),
    )
    assert dimension_of(site, (60, 40)) == 100
    # Five sites add 5; five shares of noise of 2 / sqrt(3) on each of 100 values.
    assert signal_to_noise(site, 100, 2.0, 1, 5) == pytest.approx(5 / (5 * 100 * (2 / 3**0.5) ** 2) ** 0.5)


def test_the_planned_noise_keeps_epsilon_over_all_rounds_and_one_more(campaign: CampaignConfig) -> None:
    one = one_round(campaign, 50, multiplier=1.0)
    found = least_noise(campaign, one, 1)
    assert found is not None
    assert rounds_to_pay(campaign, 1) == campaign.rounds.rounds + 1
    assert epsilon([Steps(found, 4 / 50, one.steps * (campaign.rounds.rounds + 1))], 1e-5) <= 8.0
    never = replace(campaign, rounds=replace(campaign.rounds, retries=0))
    assert rounds_to_pay(never, 1) == campaign.rounds.rounds


def test_the_words_tell_unit_epsilon_noise_and_the_way_out(campaign: CampaignConfig) -> None:
    counts = trained_counts(build_networks(campaign), campaign)
    words = expected(campaign, counts, (14, 14, 200))
    assert "(ε, δ) = (8, 1e-05) for every training patient of a site" in words
    assert "A site with 14 training patients" in words
    assert "A site with 200 training patients" in words
    assert "privacy.trained=lastblocks" in words
    assert f"{dimension_of(campaign, counts)} values" in words
    tiny = replace(campaign, privacy=replace(campaign.privacy, epsilon=5000.0, noise_multiplier=0.001))
    assert "Most of it is noise" not in expected(tiny, counts, (14,))
    assert expected(replace(campaign, privacy=PrivacyConfig()), counts, (14,)) == ""


def test_a_named_noise_that_epsilon_does_not_last_for_is_told_before_the_run(campaign: CampaignConfig) -> None:
    long = replace(
        campaign,
        privacy=replace(campaign.privacy, noise_multiplier=0.8),
        rounds=replace(campaign.rounds, rounds=200),
    )
    words = expected(long, (100, 100), (20,))
    kept = int(words.split("ends the site's part after ")[1].split(".")[0])
    one = Steps(0.8, 0.2, 4)
    assert epsilon([one] * kept, 1e-5) <= 8.0 < epsilon([one] * (kept + 1), 1e-5)


def test_a_release_and_a_row_carry_what_was_agreed(campaign: CampaignConfig) -> None:
    assert in_release(campaign, "none")["epsilon"] == 8.0
    assert "for every training patient" in in_release(campaign, "none")["words"]
    assert in_release(replace(campaign, privacy=PrivacyConfig()), "none") == {"epsilon": None, "words": "none"}
    assert of_row(to_dict(campaign)) == {"epsilon": 8.0, "delta": 1e-5, "privacy": "patient"}
    assert of_row(to_dict(replace(campaign, privacy=PrivacyConfig()))) == of_row({}) == {}


def test_a_report_says_epsilon_cosine_and_price(campaign: CampaignConfig) -> None:
    from server.findings import Findings

    rows = [
        {"method": "gradprom", "setting": setting, "site": "all", "test_site": "all", "seed": 0, "data": "mni",
         "degradation": "gaussian", "split": "test", "n": 10, "psnr_db": psnr, "dice": dice}
        for setting, psnr, dice in (("federated", 22.0, 0.4), ("pooled", 27.5, 0.7))
    ]  # fmt: skip
    training = {"a": {"privacy.cosine": 0.02, "privacy.multiplier": 2.5}, "b": {"privacy.cosine": 0.04}}

    class Run:
        rounds = ({"round": 1, "training": training},)

    findings = Findings.__new__(Findings)
    object.__setattr__(findings, "report", {"rows": rows})
    object.__setattr__(findings, "config", {"campaign": to_dict(campaign)})
    object.__setattr__(findings, "runs", (Run(),))
    text = " ".join(sentences(findings))
    assert "(ε, δ) = (8, 1e-05) for every training patient" in text
    assert "0.030 on average" in text
    assert "Noise of 2.5 times" in text
    assert "-5.5 dB" in text
    assert "-0.3" in text
