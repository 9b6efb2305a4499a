"""The written files against the volume they came from, read back by pydicom and from the raw bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import UID

from shared.config import HospitalConfig, ScannerConfig, SimulationConfig
from simulation.hospitals import phantom, write_hospitals
from simulation.hospitals.cohort import simulated_cohorts
from simulation.hospitals.dicom import write_study
from simulation.hospitals.identity import patient_identity, site_identity
from simulation.hospitals.volume import Geometry, Source, Volume, axial
from tests.client.enhance.conftest import errors_of, needs_dciodvfy
from tests.simulation.hospitals.conftest import patients_of, read_series, stored_DHW

Make = Callable[..., SimulationConfig]

PAIRED = HospitalConfig(name="north", patients=2, paired=1.0, scanner=ScannerConfig(noise=0.01, spacing_mm=(4, 5, 6)))


@pytest.fixture
def site(make: Make, tmp_path: Path) -> Path:
    return write_hospitals(make("phantom", PAIRED), tmp_path)[0]


def test_pixels_are_the_rendered_ones_slice_by_slice(make: Make, site: Path) -> None:
    config = make("phantom", PAIRED)
    (cases,) = simulated_cohorts(config, (PAIRED,))
    render = phantom.renderer(config)
    for case, patient in zip(cases, patients_of(site), strict=True):
        volume = render(case, PAIRED)
        assert len({slice_HW.tobytes() for slice_HW in volume.stored_DHW}) == 4
        np.testing.assert_array_equal(stored_DHW(read_series(site, patient, 1)), volume.stored_DHW)
        np.testing.assert_array_equal(stored_DHW(read_series(site, patient, 2)), volume.degraded_DHW)
        np.testing.assert_array_equal(read_series(site, patient)[2].pixel_array, volume.stored_DHW[2])


def test_geometry_is_in_the_tags(site: Path) -> None:
    images = read_series(site, patients_of(site)[0])
    first = images[0]
    assert (first.Rows, first.Columns) == (64, 53)
    assert list(first.PixelSpacing) == [5, 6]
    assert (first.SliceThickness, first.SpacingBetweenSlices) == (4, 4)
    assert list(first.ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
    positions = np.asarray([image.ImagePositionPatient for image in images], dtype=float)
    np.testing.assert_allclose(positions, [[-156, -157.5, z] for z in (-6, -2, 2, 6)])
    assert [image.SliceLocation for image in images] == [-6, -2, 2, 6]
    assert [image.InstanceNumber for image in images] == [1, 2, 3, 4]


def test_files_are_dicom_with_distinct_uids_and_hounsfield_rescale(site: Path) -> None:
    images = [
        image for patient in patients_of(site) for number in (1, 2) for image in read_series(site, patient, number)
    ]
    assert len({image.SOPInstanceUID for image in images}) == len(images) == 16
    assert len({image.StudyInstanceUID for image in images}) == 2
    assert len({image.SeriesInstanceUID for image in images}) == 4
    for image in images:
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
        assert image.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        assert image.SOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
        assert UID(image.SOPInstanceUID).is_valid
        assert (image.RescaleIntercept, image.RescaleSlope, image.RescaleType) == (-1024, 1, "HU")
        assert (image.BitsAllocated, image.PixelRepresentation) == (16, 1)


def test_body_has_the_hounsfield_units_of_its_tissues(make: Make, tmp_path: Path) -> None:
    quiet = HospitalConfig(name="north", patients=2)
    (site,) = write_hospitals(make("phantom", quiet, slices=2, image_size=(64, 64)), tmp_path)
    for patient in patients_of(site):
        hu = stored_DHW(read_series(site, patient)) - 1024.0
        assert hu[:, 0, 0].tolist() == [-1000, -1000]  # air
        assert 340 <= hu.max() <= 350  # spine
        assert 20 <= np.median(hu[hu > -200]) <= 60  # muscle


def test_a_pair_is_one_study_and_geometry_told_apart_by_dose(site: Path) -> None:
    for patient in patients_of(site):
        full, low = read_series(site, patient, 1), read_series(site, patient, 2)
        for a, b in zip(full, low, strict=True):
            for same in ("StudyInstanceUID", "FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient"):
                assert a[same].value == b[same].value
            assert (a.PixelSpacing, a.Rows, a.Columns) == (b.PixelSpacing, b.Rows, b.Columns)
        assert (full[0].SeriesDescription, low[0].SeriesDescription) == ("ABDOMEN FULL DOSE", "ABDOMEN LOW DOSE")
        assert (full[0].ProtocolName, low[0].ProtocolName) == ("ABDOMEN FULL DOSE", "ABDOMEN LOW DOSE")
        assert (full[0].XRayTubeCurrent, low[0].XRayTubeCurrent) == (200, 20)
        assert (full[0].Exposure, low[0].Exposure) == (100, 10)
        assert full[0].SeriesInstanceUID != low[0].SeriesInstanceUID


def test_low_dose_is_the_same_body_with_more_noise(site: Path) -> None:
    full, low = (stored_DHW(read_series(site, patients_of(site)[0], number)).astype(float) for number in (1, 2))
    assert np.corrcoef(full.ravel(), low.ravel())[0, 1] > 0.97
    sigma_hu = 0.01 * 1200  # full dose; the low dose has sqrt(10) of it, independent
    assert (low - full)[full > 500].std() == pytest.approx(sigma_hu * np.sqrt(1 + 10), rel=0.1)


def test_identity_is_spread_where_real_files_carry_it(site: Path) -> None:
    image = read_series(site, patients_of(site)[0])[0]
    patient, hospital = patient_identity(0, "north", 0), site_identity(0, "north")
    assert image.PatientName == patient.name
    assert image.PatientID == patient.patient_id
    assert image.OtherPatientIDsSequence[0].PatientID == patient.other_id
    assert patient.name in image.RequestAttributesSequence[0].RequestedProcedureDescription
    assert patient.name in image.ImageComments
    assert image.private_block(0x0011, "WARDROUND HOSPITALS")[0x01].value == patient.name
    assert image.InstitutionName == hospital.institution
    assert image.DeviceSerialNumber == hospital.serial
    assert {str(image[name].value) for name in ("ReferringPhysicianName", "OperatorsName")} <= set(hospital.physicians)
    assert image.BurnedInAnnotation == "NO"


def test_odd_single_byte_images_are_padded_to_even_length(tmp_path: Path) -> None:
    geometry = Geometry((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1.0, 1.0), 1.0)
    stored = np.arange(9, dtype=np.uint8).reshape(1, 3, 3)
    source: Any = Source("DX", (), (), None, None, "CHEST")  # type: ignore[arg-type]
    write_study(
        tmp_path,
        source=source,
        volume=Volume(stored, None, geometry, bits_stored=8),
        site=site_identity(0, "north"),
        patient=patient_identity(0, "north", 0),
    )
    (image,) = read_series_of(tmp_path)
    assert len(image.PixelData) == 10
    np.testing.assert_array_equal(image.pixel_array, stored[0])
    assert image.SOPClassUID == "1.2.840.10008.5.1.4.1.1.1.1"


@needs_dciodvfy
@pytest.mark.parametrize("modality", ["MR", "CT", "DX"])
def test_images_of_every_modality_and_of_a_degraded_series_have_no_errors(tmp_path: Path, modality: str) -> None:
    kind, bits, slices = (np.uint8, 8, 1) if modality == "DX" else (np.uint16, 12, 2)
    stored: Any = np.arange(slices * 64).reshape(slices, 8, 8).astype(kind)
    degraded = None if modality == "DX" else stored
    intercept = -1024.0 if modality == "CT" else 0.0
    geometry = axial(8, 8, slices, (5.0, 2.0, 2.0))
    volume = Volume(stored, None, geometry, degraded_DHW=degraded, bits_stored=bits, intercept=intercept)
    source: Any = Source(modality, (), (), None, None, "STUDY")  # type: ignore[arg-type]
    north, patient = site_identity(0, "north"), patient_identity(0, "north", 0)
    write_study(tmp_path, source=source, volume=volume, site=north, patient=patient)
    written = sorted(tmp_path.rglob("*.dcm"))
    assert len(written) == (1 if modality == "DX" else 4)
    assert [errors_of(path) for path in written] == [[]] * len(written)


def read_series_of(folder: Path) -> list[Any]:
    import pydicom

    return [pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))]
