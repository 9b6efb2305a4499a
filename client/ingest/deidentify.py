"""A DICOM dataset with identifiers in; the dataset under a named PS3.15 profile, and the actions taken, out.

DICOM PS3.15 Annex E, Basic Application Level Confidentiality Profile, with three of its options. Which attribute gets
which action is not ours to decide: table E.1-1 comes from the kept library dicom-anonymizer (edition TABLE_EDITION).
    D  replace by a dummy     Z  empty      X  remove      U  replace the UID, consistently      K  keep    C  clean
Where the table leaves a choice (X/Z, X/D, Z/D, X/Z/D), the one that stays valid for every IOD is taken: Z or D.
Beyond the table, and stricter: private attributes, curves, overlays, attributes of unknown VR, dates and times and
person names that the table does not list are removed, and UIDs that DICOM itself did not define are replaced.
Pixels are not cleaned: burned-in text is quarantined before (validate.py), and a face in a head scan stays
recognisable (PS3.15 E.3.2). Say both to the people who approve a campaign.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Literal, TypeAlias

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag

from client.ingest.keys import date_shift_days, keyed_id, keyed_uid
from client.ingest.reasons import Quarantined, Reason
from shared.config import DeidentifyConfig
from shared.errors import ConfigError

TABLE_EDITION = "dicomfields_2026c"
MAX_SEQUENCE_DEPTH = 16

Letter: TypeAlias = Literal["D", "Z", "X", "U", "K", "C"]

OPTIONS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "retain_longitudinal_modified_dates": (
            "113107",
            "Retain Longitudinal Temporal Information Modified Dates Option",
        ),
        "retain_patient_characteristics": ("113108", "Retain Patient Characteristics Option"),
        "retain_device_identity": ("113109", "Retain Device Identity Option"),
    }
)
"""Option -> its code and meaning in CID 7050."""

# Table E.1-1, column "Rtn. Pat. Chars. Opt.", action K. Its C actions (free text) stay removed.
PATIENT_CHARACTERISTICS = frozenset(
    {
        "EthnicGroup",
        "PatientAge",
        "PatientSex",
        "PatientSexNeutered",
        "PatientSize",
        "PatientWeight",
        "PregnancyStatus",
        "SmokingStatus",
    }
)
# Table E.1-1, column "Rtn. Dev. Id. Opt.", action K; descriptions (C) stay removed.
DEVICE_IDENTITY = frozenset(
    {
        "CassetteID",
        "DetectorID",
        "DeviceAlternateIdentifier",
        "DeviceSerialNumber",
        "GantryID",
        "GeneratorID",
        "LensMake",
        "LensModel",
        "LensSerialNumber",
        "ManufacturerDeviceIdentifier",
        "PerformedStationAETitle",
        "PerformedStationName",
        "PlateID",
        "ScheduledStationAETitle",
        "ScheduledStationName",
        "SourceSerialNumber",
        "StationAETitle",
        "StationName",
        "TreatmentMachineName",
        "XRayDetectorID",
        "XRaySourceID",
    }
)
NEVER_SHIFTED = frozenset({"PatientBirthDate", "PatientBirthTime"})

_CATEGORIES: Mapping[str, Letter] = MappingProxyType(
    {
        "D_TAGS": "D",
        "Z_TAGS": "Z",
        "X_TAGS": "X",
        "U_TAGS": "U",
        "Z_D_TAGS": "D",
        "X_Z_TAGS": "Z",
        "X_D_TAGS": "D",
        "X_Z_D_TAGS": "D",
        "X_Z_U_STAR_TAGS": "Z",
    }
)
_CURVES_AND_OVERLAYS = (0x5000, 0x6000)
_DUMMY_TEXT = "REMOVED"
_DUMMIES: Mapping[str, object] = MappingProxyType(
    {
        "DA": "19000101",
        "DT": "19000101",
        "TM": "000000",
        "AS": "000Y",
        "UR": "http://removed.invalid",
        "DS": "0",
        "IS": "0",
        **dict.fromkeys(("FD", "FL"), 0.0),
        **dict.fromkeys(("SS", "US", "SL", "UL", "SV", "UV"), 0),
        **dict.fromkeys(("OB", "OW", "OF", "OD", "OL", "OV", "UN"), b"\0\0"),
    }
)


@dataclass(frozen=True, slots=True)
class TagAction:
    """What was done to one attribute; names the attribute, never its value."""

    keyword: str
    letter: Letter


def check_profile(config: DeidentifyConfig) -> None:
    """Refuse an option that is not one of OPTIONS."""
    unknown = sorted(set(config.options) - OPTIONS.keys())
    if unknown:
        raise ConfigError(f"data.ingest.deidentify.options: unknown {unknown[0]!r}; known: {', '.join(OPTIONS)}")


def deidentify(dataset: Dataset, config: DeidentifyConfig, secret: bytes) -> tuple[Dataset, tuple[TagAction, ...]]:
    """A new dataset under the profile, and what was done; the input is not changed.

    Raises Quarantined where sequences nest deeper than MAX_SEQUENCE_DEPTH. File meta information and preamble are not
    carried over: they hold instance UID and application titles.
    """
    check_profile(config)
    patient = patient_pseudonym(dataset, secret) or ""
    actions: list[TagAction] = []
    cleaned = _clean(dataset, config, secret, patient, actions, depth=0)
    if "PatientID" in cleaned:
        cleaned.PatientID = patient
    _declare(cleaned, config)
    return cleaned, tuple(actions)


def patient_pseudonym(dataset: Dataset, secret: bytes) -> str | None:
    """Keyed over issuer and patient ID; None where the file has no patient ID."""
    patient_id = _text(dataset, "PatientID")
    return keyed_id(secret, "patient", _text(dataset, "IssuerOfPatientID"), patient_id) if patient_id else None


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip().strip("\0").strip()


def _clean(
    dataset: Dataset, config: DeidentifyConfig, secret: bytes, patient: str, actions: list[TagAction], *, depth: int
) -> Dataset:
    if depth > MAX_SEQUENCE_DEPTH:
        raise Quarantined(Reason.TOO_DEEP)
    cleaned = Dataset()
    for element in dataset:
        letter = _letter(element, config)
        keyword = keyword_for_tag(element.tag) or "unknown"
        if letter != "K":
            actions.append(TagAction(keyword, letter))
        if letter == "X":
            continue
        if element.VR == "SQ":
            kept = letter not in ("Z", "D")
            items = [_clean(item, config, secret, patient, actions, depth=depth + 1) for item in element.value if kept]
            cleaned.add(DataElement(element.tag, "SQ", Sequence(items)))
        else:
            cleaned.add(DataElement(element.tag, element.VR, _value(element, letter, secret, patient)))
    return cleaned


def _letter(element: DataElement, config: DeidentifyConfig) -> Letter:
    tag, keyword = element.tag, keyword_for_tag(element.tag)
    if tag.is_private or not keyword or element.VR == "UN" or tag.group & 0xFF00 in _CURVES_AND_OVERLAYS:
        return "X"
    if "retain_patient_characteristics" in config.options and keyword in PATIENT_CHARACTERISTICS:
        return "C" if keyword == "PatientAge" else "K"
    if "retain_device_identity" in config.options and keyword in DEVICE_IDENTITY:
        return "K"
    listed = _table().get(tag)
    if (
        "retain_longitudinal_modified_dates" in config.options
        and element.VR in ("DA", "DT")
        and keyword not in NEVER_SHIFTED
    ):
        return "C"
    if listed:
        return listed
    if element.VR in ("DA", "DT", "TM", "PN"):
        return "X"
    return "U" if element.VR == "UI" and not _is_standard(element.value) else "K"


def _value(element: DataElement, letter: Letter, secret: bytes, patient: str) -> object:
    if letter == "K":
        return element.value
    if letter == "U" or (letter == "D" and element.VR == "UI"):
        return _each(element.value, lambda uid: keyed_uid(secret, str(uid)) if str(uid) else "")
    if letter == "C":
        return _each(element.value, lambda text: _modified(element.VR, str(text), date_shift_days(secret, patient)))
    if letter == "D":
        return _DUMMIES.get(element.VR, _DUMMY_TEXT)
    return None


def _each(value: object, change: Callable[[object], str]) -> object:
    if isinstance(value, MultiValue | list):
        return [change(item) for item in value]
    return change(value) if value is not None else None


def _modified(vr: str, text: str, days: int) -> str:
    """A date moved by whole days (the time of day of a DT goes), an age capped at 90 years; empty if not readable."""
    if vr == "AS":
        return "090Y" if text.endswith("Y") and text[:-1].isdigit() and int(text[:-1]) > 90 else text
    digits = text.replace(".", "").replace("-", "")[:8]
    try:
        moved = datetime.datetime.strptime(digits, "%Y%m%d") + datetime.timedelta(days=days)
    except (ValueError, OverflowError):
        return ""
    return f"{moved:%Y%m%d}".rjust(8, "0")


def _is_standard(uid: object) -> bool:
    """UIDs under DICOM's own root name classes and syntaxes, not objects (PS3.6 Annex A)."""
    values = uid if isinstance(uid, MultiValue | list) else [uid]
    return all(not str(value) or str(value).startswith("1.2.840.10008.") for value in values)


@cache
def _table() -> Mapping[BaseTag, Letter]:
    """Table E.1-1 as tag -> action. Its rows that name a range of groups are the curves and overlays."""
    from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector

    lists = dicom_anonymization_database_selector(TABLE_EDITION)
    ranges = {entry[0] for category in _CATEGORIES for entry in lists[category] if len(entry) != 2}
    assert ranges <= set(_CURVES_AND_OVERLAYS), ranges
    single = {
        Tag(entry): letter for category, letter in _CATEGORIES.items() for entry in lists[category] if len(entry) == 2
    }
    return MappingProxyType(single)


def _declare(dataset: Dataset, config: DeidentifyConfig) -> None:
    """PS3.15 E.1.1 step 6 and PS3.3 C.7.1.1: say that, and by which profile and options, identity was removed."""
    codes = [("113100", "Basic Application Confidentiality Profile")]
    codes += [OPTIONS[option] for option in OPTIONS if option in config.options]
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "Wardround: DICOM PS3.15 Annex E, basic profile"
    dataset.DeidentificationMethodCodeSequence = Sequence([_code(value, meaning) for value, meaning in codes])
    moved = "retain_longitudinal_modified_dates" in config.options
    dataset.LongitudinalTemporalInformationModified = "MODIFIED" if moved else "REMOVED"


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


assert all(tag_for_keyword(keyword) for keyword in PATIENT_CHARACTERISTICS | DEVICE_IDENTITY)
assert dictionary_VR(Tag("PatientID")) == "LO"
