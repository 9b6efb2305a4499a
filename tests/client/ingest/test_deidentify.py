"""De-identification against table E.1-1 itself, attribute by attribute."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import UID, CTImageStorage

from client.ingest.deidentify import MAX_SEQUENCE_DEPTH, TABLE_EDITION, deidentify
from client.ingest.keys import (
    DATE_SHIFT_DAYS,
    check_secret,
    date_shift_days,
    keyed_digest,
    keyed_uid,
)
from client.ingest.reasons import Quarantined
from shared.config import DeidentifyConfig
from shared.errors import ConfigError

BASIC = DeidentifyConfig()
SECRET = b"k" * 32
TABLE = dicom_anonymization_database_selector(TABLE_EDITION)
VALUES = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "SH", "ST", "UC", "UT", "UR"), "SECRETIVE"),
    "PN": "SECRETIVE^PERSON", "UI": "1.2.3.99.4", "DA": "20230314", "DT": "20230314081233", "TM": "081233",
    "AS": "044Y", "DS": "4.5", "IS": "45", "OB": b"SECRETIVE!", "UN": b"SECRETIVE!",
    **dict.fromkeys(("FD", "FL"), 4.5), **dict.fromkeys(("SS", "US", "SL", "UL"), 45),
}  # fmt: skip


def with_element(tag: tuple[int, int]) -> Dataset:
    ds = Dataset()
    vr = dictionary_VR(Tag(tag)).split(" ")[0]
    if vr == "SQ":
        item = Dataset()
        item.PersonName = "SECRETIVE"
        ds.add(DataElement(Tag(tag), "SQ", Sequence([item])))
    else:
        ds.add(DataElement(Tag(tag), vr, VALUES[vr]))
    return ds


def entries(*categories: str) -> list[tuple[int, int]]:
    listed = {entry for name in categories for entry in TABLE[name] if len(entry) == 2 and entry[0] != 2}
    return sorted(entry for entry in listed if dictionary_has_tag(Tag(entry)))


@pytest.mark.parametrize("category", ["X_TAGS", "Z_TAGS", "D_TAGS", "U_TAGS", "Z_D_TAGS", "X_Z_TAGS", "X_D_TAGS",
                                      "X_Z_D_TAGS", "X_Z_U_STAR_TAGS"])  # fmt: skip
def test_every_attribute_of_the_table_gets_its_action(category: str) -> None:
    checked = 0
    for tag in entries(category):
        ds = with_element(tag)
        before = ds[Tag(tag)].value
        after, actions = deidentify(ds, BASIC, SECRET)
        name = keyword_for_tag(Tag(tag))
        assert any(action.keyword == name for action in actions), name
        if category == "X_TAGS" or ds[Tag(tag)].VR == "UN":
            assert Tag(tag) not in after, name
        else:
            assert after[Tag(tag)].value != before, name
            assert "SECRETIVE" not in str(after), name
        if Tag(tag) in after and category in ("Z_TAGS", "X_Z_TAGS", "X_Z_U_STAR_TAGS"):
            assert not after[Tag(tag)].value, name
        if category == "U_TAGS":
            assert after[Tag(tag)].value == keyed_uid(SECRET, "1.2.3.99.4"), name
        checked += 1
    assert checked == len(entries(category)) > 0


def test_what_the_table_does_not_list_is_kept_where_it_cannot_identify() -> None:
    ds = Dataset()
    ds.Modality, ds.KVP, ds.SOPClassUID, ds.Rows, ds.Manufacturer = "CT", "120", CTImageStorage, 512, "Acme"
    after, actions = deidentify(ds, BASIC, SECRET)
    assert actions == ()
    for element in ds:
        assert after[element.tag].value == element.value


def test_stricter_than_the_table_private_unknown_curves_overlays_and_foreign_uids_go() -> None:
    ds = Dataset()
    ds.private_block(0x0011, "MAKER", create=True).add_new(0x01, "LO", "SECRETIVE")
    ds.add_new((0x6000, 0x0022), "LO", "SECRETIVE")
    ds.add_new((0x6002, 0x3000), "OW", b"SECRETIVE!")
    ds.add_new((0x5000, 0x0022), "LO", "SECRETIVE")
    ds.add_new((0x0008, 0x9999), "UN", b"SECRETIVE!")
    ds.add_new((0x0018, 0x9999), "LO", "SECRETIVE")
    ds.add_new((0x0008, 0x0118), "UI", "1.2.3.4.5")
    ds.SecondaryReviewDate, ds.SecondaryReviewerName = "20230314", "SECRETIVE^REVIEWER"
    after, _ = deidentify(ds, BASIC, SECRET)
    assert "SECRETIVE" not in str(after)
    assert not any(element.tag.is_private for element in after)
    assert "SecondaryReviewDate" not in after
    assert after[0x0008, 0x0118].value == keyed_uid(SECRET, "1.2.3.4.5")


def test_nested_sequences_are_cleaned_at_every_depth_and_the_input_is_untouched() -> None:
    inner = Dataset()
    inner.PatientName, inner.ReferencedSOPInstanceUID, inner.KVP = "SECRETIVE", "1.2.3", "80"
    inner.private_block(0x0011, "MAKER", create=True).add_new(0x01, "LO", "SECRETIVE")
    middle, ds = Dataset(), Dataset()
    middle.SourceImageSequence = Sequence([inner])
    middle.PurposeOfReferenceCodeSequence = Sequence([inner])
    ds.DerivationImageSequence = Sequence([middle])
    before = str(ds)
    after, _ = deidentify(ds, BASIC, SECRET)
    assert str(ds) == before
    assert "SECRETIVE" not in str(after)
    kept = after.DerivationImageSequence[0].PurposeOfReferenceCodeSequence[0]
    assert (kept.KVP, kept.ReferencedSOPInstanceUID) == (80, keyed_uid(SECRET, "1.2.3"))


def test_sequences_nested_without_end_are_refused() -> None:
    ds = Dataset()
    for _ in range(MAX_SEQUENCE_DEPTH + 2):
        outer = Dataset()
        outer.ViewCodeSequence = Sequence([ds])
        ds = outer
    with pytest.raises(Quarantined, match="too deep"):
        deidentify(ds, BASIC, SECRET)


def test_uids_are_valid_consistent_and_keyed() -> None:
    new = keyed_uid(SECRET, "1.2.3")
    assert UID(new).is_valid
    assert new.startswith("2.25.")
    assert len(new) <= 64
    assert new == keyed_uid(SECRET, "1.2.3")
    assert new not in (keyed_uid(b"j" * 32, "1.2.3"), keyed_uid(SECRET, "1.2.4"))
    ds = Dataset()
    ds.IrradiationEventUID = ["1.2.3", "1.2.4"]
    after, _ = deidentify(ds, BASIC, SECRET)
    assert list(after.IrradiationEventUID) == [new, keyed_uid(SECRET, "1.2.4")]


def test_keyed_digests_do_not_collide_by_moving_a_border() -> None:
    assert keyed_digest(SECRET, "a", "bc") != keyed_digest(SECRET, "ab", "c")
    assert keyed_digest(SECRET, "p", "a", "b") != keyed_digest(SECRET, "p", "ab")


def patient(**values: Any) -> Dataset:
    ds = Dataset()
    ds.PatientID, ds.PatientSex, ds.PatientAge, ds.PatientBirthDate = "7", "F", "093Y", "19300102"
    ds.StudyDate, ds.AcquisitionDateTime, ds.StudyTime = "20230314", "20230316101112.5", "101112"
    ds.StationName, ds.DeviceSerialNumber = "BAY", "SN1"
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def test_the_basic_profile_declares_itself() -> None:
    after, _ = deidentify(patient(), BASIC, SECRET)
    assert after.PatientIdentityRemoved == "YES"
    assert after.LongitudinalTemporalInformationModified == "REMOVED"
    assert "PS3.15" in after.DeidentificationMethod
    codes = [(code.CodeValue, code.CodingSchemeDesignator) for code in after.DeidentificationMethodCodeSequence]
    assert codes == [("113100", "DCM")]
    assert after.PatientID != "7"
    assert len(after.PatientID) == 32
    assert not after.PatientSex
    assert "PatientAge" not in after
    assert not after.StudyDate


def test_the_options_keep_what_they_name_and_declare_it() -> None:
    options = (
        "retain_device_identity",
        "retain_patient_characteristics",
        "retain_longitudinal_modified_dates",
    )
    after, _ = deidentify(patient(), DeidentifyConfig(options=options), SECRET)
    assert (after.PatientSex, after.PatientAge, after.StationName, after.DeviceSerialNumber) == (
        "F",
        "090Y",
        "BAY",
        "SN1",
    )
    codes = [code.CodeValue for code in after.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113107", "113108", "113109"]
    assert after.LongitudinalTemporalInformationModified == "MODIFIED"
    assert not after.PatientBirthDate
    assert not after.StudyTime


def test_dates_of_a_patient_move_together_and_of_another_otherwise() -> None:
    dates = DeidentifyConfig(options=("retain_longitudinal_modified_dates",))

    def moved(patient_id: str, secret: bytes = SECRET) -> tuple[datetime.date, datetime.date]:
        after, _ = deidentify(patient(PatientID=patient_id), dates, secret)
        texts = after.StudyDate, str(after.AcquisitionDateTime)
        assert len(texts[1]) == 8, "the time of day is gone"
        first, second = (datetime.datetime.strptime(text, "%Y%m%d").date() for text in texts)
        return first, second

    first, second = moved("7")
    assert second - first == datetime.timedelta(days=2)
    days = (datetime.date(2023, 3, 14) - first).days
    assert DATE_SHIFT_DAYS[0] <= days < DATE_SHIFT_DAYS[1]
    assert moved("7") == (first, second)
    assert moved("8")[0] != first
    assert moved("7", b"j" * 32)[0] != first
    for nonsense in ("2023", "00000000", "about then", "00010101"):
        after, _ = deidentify(patient(StudyDate=nonsense), dates, SECRET)
        assert not after.StudyDate
    assert date_shift_days(SECRET, "a") < 0


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="may hold retain_longitudinal.*; got 'clean_pixels'"):
        deidentify(Dataset(), DeidentifyConfig(options=("clean_pixels",)), SECRET)


# ------------------------------------------------------------------------------------------------------------ secret


def test_a_secret_that_could_be_guessed_is_refused() -> None:
    check_secret(b"x" * 16)
    with pytest.raises(ConfigError, match="16 bytes or more"):
        check_secret(b"")
