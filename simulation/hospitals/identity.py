"""A site and a patient's number in, an obviously invented identity out: everything that de-identification must remove.

No name, address or number belongs to anyone; the lists are fixed so that tests can grep for every value of them.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from shared.seeding import derived_seed, numpy_generator

FAMILY_NAMES = (
    "Quillfeather", "Mockingham", "Sampleton", "Nonesuch", "Figmentson", "Makebeliev", "Dummyfield", "Placeholdt",
    "Fabricatti", "Inventorsky", "Phantomas", "Testerfield", "Mustermannova", "Notarealname", "Fictionberg",
    "Loremipsum", "Pretendez", "Simulacra", "Unrealson", "Wardroundova",
)  # fmt: skip
GIVEN_NAMES = (
    "Aurelianne", "Bartholomina", "Celestino", "Dulcibella", "Evanderic", "Florimonda", "Galahadine", "Hyacinthus",
    "Isambarda", "Jocastella", "Kestrelle", "Leopoldine", "Marmaduka", "Nepomucena", "Ottoliney", "Peregrinus",
    "Quintiliana", "Rosamundo", "Sidoniette", "Thaddeusa",
)  # fmt: skip
STREETS = ("Nowhere Lane", "Imaginary Road", "Lorem Street", "Placebo Avenue", "Phantom Crescent", "Utopia Square")
TOWNS = ("Erewhon", "Laputa-on-Sea", "Brigadoonia", "Atlantis Parva", "Shangri-Lahm", "Lower Cockaigne")
MAKERS = (
    ("Nonesuch Imaging", "Mirage 3000"),
    ("Figment Scanners", "Chimera One"),
    ("Invented Systems", "Fata Morgana S"),
)


@dataclass(frozen=True, slots=True)
class SiteIdentity:
    """What every study of a hospital carries."""

    institution: str
    address: str
    department: str
    station: str
    manufacturer: str
    model: str
    serial: str
    physicians: tuple[str, ...]  # referring, performing, reading, operator, requesting


@dataclass(frozen=True, slots=True)
class PatientIdentity:
    """What every image of a patient's one study carries; dates as DICOM DA, times as DICOM TM."""

    name: str
    patient_id: str
    other_id: str
    birth_date: str
    sex: str
    age: str
    size_m: str
    weight_kg: str
    address: str
    telephone: str
    accession: str
    study_id: str
    study_date: str
    study_time: str
    comment: str


def site_identity(seed: int, site: str) -> SiteIdentity:
    draw = numpy_generator(seed, "hospitals", site, "site identity")
    number = derived_seed(0, "station", site) % 900 + 100  # of the name alone: a station keeps its name across seeds
    manufacturer, model = MAKERS[int(draw.integers(len(MAKERS)))]
    town = TOWNS[int(draw.integers(len(TOWNS)))]
    people = tuple(
        f"{FAMILY_NAMES[family]}^{GIVEN_NAMES[given]}^^Dr"
        for family, given in zip(
            draw.permutation(len(FAMILY_NAMES))[:5], draw.permutation(len(GIVEN_NAMES))[:5], strict=True
        )
    )
    return SiteIdentity(
        institution=f"{site.title()} Invented Hospital",
        address=f"{number} {STREETS[int(draw.integers(len(STREETS)))]}, {town}",
        department=f"Imaginary Radiology {number}",
        station=f"STATION{number}",
        manufacturer=manufacturer,
        model=model,
        serial=f"SN-{int(draw.integers(10**7, 10**8))}",
        physicians=people,
    )


def patient_identity(seed: int, site: str, number: int) -> PatientIdentity:
    """Patients of one site never share a PatientID or accession number; two sites share one with a chance of 1e-8."""
    draw = numpy_generator(seed, "hospitals", site, number, "identity")
    block = f"{derived_seed(seed, 'patient id', site) % 10**8:08d}{number:04d}"
    study_day = datetime.date(2018, 1, 1) + datetime.timedelta(days=int(draw.integers(2500)))
    age = int(draw.integers(20, 95))
    birthday = study_day - datetime.timedelta(days=age * 365 + age // 4 + int(draw.integers(1, 360)))
    family, given = (str(draw.choice(names)) for names in (FAMILY_NAMES, GIVEN_NAMES))
    return PatientIdentity(
        name=f"{family}^{given}",
        patient_id=f"MRN{block}",
        other_id=f"INS-{block}-{int(draw.integers(100, 1000))}",
        birth_date=birthday.strftime("%Y%m%d"),
        sex=str(draw.choice(["F", "M"])),
        age=f"{age:03d}Y",
        size_m=f"{draw.uniform(1.5, 1.95):.2f}",
        weight_kg=f"{draw.uniform(48, 110):.1f}",
        address=f"{int(draw.integers(1, 400))} {draw.choice(STREETS)}, {draw.choice(TOWNS)}",
        telephone=f"+00 555 {int(draw.integers(10**6, 10**7))}",
        accession=f"ACC{block}",
        study_id=f"ST{block}",
        study_date=study_day.strftime("%Y%m%d"),
        study_time=f"{int(draw.integers(7, 19)):02d}{int(draw.integers(60)):02d}{int(draw.integers(60)):02d}",
        comment=f"{given} {family} asked to be called by phone",
    )
