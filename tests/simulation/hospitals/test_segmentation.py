"""DICOM SEG, decoded by hand from its bits, equals the known mask in the site's own numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset

from shared.config import HospitalConfig, SimulationConfig
from simulation.hospitals import phantom, write_hospitals
from simulation.hospitals.cohort import simulated_cohorts
from tests.simulation.hospitals.conftest import patients_of, read_series

Make = Callable[..., SimulationConfig]


def decode(seg: Dataset, images: list[Dataset]) -> npt.NDArray[np.int64]:
    """Segment numbers (D, H, W) on the slices of `images`, from frame items and packed bits (PS3.5 8.1.1)."""
    frames, rows, columns = int(seg.NumberOfFrames), seg.Rows, seg.Columns
    raw = np.frombuffer(seg.PixelData, np.uint8)
    if seg.SegmentationType == "BINARY":
        raw = np.unpackbits(raw, bitorder="little")
    frame_FHW = raw[: frames * rows * columns].reshape(frames, rows, columns)
    slice_of = {image.SOPInstanceUID: index for index, image in enumerate(images)}
    decoded = np.zeros((len(images), rows, columns), dtype=np.int64)
    for frame_HW, item in zip(frame_FHW, seg.PerFrameFunctionalGroupsSequence, strict=True):
        source = item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        number = 1
        if seg.SegmentationType == "BINARY":
            number = item.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        decoded[slice_of[source]] += frame_HW.astype(np.int64) * number
    return decoded


@pytest.mark.parametrize(
    ("codes", "kind"),
    [
        ({}, "BINARY"),
        ({"organ": 2, "lesion": 1}, "BINARY"),  # the standard wants 1, 2, 3... of a BINARY segmentation
        ({"organ": 5, "lesion": 9}, "LABELMAP"),
        ({"organ": 2, "lesion": 3}, "LABELMAP"),
    ],
)
def test_decoded_mask_is_the_known_one(make: Make, tmp_path: Path, codes: dict[str, int], kind: str) -> None:
    hospital = HospitalConfig(name="north", patients=3, mask_codes=codes)
    config = make("phantom", hospital)
    (site,) = write_hospitals(config, tmp_path)
    (cases,) = simulated_cohorts(config, (hospital,))
    number = codes or {"organ": 1, "lesion": 2}
    for case, patient in zip(cases, patients_of(site), strict=True):
        images = read_series(site, patient)
        seg = pydicom.dcmread(site / "labels" / f"{patient}.dcm")
        assert seg.SegmentationType == kind
        label = phantom.renderer(config)(case, hospital).label_DHW
        assert label is not None
        expected = np.asarray([0, number["organ"], number["lesion"]])[label]
        np.testing.assert_array_equal(decode(seg, images), expected)
        assert (expected == number["lesion"]).any() == (case.diagnosis == "lesion")
        named = {s.SegmentLabel: s.SegmentNumber for s in seg.SegmentSequence if s.SegmentNumber}
        assert named == number


def test_segmentation_belongs_to_the_clean_series_of_the_same_patient(make: Make, tmp_path: Path) -> None:
    (site,) = write_hospitals(make("phantom", HospitalConfig(name="north", patients=1, paired=1.0)), tmp_path)
    (patient,) = patients_of(site)
    images = read_series(site, patient)
    seg = pydicom.dcmread(site / "labels" / f"{patient}.dcm")
    assert seg.PatientID == patient
    assert seg.StudyInstanceUID == images[0].StudyInstanceUID
    assert seg.FrameOfReferenceUID == images[0].FrameOfReferenceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == images[0].SeriesInstanceUID
    assert seg.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.4"


def test_a_campaign_without_the_organ_gets_a_segmentation_without_it(make: Make, tmp_path: Path) -> None:
    config = make("phantom", HospitalConfig(name="north", patients=2), masks=("lesion",))
    (site,) = write_hospitals(config, tmp_path)
    for patient in patients_of(site):
        seg = pydicom.dcmread(site / "labels" / f"{patient}.dcm")
        assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["lesion"]


def test_nothing_comes_from_a_clock(make: Make, tmp_path: Path) -> None:
    (site,) = write_hospitals(make("phantom"), tmp_path)
    for path in (site / "labels").glob("*.dcm"):
        seg = pydicom.dcmread(path)
        dates = {str(e.value)[:8] for e in seg.iterall() if e.VR in ("DA", "DT") and e.keyword != "PatientBirthDate"}
        assert dates == {seg.StudyDate}
