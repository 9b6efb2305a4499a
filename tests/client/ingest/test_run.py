"""Ingest from end to end, on files whose every voxel is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.ingest.reasons import IngestReport, Reason
from client.ingest.run import ingest
from client.ingest.store import Store
from shared.config import DataConfig, IntensityConfig
from shared.errors import ConfigError, DataError

CODES: dict[str, Any] = {"mask_codes": {"organ": 5, "lesion": 9}, "diagnosis_codes": {"ok": "none", "Ca": "tumour"}}


def run(source: Path, store: Path, data: DataConfig, hospital: Any, **codes: Any) -> IngestReport:
    return ingest(source, store, data, secret=hospital.secret, **{**CODES, **codes})


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "source").mkdir()
    return tmp_path / "source", tmp_path / "store"


def test_a_ct_series_is_stored_slice_by_slice_on_the_campaigns_scale(
    hospital: Any, data: DataConfig, places: tuple[Path, Path]
) -> None:
    hospital.write_series(places[0], 3)
    report = run(*places, data, hospital)
    assert report.table() == (("stored", "image", 3),)
    (record,) = Store.open(places[1]).series
    assert record.shape == (3, 1, 8, 6)
    assert record.spacing_mm == (5.0, 2.0, 3.0)
    expected = np.stack([hospital.stored_pixels(index) for index in range(3)])[:, None] / 1000
    np.testing.assert_allclose(Store.open(places[1]).image(record.key), expected, atol=1e-6)
    assert (record.has_mask, record.diagnosis, record.role, record.ends) == (False, -1, "image", (-1000.0, 0.0))


def test_labels_are_mapped_to_the_campaigns_codes_and_overlaps_go_to_the_higher(
    hospital: Any, data: DataConfig, places: tuple[Path, Path]
) -> None:
    hospital.write_series(places[0], 3)
    organ, lesion = np.zeros((2, 3, 8, 6), dtype=bool)
    organ[1:, 2:6, 1:5] = True
    lesion[2, 3, 2:6] = True
    unknown = ~organ
    images = [hospital.new_image(index) for index in range(3)]
    seg = hospital.new_segmentation({9: lesion, 5: organ, 7: unknown}, images)
    hospital.save(seg, places[0] / "labels" / "seg.dcm")
    (places[0] / "diagnoses.csv").write_text(f"PatientID,diagnosis\n{hospital.identity['PatientID']}-1, ca \nx,zz\n")
    report = run(*places, data, hospital)
    assert report.count("used as label") == 2
    assert (report.masks, report.diagnoses, report.diagnoses_unknown) == (1, 1, 1)
    store = Store.open(places[1])
    (record,) = store.series
    expected = np.where(lesion, 2, np.where(organ, 1, 0))
    np.testing.assert_array_equal(store.mask(record.key), expected)
    assert record.diagnosis == 1
    assert store.rule["labels"] == {"masks": {"5": 1, "9": 2}, "diagnoses": {"ca": 1, "ok": 0}}


def test_the_same_folder_twice_adds_nothing(hospital: Any, data: DataConfig, places: tuple[Path, Path]) -> None:
    hospital.write_series(places[0], 3)
    run(*places, data, hospital)
    before = (places[1] / "index.json").read_bytes()
    report = run(*places, data, hospital)
    assert report.table() == (("already stored", "image", 3),)
    assert (report.series_new, report.series_kept) == (0, 1)
    assert (places[1] / "index.json").read_bytes() == before


def test_labels_that_come_later_update_their_series_and_no_label_takes_none_away(
    hospital: Any, data: DataConfig, places: tuple[Path, Path]
) -> None:
    hospital.write_series(places[0], 2)
    run(*places, data, hospital)
    images = [hospital.new_image(index) for index in range(2)]
    seg = hospital.new_segmentation({5: np.ones((2, 8, 6), dtype=bool)}, images)
    label = hospital.save(seg, places[0] / "seg.dcm")
    report = run(*places, data, hospital)
    assert (report.series_new, report.series_updated, report.masks) == (0, 1, 1)
    label.unlink()
    assert run(*places, data, hospital).masks == 1
    run(*places, data, hospital)
    files = sorted(path.name.split(".", 1)[1] for path in (places[1] / "series").iterdir())
    assert files == ["image.npy", "mask.npy"], "the replaced generation is swept"


def test_a_fuller_series_replaces_a_partial_one_and_never_the_other_way(
    hospital: Any, data: DataConfig, places: tuple[Path, Path]
) -> None:
    paths = hospital.write_series(places[0], 4)
    aside = [path.rename(path.with_suffix(".aside")) for path in paths[2:]]
    for path in aside:
        path.rename(places[0].parent / path.name)
    run(*places, data, hospital)
    for path in aside:
        (places[0].parent / path.name).rename(path.with_suffix(".dcm"))
    assert run(*places, data, hospital).series_updated == 1
    assert Store.open(places[1]).series[0].shape[0] == 4
    paths[0].unlink()
    report = run(*places, data, hospital)
    assert report.count("skipped", Reason.OTHER_INSTANCES) == 3
    assert Store.open(places[1]).series[0].shape[0] == 4


def test_a_real_pair_shares_its_grid_and_the_clean_partners_scale(
    hospital: Any, make_data: Callable[..., DataConfig], places: tuple[Path, Path]
) -> None:
    data = make_data(intensity=IntensityConfig(rule="percentile", low=0, high=100))
    hospital.write_series(places[0], 3, ProtocolName="ABDOMEN FULL DOSE", Exposure="100")
    hospital.write_series(places[0], 3, series="2", ProtocolName="ABDOMEN LOW DOSE", Exposure="10", RescaleSlope="0.5")
    report = run(*places, data, hospital)
    assert report.pairs == 1
    store = Store.open(places[1])
    (clean,) = [record for record in store.series if record.role == "image"]
    (low,) = [record for record in store.series if record.role == "degraded"]
    assert clean.pair == low.key
    assert low.pair is None
    assert clean.ends == low.ends
    np.testing.assert_allclose(store.image(low.key), store.image(clean.key) * 0.5, atol=1e-6)
    assert run(*places, data, hospital).series_kept == 2


def test_a_pair_whose_degraded_partner_is_unusable_is_no_pair(
    hospital: Any, data: DataConfig, places: tuple[Path, Path]
) -> None:
    hospital.write_series(places[0], 2, ProtocolName="FULL DOSE")
    hospital.write_series(places[0], 2, series="2", ProtocolName="LOW DOSE", PixelData=b"\0\0")
    report = run(*places, data, hospital)
    assert report.count("quarantined", Reason.UNDECODABLE) == 2
    (record,) = Store.open(places[1]).series
    assert record.pair is None


def test_a_damaged_slice_leaves_the_rest_and_a_hole_in_the_middle_quarantines_it(
    hospital: Any, data: DataConfig, places: tuple[Path, Path]
) -> None:
    paths = hospital.write_series(places[0], 4)
    paths[3].write_bytes(paths[3].read_bytes()[:-40])
    report = run(*places, data, hospital)
    assert report.table() == (("stored", "image", 3), ("quarantined", "pixel data truncated or not decodable", 1))
    again = run(*places, data, hospital)
    assert again.table() == (
        ("already stored", "image", 3),
        ("quarantined", "pixel data truncated or not decodable", 1),
    )
    hole = hospital.write_series(places[0], 5, patient="2")
    hole[2].unlink()
    assert run(*places, data, hospital).count("quarantined", Reason.SLICE_GAP) == 4


def test_a_good_copy_stands_in_for_a_damaged_one(hospital: Any, data: DataConfig, places: tuple[Path, Path]) -> None:
    (path,) = hospital.write_series(places[0], 1)
    (places[0] / "0-copy.dcm").write_bytes(path.read_bytes()[:-40])
    report = run(*places, data, hospital)
    assert report.table() == (("stored", "image", 1), ("skipped", "same instance seen before", 1))


def test_files_without_identifiers_get_stable_keys_from_their_content(
    hospital: Any, data: DataConfig, tmp_path: Path
) -> None:
    nothing = dict.fromkeys(
        ("PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    keys = []
    for name in ("a", "b"):
        hospital.write_series(tmp_path / name, 3, **nothing)
        report = run(tmp_path / name, tmp_path / f"store-{name}", data, hospital)
        assert report.series_new == 1
        keys.append(Store.open(tmp_path / f"store-{name}").series[0])
    assert (keys[0].key, keys[0].patient) == (keys[1].key, keys[1].patient), "keys do not depend on the path"
    assert keys[0].shape[0] == 3, "slices of one folder and one look are one series"
    assert run(tmp_path / "a", tmp_path / "store-a", data, hospital).series_kept == 1


def test_one_patient_has_one_pseudonym_and_issuers_keep_patients_apart(
    hospital: Any, data: DataConfig, places: tuple[Path, Path]
) -> None:
    hospital.write_series(places[0], 2)
    hospital.write_series(places[0], 2, series="2", StudyInstanceUID="1.2.3.4")
    hospital.write_series(places[0], 2, series="3", StudyInstanceUID="1.2.3.5", IssuerOfPatientID="Elsewhere")
    report = run(*places, data, hospital)
    assert (report.series_new, report.patients) == (3, 2)


def test_resampling_and_common_orientation_carry_image_and_mask_alike(
    hospital: Any, make_data: Callable[..., DataConfig], places: tuple[Path, Path]
) -> None:
    # Slices from head to feet, rows from back to front: everything must come out the other way round.
    data = make_data(spacing_mm=(5.0, 1.0, 1.5))
    images = []
    for index in range(9):
        image = hospital.new_image(
            index, ImageOrientationPatient=[1, 0, 0, 0, -1, 0], ImagePositionPatient=[0, 0, -5 * index]
        )
        images.append(image)
        hospital.save(image, places[0] / f"{index}.dcm")
    mask = np.zeros((9, 8, 6), dtype=bool)
    mask[7, 1, 4] = True
    hospital.save(hospital.new_segmentation({5: mask}, images), places[0] / "seg.dcm")
    run(*places, data, hospital)
    store = Store.open(places[1])
    (record,) = store.series
    assert record.spacing_mm == (5.0, 1.0, 1.5)
    stored = np.stack([hospital.stored_pixels(index) for index in range(9)]).astype(float)
    upright = stored[::-1, ::-1] / 1000
    image = store.image(record.key)[:, 0]
    assert image.shape == (9, 15, 11)
    np.testing.assert_allclose(image[:, ::2, ::2], upright, atol=1e-5)
    found = store.mask(record.key)
    assert found is not None
    assert found[1, 12, 8] == 1
    np.testing.assert_array_equal(found[:, ::2, ::2], mask[::-1, ::-1])


def test_another_rule_label_map_or_secret_is_refused_and_the_store_stays(
    hospital: Any, data: DataConfig, places: tuple[Path, Path]
) -> None:
    hospital.write_series(places[0], 2)
    run(*places, data, hospital)
    before = (places[1] / "index.json").read_bytes()
    other = replace(data, ingest=replace(data.ingest, intensity=IntensityConfig(rule="range")))
    with pytest.raises(DataError, match="another ingest rule.*new store"):
        run(*places, other, hospital)
    with pytest.raises(DataError, match="another label map.*new store"):
        run(*places, data, hospital, mask_codes={"organ": 1, "lesion": 2})
    with pytest.raises(DataError, match="another site secret"):
        ingest(*places, data, secret=b"y" * 32, **CODES)
    assert (places[1] / "index.json").read_bytes() == before


@pytest.mark.parametrize(
    ("codes", "reason"),
    [
        ({"mask_codes": {"spleen": 1}}, "mask_codes names 'spleen'"),
        ({"mask_codes": {"organ": 1, "lesion": 1}}, "its own segment number"),
        ({"mask_codes": {"organ": 0}}, "from 1 on"),
        ({"diagnosis_codes": {"x": "cold"}}, "diagnosis_codes leads to 'cold'"),
        ({"secret": b"short"}, "16 bytes or more"),
    ],
)
def test_maps_and_secrets_that_cannot_be_kept_are_refused(
    hospital: Any, data: DataConfig, places: tuple[Path, Path], codes: dict[str, Any], reason: str
) -> None:
    hospital.write_series(places[0], 1)
    with pytest.raises(ConfigError, match=reason):
        ingest(*places, data, **{"secret": hospital.secret, **CODES, **codes})
    assert not places[1].exists()


def test_progress_counts_to_the_end_of_each_stage(hospital: Any, data: DataConfig, places: tuple[Path, Path]) -> None:
    hospital.write_series(places[0], 2)
    seen: list[tuple[str, int, int]] = []
    run(*places, data, hospital, on_progress=lambda *call: seen.append(call))
    assert seen == [("read headers", 1, 2), ("read headers", 2, 2), ("store series", 1, 1)]


def test_a_quarantined_file_that_is_mended_leaves_the_quarantine(
    hospital: Any, data: DataConfig, places: tuple[Path, Path]
) -> None:
    hospital.save(hospital.new_image(BurnedInAnnotation="YES"), places[0] / "a.dcm")
    report = run(*places, data, hospital)
    assert report.table() == (("quarantined", "burned-in annotation", 1),)
    with pytest.raises(DataError, match="holds no series"):
        Store.open(places[1])
    hospital.save(hospital.new_image(BurnedInAnnotation="NO"), places[0] / "a.dcm")
    hospital.save(hospital.new_image(1, BurnedInAnnotation="YES"), places[0] / "b.dcm")
    run(*places, data, hospital)
    assert list(Store.open(places[1]).quarantine.values()) == ["burned-in annotation"]
    body = json.loads((places[1] / "index.json").read_text())["body"]
    assert len(body["series"]) == 1


def test_three_channels_repeat_grey(hospital: Any, data: DataConfig, places: tuple[Path, Path]) -> None:
    hospital.write_series(places[0], 2)
    run(*places, replace(data, channels=3), hospital)
    store = Store.open(places[1])
    image = store.image(store.series[0].key)
    assert image.shape == (2, 3, 8, 6)
    np.testing.assert_array_equal(image[:, 0], image[:, 2])
