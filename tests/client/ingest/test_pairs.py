"""Which two series are a site's own real pair, and which are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from client.ingest.pairs import Pairs, pairs_of
from client.ingest.series import Stack, instance_of, protocol_of, stacks_of
from client.ingest.sources import SourceFile

SECRET = bytes(range(32))


def stacks(hospital: Any, *series: dict[str, Any]) -> dict[str, Stack]:
    """One stack of three slices per dict of changes, by its number from "0" on."""
    instances, names = [], {}
    for number, changes in enumerate(series):
        for index in range(3):
            image = hospital.new_image(index, series=str(number), **changes)
            source = SourceFile(Path(f"{number}-{index}"), 1, regular=True)
            instance = instance_of(image, source, f"{number}-{index}", SECRET)
            instances.append(instance)
            names[instance.series] = str(number)
    return {names[stack.first.series]: stack for stack in stacks_of(instances, SECRET)}


FULL = {"ProtocolName": "Abdomen FULL_DOSE", "Exposure": "100"}
LOW = {"ProtocolName": "Abdomen LOW_DOSE", "Exposure": "10"}


def pairs(hospital: Any, *series: dict[str, Any]) -> tuple[dict[str, str], set[str]]:
    found = stacks(hospital, *series)
    numbers = {stack.key: number for number, stack in found.items()}
    result = pairs_of(found.values())
    assert isinstance(result, Pairs)
    return {numbers[a]: numbers[b] for a, b in result.partner.items()}, {numbers[key] for key in result.degraded}


def test_full_and_low_dose_of_one_study_are_a_pair(hospital: Any) -> None:
    assert pairs(hospital, FULL, LOW) == ({"0": "1"}, {"1"})
    assert pairs(hospital, LOW, FULL) == ({"1": "0"}, {"0"})


def test_the_exposure_alone_tells_where_it_is_half_or_less_at_the_same_beam(hospital: Any) -> None:
    plain = {"ProtocolName": "Abdomen"}
    assert pairs(hospital, plain | {"Exposure": "100"}, plain | {"Exposure": "50"}) == ({"0": "1"}, {"1"})
    assert pairs(hospital, plain | {"Exposure": "100"}, plain | {"Exposure": "60"}) == ({}, set())
    other = plain | {"Exposure": "10", "KVP": "80"}
    assert pairs(hospital, plain | {"Exposure": "100"}, other) == ({}, set())


@pytest.mark.parametrize(
    "changes",
    [
        {"StudyInstanceUID": "1.2.3"},
        {"FrameOfReferenceUID": "1.2.3"},
        {"FrameOfReferenceUID": ""},
        {"PixelSpacing": [2, 2]},
        {"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]},
        {"ImagePositionPatient": [-10, -20, 7]},
        {"Modality": "MR"},
        {"Exposure": "300"},
        {"ProtocolName": "Abdomen"},
        {"ProtocolName": "FULL DOSE and LOW DOSE"},
    ],
)
def test_anything_that_differs_makes_no_pair(hospital: Any, changes: dict[str, Any]) -> None:
    assert pairs(hospital, FULL, LOW | changes) == ({}, set())


def test_several_low_doses_of_one_full_dose_share_no_second_clean_series(hospital: Any) -> None:
    partner, degraded = pairs(hospital, FULL, LOW, LOW)
    assert degraded == {"1", "2"}
    assert list(partner) == ["0"]


def test_a_middle_dose_is_nobodys_clean_partner(hospital: Any) -> None:
    plain = {"ProtocolName": "Abdomen"}
    doses = [plain | {"Exposure": dose} for dose in ("100", "40", "10")]
    partner, degraded = pairs(hospital, *doses)
    assert list(partner) == ["0"]
    assert degraded == {"1", "2"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("CT THORAX FULL DOSE", "full"),
        ("ct thorax low-dose", "low"),
        ("LowDose", "low"),
        ("LDCT screening", "low"),
        ("T1 STANDARD", "full"),
        ("T1 FAST", "low"),
        ("LOW DOSE STANDARD", "low"),
        ("ROUTINE DOSE FAST", "full"),
        ("BREAKFAST STANDARDS", None),
        ("T1 FAST STANDARD", None),
        ("", None),
    ],
)
def test_protocol_words(words: str, expected: str | None) -> None:
    assert protocol_of(words) == expected
