"""Identities are invented, distinct where archives need it, and the same for the same seed."""

from __future__ import annotations

import dataclasses
import datetime

from simulation.hospitals.identity import FAMILY_NAMES, GIVEN_NAMES, patient_identity, site_identity


def test_identifiers_are_unique_over_sites_and_fit_their_dicom_fields() -> None:
    people = [patient_identity(0, site, number) for site in ("north", "hill") for number in range(200)]
    for field, limit in (("patient_id", 64), ("accession", 16), ("study_id", 16), ("other_id", 64)):
        values = [getattr(person, field) for person in people]
        assert len(set(values)) == len(values)
        assert max(map(len, values)) <= limit
    for person in people:
        family, given = person.name.split("^")
        assert family in FAMILY_NAMES
        assert given in GIVEN_NAMES


def test_age_is_the_years_between_birth_and_study() -> None:
    for number in range(300):
        person = patient_identity(1, "north", number)
        birth, study = (datetime.date.fromisoformat(day) for day in (person.birth_date, person.study_date))
        years = study.year - birth.year - ((study.month, study.day) < (birth.month, birth.day))
        assert person.age == f"{years:03d}Y"


def test_the_seed_decides_everything() -> None:
    assert patient_identity(0, "north", 5) == patient_identity(0, "north", 5)
    assert patient_identity(0, "north", 5) != patient_identity(1, "north", 5)
    assert site_identity(0, "north") == site_identity(0, "north")
    assert all(dataclasses.astuple(site_identity(0, "north")))
