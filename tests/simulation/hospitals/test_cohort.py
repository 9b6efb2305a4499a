"""Shares and balances are exact counts; what cannot be kept is refused with the way out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import HospitalConfig, LabelsConfig, ScannerConfig, SimulationConfig
from shared.errors import ConfigError
from simulation.hospitals.cohort import hospitals_of, quotas, simulated_cohorts

Make = Callable[..., SimulationConfig]


@given(total=st.integers(0, 500), weights=st.lists(st.floats(0, 10), min_size=1, max_size=6))
def test_quotas_add_up_and_miss_the_exact_share_by_less_than_one(total: int, weights: list[float]) -> None:
    weights = [*weights, 1.0]
    counts = quotas(total, weights)
    assert sum(counts) == total
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) < 1 + 1e-6


def test_more_sites_than_listed_repeat_under_fresh_names(make: Make) -> None:
    listed = (HospitalConfig(name="north", patients=3), HospitalConfig(name="hill", patients=2))
    config = make("phantom", *listed, sites=5)
    hospitals = hospitals_of(config)
    assert [hospital.name for hospital in hospitals] == ["north", "hill", "north-2", "hill-2", "north-3"]
    assert [hospital.patients for hospital in hospitals] == [3, 2, 3, 2, 3]


def test_diagnoses_follow_the_balance_and_shares_are_counts(make: Make) -> None:
    hospital = HospitalConfig(
        name="hill", patients=20, labelled=0.35, diagnosed=0.55, paired=0.1, balance=(0.2, 0.5, 0.3)
    )
    (cases,) = simulated_cohorts(make("mni", hospital), (hospital,))
    assert Counter(case.diagnosis for case in cases) == {"none": 4, "kind_a": 10, "kind_b": 6}
    assert sum(case.labelled for case in cases) == 7
    assert sum(case.diagnosed for case in cases) == 11
    assert sum(case.paired for case in cases) == 2
    assert [case.number for case in cases] == list(range(20))


def test_another_seed_draws_other_patients_in_the_same_counts(make: Make) -> None:
    hospital = HospitalConfig(name="hill", patients=20)
    (first,), (second,) = (simulated_cohorts(make("mni", hospital, seed=seed), (hospital,)) for seed in (0, 1))
    assert [case.diagnosis for case in first] != [case.diagnosis for case in second]
    assert Counter(case.diagnosis for case in first) == Counter(case.diagnosis for case in second)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("name", "../etc", "becomes a folder"),
        ("name", "", "becomes a folder"),
        ("patients", 0, "patients must be 1 or more"),
        ("labelled", 1.5, "labelled is a share"),
        ("diagnosed", -0.1, "diagnosed is a share"),
        ("paired", 2.0, "paired is a share"),
        ("balance", (1.0,), "balance needs one weight"),
        ("balance", (0.0, 0.0), "balance needs one weight"),
        ("scanner", ScannerConfig(noise=-0.1), "noise and psf_mm of 0 or more"),
        ("scanner", ScannerConfig(bias_field=1.0), r"bias_field in \[0, 1\)"),
        ("scanner", ScannerConfig(contrast_gamma=0.0), "contrast_gamma above 0"),
        ("scanner", ScannerConfig(spacing_mm=(5.0, 0.0, 2.0)), "spacing_mm lies in"),
        ("mask_codes", {"organ": 1}, "must name exactly"),
        ("mask_codes", {"organ": 1, "lesion": 1}, "different numbers"),
        ("mask_codes", {"organ": 1, "lesion": 300}, "in 1..255"),
    ],
)
def test_a_hospital_that_cannot_be_kept_is_refused(make: Make, field: str, value: Any, reason: str) -> None:
    hospital = HospitalConfig(**{"name": "north", "patients": 2} | {field: value})
    with pytest.raises(ConfigError, match=reason):
        hospitals_of(make("phantom", hospital))


def test_two_hospitals_of_one_name_are_refused(make: Make) -> None:
    north = HospitalConfig(name="north", patients=2)
    with pytest.raises(ConfigError, match="names must differ"):
        hospitals_of(make("phantom", north, north))


def test_a_label_budget_for_a_site_that_there_is_not_is_refused(make: Make) -> None:
    config = make("phantom", HospitalConfig(name="north", patients=2), HospitalConfig(name="hill", patients=2))

    def with_labels(*names: str) -> SimulationConfig:
        data = replace(config.campaign.data, labels={name: LabelsConfig(masks=1) for name in names})
        return replace(config, campaign=replace(config.campaign, data=data))

    assert len(hospitals_of(with_labels("north", "hill"))) == 2
    with pytest.raises(ConfigError, match="may name the sites north, hill; got 'North'"):
        hospitals_of(with_labels("hill", "North"))
