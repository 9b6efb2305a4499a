"""Which files make one volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from client.ingest.run import ingest
from client.ingest.store import Store
from shared.config import DataConfig


def shapes(hospital: Any, data: DataConfig, tmp_path: Path, *images: Dataset) -> list[tuple[int, ...]]:
    for number, image in enumerate(images):
        hospital.save(image, tmp_path / "source" / f"{number}.dcm")
    ingest(tmp_path / "source", tmp_path / "store", data, secret=hospital.secret, mask_codes={}, diagnosis_codes={})
    return sorted(record.shape for record in Store.open(tmp_path / "store").series)


def test_echoes_and_time_points_at_one_place_become_volumes_of_their_own(
    hospital: Any, data: DataConfig, tmp_path: Path
) -> None:
    echoes = [
        hospital.new_image(index, EchoTime=echo, SOPInstanceUID=f"1.2.{index}.{echo}")
        for index in range(3)
        for echo in (10, 20)
    ]
    assert shapes(hospital, data, tmp_path / "a", *echoes) == [(3, 1, 8, 6)] * 2
    repeats = [
        hospital.new_image(index, AcquisitionNumber=time, SOPInstanceUID=f"1.2.{index}.{time}")
        for index in range(2)
        for time in (1, 2, 3)
    ]
    assert shapes(hospital, data, tmp_path / "b", *repeats) == [(2, 1, 8, 6)] * 3


def test_two_planes_in_one_series_are_two_volumes(hospital: Any, data: DataConfig, tmp_path: Path) -> None:
    axial = [hospital.new_image(index) for index in range(2)]
    sagittal = [
        hospital.new_image(
            index + 5, ImageOrientationPatient=[0, 1, 0, 0, 0, -1], ImagePositionPatient=[4 * index, 0, 0]
        )
        for index in range(3)
    ]
    assert shapes(hospital, data, tmp_path, *axial, *sagittal) == [(2, 1, 8, 6), (3, 1, 8, 6)]


def test_images_without_a_place_are_series_of_one(hospital: Any, data: DataConfig, tmp_path: Path) -> None:
    flat = [hospital.new_image(index, ImagePositionPatient=None) for index in range(2)]
    assert shapes(hospital, data, tmp_path, *flat) == [(1, 1, 8, 6)] * 2


def _enhanced(hospital: Any, depths: list[int]) -> Dataset:
    frames = []
    for depth in depths:
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, depth]
        group.PlanePositionSequence = Sequence([position])
        transformation = Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = 1, -1000 + depth
        group.PixelValueTransformationSequence = Sequence([transformation])
        frames.append(group)
    pixels = np.zeros((len(depths), 8, 6), np.int16)
    image: Dataset = hospital.new_image(0, NumberOfFrames=len(depths), PixelData=pixels.tobytes())
    image.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return image


def test_frames_of_an_enhanced_image_are_sorted_by_place_with_their_own_rescale(
    hospital: Any, data: DataConfig, tmp_path: Path
) -> None:
    assert shapes(hospital, data, tmp_path, _enhanced(hospital, [10, 0, 5])) == [(3, 1, 8, 6)]
    store = Store.open(tmp_path / "store")
    image = store.image(store.series[0].key)
    np.testing.assert_allclose(image[:, 0, 0, 0], [0, 0.005, 0.010], atol=1e-6)


def test_frames_that_share_a_place_keep_the_files_order(hospital: Any, data: DataConfig, tmp_path: Path) -> None:
    assert shapes(hospital, data, tmp_path, _enhanced(hospital, [10, 0, 10])) == [(3, 1, 8, 6)]
    store = Store.open(tmp_path / "store")
    np.testing.assert_allclose(store.image(store.series[0].key)[:, 0, 0, 0], [0.010, 0, 0.010], atol=1e-6)


def test_one_series_uid_for_two_patients_is_two_series(hospital: Any, data: DataConfig, tmp_path: Path) -> None:
    images = [hospital.new_image(index, PatientID=f"P{index}") for index in range(2)]
    assert shapes(hospital, data, tmp_path, *images) == [(1, 1, 8, 6)] * 2


@pytest.mark.parametrize("missing", ["PatientID", "StudyInstanceUID"])
def test_a_missing_name_is_derived_from_the_next_larger_thing(
    hospital: Any, data: DataConfig, tmp_path: Path, missing: str
) -> None:
    images = [hospital.new_image(0, series=series, **{missing: None}) for series in ("1", "2")]
    shapes(hospital, data, tmp_path, *images)
    records = Store.open(tmp_path / "store").series
    assert len(records) == 2
    same_patient = records[0].patient == records[1].patient
    assert same_patient, "one study without patient ID is one patient; one patient ID without study is too"
    assert (records[0].study == records[1].study) == (missing == "PatientID")
