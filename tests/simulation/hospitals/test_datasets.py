"""Real data sets, by tiny fakes of one layout: every voxel keeps its value and place, no patient is at two sites."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from shared.config import HospitalConfig, ScannerConfig, SimulationConfig
from shared.errors import ConfigError, DataError
from simulation.hospitals import write_hospitals
from simulation.hospitals.hippocampus import cohorts as hippocampus_cohorts
from simulation.hospitals.pneumonia import cohorts as pneumonia_cohorts
from tests.simulation.hospitals.conftest import patients_of, read_series, stored_DHW
from tests.simulation.hospitals.test_segmentation import decode

Make = Callable[..., SimulationConfig]

# Axes to P, R, S with unequal spacing: neither the order nor the sign that DICOM would choose.
OBLIQUE = np.array([[0, 2, 0, -5.0], [-1.5, 0, 0, 7.0], [0, 0, 3, 1.0], [0, 0, 0, 1]])


def _save(values: np.ndarray, path: Path, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


def _labels(root: Path, rows: list[dict[str, Any]]) -> None:
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def hippocampus(tmp_path: Path) -> Path:
    """Six patients: four of the wide protocol, two of the uint8 one."""
    root, rng, rows = tmp_path / "hippocampus", np.random.default_rng(0), []
    for number in range(6):
        image = rng.uniform(0, 3000 if number < 4 else 255, size=(5, 7, 4)).astype(np.float32)
        mask = rng.integers(0, 3, size=(5, 7, 4)).astype(np.uint8)
        name = f"hippocampus_{number:03d}"
        _save(image, root / f"images/{name}.nii.gz", OBLIQUE)
        _save(mask, root / f"masks/{name}.nii.gz", OBLIQUE)
        protocol = "wide-range" if number < 4 else "uint8-range"
        rows.append(
            {"id": name, "image": f"images/{name}.nii.gz", "mask": f"masks/{name}.nii.gz", "protocol": protocol}
        )
    _labels(root, rows)
    return root


def test_every_voxel_keeps_its_value_label_and_place_in_the_patient(
    make: Make, hippocampus: Path, tmp_path: Path
) -> None:
    config = make("hippocampus", HospitalConfig(name="north", patients=2, protocol="uint8"), root=hippocampus)
    (site,) = write_hospitals(config, tmp_path / "out")
    (cases,) = hippocampus_cohorts(config, config.hospitals.sites)
    for case, patient in zip(cases, patients_of(site), strict=True):
        image = nibabel.load(hippocampus / f"images/{case.item}.nii.gz").get_fdata()
        mask = nibabel.load(hippocampus / f"masks/{case.item}.nii.gz").get_fdata()
        slices = read_series(site, patient)
        decoded = decode(pydicom.dcmread(site / "labels" / f"{patient}.dcm"), slices)
        for k, ds in enumerate(slices):
            for r, c in ((0, 0), (6, 4), (2, 3)):
                # PS3.3 C.7.6.2.1.1, then L, P, S to R, A, S, then into the file's voxels.
                along_columns, along_rows = np.split(np.asarray(ds.ImageOrientationPatient, dtype=float), 2)
                lps = np.asarray(ds.ImagePositionPatient, dtype=float)
                lps = lps + along_columns * c * ds.PixelSpacing[1] + along_rows * r * ds.PixelSpacing[0]
                i, j, n, _ = np.rint(np.linalg.solve(OBLIQUE, [-lps[0], -lps[1], lps[2], 1])).astype(int)
                assert abs(ds.pixel_array[r, c] - image[i, j, n]) <= 0.5
                assert decoded[k, r, c] == mask[i, j, n]


def test_sites_by_protocol_share_no_patient_and_unnamed_ones_take_what_is_left(make: Make, hippocampus: Path) -> None:
    hospitals = (
        HospitalConfig(name="any", patients=2),
        HospitalConfig(name="wide", patients=3, protocol="wide"),
        HospitalConfig(name="narrow", patients=1, protocol="uint8"),
    )
    config = make("hippocampus", *hospitals, root=hippocampus)
    anything, wide, narrow = ([case.item for case in cases] for cases in hippocampus_cohorts(config, hospitals))
    assert set(wide) < {f"hippocampus_{n:03d}" for n in range(4)}
    assert set(narrow) < {"hippocampus_004", "hippocampus_005"}
    assert len({*anything, *wide, *narrow}) == 6


def test_values_beyond_16_bits_are_kept_by_a_rescale_slope(make: Make, hippocampus: Path, tmp_path: Path) -> None:
    huge = np.linspace(0, 1.4e6, 140, dtype=np.float32).reshape(5, 7, 4)
    for number in (4, 5):
        _save(huge, hippocampus / f"images/hippocampus_{number:03d}.nii.gz", np.eye(4))
        _save(np.zeros((5, 7, 4), np.uint8), hippocampus / f"masks/hippocampus_{number:03d}.nii.gz", np.eye(4))
    hospital = HospitalConfig(name="north", patients=1, protocol="uint8")
    (site,) = write_hospitals(make("hippocampus", hospital, root=hippocampus), tmp_path / "out")
    images = read_series(site, patients_of(site)[0])
    restored = stored_DHW(images) * float(images[0].RescaleSlope)
    np.testing.assert_allclose(restored.transpose(2, 1, 0), huge, atol=float(images[0].RescaleSlope))


@pytest.mark.parametrize(
    ("hospital", "reason"),
    [
        (
            HospitalConfig(name="a", patients=5, protocol="wide"),
            "asks for 5 patients of protocol 'wide', but .* 4 left",
        ),
        (HospitalConfig(name="a", patients=1, protocol="gold"), "protocol must begin one of"),
        (HospitalConfig(name="a", patients=1, scanner=ScannerConfig(noise=0.1)), "writes real images as they are"),
        (HospitalConfig(name="a", patients=1, paired=0.5), "writes real images as they are"),
    ],
)
def test_a_hospital_that_the_data_cannot_fill_is_refused(
    make: Make, hippocampus: Path, tmp_path: Path, hospital: HospitalConfig, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        write_hospitals(make("hippocampus", hospital, root=hippocampus), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["hippocampus", "pneumonia", "totalseg"])
def test_a_missing_root_is_refused_with_the_way_out(make: Make, tmp_path: Path, kind: str) -> None:
    for root in (None, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=r"set data.root to the folder that holds labels.csv \(.* and "):
            write_hospitals(make(kind, root=root), tmp_path / "out")


def test_a_broken_image_is_a_data_error_without_its_folder(make: Make, hippocampus: Path, tmp_path: Path) -> None:
    for path in (hippocampus / "images").glob("*"):
        path.write_bytes(b"not NIfTI")
    with pytest.raises(DataError, match="no readable NIfTI file") as caught:
        write_hospitals(make("hippocampus", root=hippocampus), tmp_path / "out")
    assert str(tmp_path) not in str(caught.value)


@pytest.fixture
def pneumonia(tmp_path: Path) -> Path:
    """30 pneumonia, 14 normal; each picture carries its own number in its first pixel."""
    root = tmp_path / "pneumonia"
    root.mkdir()
    images = np.random.default_rng(0).integers(0, 256, size=(44, 28, 28)).astype(np.uint8)
    images[:, 0, 0] = np.arange(44)
    label = (np.arange(44) >= 14).astype(np.uint8)
    arrays = {"train_images": images[:40], "train_labels": label[:40, None]}
    np.savez(root / "set.npz", val_images=images[40:], val_labels=label[40:, None], **arrays)
    places = [("train", i) for i in range(40)] + [("val", i) for i in range(4)]
    _labels(
        root,
        [
            {"split": split, "index": i, "label": label[n], "label_name": ("normal", "pneumonia")[label[n]]}
            for n, (split, i) in enumerate(places)
        ],
    )
    return root


def test_x_rays_are_disjoint_skewed_and_diagnosed(make: Make, pneumonia: Path, tmp_path: Path) -> None:
    hospitals = (
        HospitalConfig(name="north", patients=10, balance=(0.8, 0.2)),
        HospitalConfig(name="hill", patients=20, balance=(0.1, 0.9)),
    )
    sites = write_hospitals(make("pneumonia", *hospitals, root=pneumonia), tmp_path / "out")
    numbers: list[int] = []
    for site, expected in zip(sites, ({"normal": 8, "pneumonia": 2}, {"normal": 2, "pneumonia": 18}), strict=True):
        with (site / "diagnoses.csv").open() as file:
            diagnosis = {row["PatientID"]: row["diagnosis"] for row in csv.DictReader(file)}
        assert Counter(diagnosis.values()) == expected
        assert not (site / "labels").exists()
        for patient in patients_of(site):
            (image,) = read_series(site, patient)
            assert (image.Modality, image.Rows, image.BitsStored) == ("DX", 28, 8)
            assert image.PhotometricInterpretation == "MONOCHROME2"
            number = int(image.pixel_array[0, 0])
            assert diagnosis[patient] == ("normal" if number < 14 else "pneumonia")
            numbers.append(number)
    assert len(set(numbers)) == len(numbers) == 30


def test_a_class_that_runs_out_is_refused(make: Make, pneumonia: Path) -> None:
    hospital = HospitalConfig(name="north", patients=20, balance=(1.0, 0.0))
    with pytest.raises(ConfigError, match="asks for 20 images of 'normal', but data.root has 14 left"):
        pneumonia_cohorts(make("pneumonia", hospital, root=pneumonia), (hospital,))


def test_another_data_set_is_a_data_error(make: Make, hippocampus: Path, pneumonia: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no column 'id'"):
        write_hospitals(make("hippocampus", root=pneumonia), tmp_path / "out")


@pytest.mark.parametrize("kept", [10, 5000, 30000])
def test_a_cut_archive_is_a_data_error(make: Make, pneumonia: Path, tmp_path: Path, kept: int) -> None:
    archive = next(pneumonia.glob("*.npz"))
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"the \.npz of data\.root cannot be read"):
        write_hospitals(make("pneumonia", root=pneumonia), tmp_path / "out")


@pytest.mark.parametrize("kept", [20, 300])
def test_a_cut_volume_is_a_data_error(make: Make, hippocampus: Path, tmp_path: Path, kept: int) -> None:
    for path in (hippocampus / "images").glob("*"):
        path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match="no readable NIfTI file"):
        write_hospitals(make("hippocampus", root=hippocampus), tmp_path / "out")


@pytest.fixture
def totalseg(tmp_path: Path) -> Path:
    """The NIfTI patient only; its kidney is two classes of the set."""
    root = tmp_path / "totalseg"
    image = np.random.default_rng(0).integers(-1000, 1000, size=(6, 5, 3)).astype(np.int16)
    classes = np.random.default_rng(1).choice([0, 2, 3, 5, 117], size=(6, 5, 3)).astype(np.uint8)
    _save(image, root / "nifti/example_ct_sm.nii.gz", np.diag([3.0, 3, 3, 1]))
    _save(classes, root / "nifti/example_seg.nii.gz", np.diag([3.0, 3, 3, 1]))
    _labels(root, [{"id": "ct_sm"}, {"id": "mr_sm"}])
    return root


def test_organs_are_mapped_by_name_and_hounsfield_units_kept(make: Make, totalseg: Path, tmp_path: Path) -> None:
    (site,) = write_hospitals(make("totalseg", HospitalConfig(name="a", patients=1), root=totalseg), tmp_path / "out")
    (patient,) = patients_of(site)
    images = read_series(site, patient)
    hu = nibabel.load(totalseg / "nifti/example_ct_sm.nii.gz").get_fdata()
    classes = nibabel.load(totalseg / "nifti/example_seg.nii.gz").get_fdata()
    np.testing.assert_array_equal(stored_DHW(images) - 1024, hu.transpose(2, 1, 0))
    decoded = decode(pydicom.dcmread(site / "labels" / f"{patient}.dcm"), images)
    expected = np.where(classes == 5, 1, 0) + np.where(np.isin(classes, (2, 3)), 2, 0)
    np.testing.assert_array_equal(decoded, expected.transpose(2, 1, 0))


def test_more_sites_than_volumes_are_refused(make: Make, totalseg: Path, tmp_path: Path) -> None:
    config = make("totalseg", HospitalConfig(name="a", patients=1), sites=2, root=totalseg)
    with pytest.raises(ConfigError, match="'a-2' asks for 1 patients, but data.root has 0 left"):
        write_hospitals(config, tmp_path / "out")
