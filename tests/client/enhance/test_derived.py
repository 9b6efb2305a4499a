"""What a derived object says of itself, and that validators agree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.data import get_testdata_file
from pydicom.sequence import Sequence

from client.enhance.diagnosis import calibrated
from client.enhance.find import find
from client.enhance.grid import layout_of
from client.enhance.segmentation import codes_of
from client.enhance.series import Options
from client.enhance.study import enhance_study
from client.ingest.geometry import Grid, reorder
from client.installed import Installed
from shared.config import CampaignConfig, IngestConfig, IntensityConfig, MachineConfig
from tests.client.enhance.conftest import (
    BINS,
    errors_of,
    image,
    make_installed,
    needs_dciodvfy,
    save_dicom,
    with_correction,
    write_ct,
)

PERCENTILE = IntensityConfig(rule="percentile", low=1, high=99)


def quiet(stage: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


def of(campaign: CampaignConfig, *modalities: str, spacing: tuple[float, float, float] | None = None) -> CampaignConfig:
    rule = IngestConfig(modalities=modalities, intensity=PERCENTILE, spacing_mm=spacing)
    return replace(campaign, data=replace(campaign.data, ingest=rule))


@pytest.fixture
def both(
    tmp_path: Path, installed: Installed, machine: MachineConfig, options: Options
) -> tuple[pydicom.Dataset, pydicom.Dataset, pydicom.Dataset]:
    """Source, derived image and segmentation of a series whose header holds all that must go."""
    stale = {"SmallestImagePixelValue": 0, "LargestImagePixelValue": 5, "LossyImageCompression": "01",
             "LossyImageCompressionRatio": "12", "LossyImageCompressionMethod": "ISO_10918_1"}  # fmt: skip
    ds = image(0, np.arange(1024, dtype=np.uint16).reshape(32, 32) + 900, **stale)
    ds.private_block(0x0011, "ACME", create=True).add_new(1, "LO", "secret")
    ds.add_new(0x60003000, "OW", b"\1\0" * 64)
    ds.add_new(0x60000010, "US", 32)
    ds.DigitalSignaturesSequence = Sequence([pydicom.Dataset()])
    ds.IconImageSequence = Sequence([pydicom.Dataset()])
    save_dicom(ds, tmp_path / "study" / "a.dcm")
    summary = enhance_study(tmp_path / "study", tmp_path / "out", installed, machine, options)
    return pydicom.dcmread(tmp_path / "study" / "a.dcm"), *map(pydicom.dcmread, summary.files)  # type: ignore[return-value]


def test_a_derived_image_says_what_it_is_and_where_it_comes_from(
    both: tuple[pydicom.Dataset, pydicom.Dataset, pydicom.Dataset],
) -> None:
    source, ds, _ = both
    assert ds.ImageType == ["DERIVED", "SECONDARY", "AXIAL"]
    assert ds.SOPClassUID == source.SOPClassUID
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert ds[keyword].value != source[keyword].value
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "PatientBirthDate",
                    "StudyDate", "AccessionNumber", "StudyID", "ImagePositionPatient", "PixelSpacing", "InstanceNumber",
                    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):  # fmt: skip
        assert ds[keyword].value == source[keyword].value, keyword
    (reference,) = ds.SourceImageSequence
    assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    assert "ab" * 32 in ds.DerivationDescription
    assert len(ds.DerivationCodeSequence) == 1
    (equipment,) = ds.ContributingEquipmentSequence
    assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert "ab" * 32 in equipment.ContributionDescription
    assert "weights as released" in equipment.ContributionDescription
    assert (ds.ContentDate, ds.ContentTime) == ("20261122", "101112")
    assert ds.SeriesDescription == "ABDOMEN 5 MM enhanced, research only"


def test_what_described_the_old_pixels_is_gone(both: tuple[pydicom.Dataset, pydicom.Dataset, pydicom.Dataset]) -> None:
    _, ds, _ = both
    for keyword in ("SmallestImagePixelValue", "LargestImagePixelValue", "DigitalSignaturesSequence"):
        assert keyword not in ds
    assert "IconImageSequence" not in ds
    assert not [tag for tag in ds.keys() if tag.is_private or tag.group == 0x6000]  # noqa: SIM118
    assert ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"


def test_a_segmentation_refers_to_the_derived_and_the_source_images(
    both: tuple[pydicom.Dataset, pydicom.Dataset, pydicom.Dataset],
) -> None:
    source, ds, seg = both
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["organ", "lesion"]
    assert {item.SegmentAlgorithmType for item in seg.SegmentSequence} == {"AUTOMATIC"}
    algorithm = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert "ab" * 32 in str(algorithm.AlgorithmParameters)
    referred = {
        instance.ReferencedSOPInstanceUID
        for series in seg.ReferencedSeriesSequence
        for instance in series.ReferencedInstanceSequence
    }
    assert {ds.SOPInstanceUID, source.SOPInstanceUID} <= referred
    assert (seg.StudyInstanceUID, seg.PatientID) == (source.StudyInstanceUID, source.PatientID)
    assert (seg.FrameOfReferenceUID, seg.Rows, seg.Columns) == (source.FrameOfReferenceUID, 32, 32)


def test_a_score_holds_no_value_of_the_patient(both: tuple[pydicom.Dataset, ...], tmp_path: Path) -> None:
    source, ds, _ = both
    content = (tmp_path / "out" / "series-001" / "diagnosis.json").read_text()
    score = json.loads(content)
    assert score["series_instance_uid"] == ds.SeriesInstanceUID
    assert sum(score["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    page = (tmp_path / "out" / "report.html").read_text()
    for secret in (source.PatientID, "Quillfeather", "19430917", "20230314", source.StudyInstanceUID,
                   source.SeriesInstanceUID, source.SOPInstanceUID, "ACC55"):  # fmt: skip
        assert str(secret) not in content
        assert str(secret) not in page
    assert "Research only" in content
    assert page.count("<img") == 4
    assert "://" not in page


def test_calibration_says_what_such_a_score_was_worth() -> None:
    words = calibrated(0.87, "lesion", BINS)
    assert words["patients"] == 40
    assert words["share_correct"] == pytest.approx(0.8)
    assert words["words"].startswith("Of 40 held-out patients of the release whose highest score was 80 to 90 %, 80 %")
    assert "too few" in calibrated(0.5, "x", {"bins": [{"count": 3, "confidence": 0.5, "correct": 1.0}] * 10})["words"]
    assert "no calibration" in calibrated(0.5, "x", None)["words"]
    assert calibrated(1.0, "x", BINS)["share_correct"] == pytest.approx(0.9)


def test_names_of_masks_have_snomed_codes() -> None:
    assert [code.value for code in codes_of("white matter")] == ["85756007", "389080008"]
    assert codes_of("liver")[1].value == "10200004"
    assert codes_of("something else")[1].value == "91723000"


@needs_dciodvfy
@pytest.mark.parametrize(
    ("name", "modality"), [("CT_small.dcm", "CT"), ("MR_small.dcm", "MR"), ("MR_small_bigendian.dcm", "MR")]
)
def test_derived_objects_of_real_scanners_have_no_new_errors(
    tmp_path: Path, campaign: CampaignConfig, machine: MachineConfig, options: Options, name: str, modality: str
) -> None:
    """An input that passes comes back passing; one with faults of its own has no others afterwards."""
    source = Path(str(get_testdata_file(name, download=False)))
    resampling = of(campaign, modality, spacing=(5.0, 2.0, 2.0))
    installed = make_installed(tmp_path / "release", resampling, with_correction(campaign))
    summary = enhance_study(source, tmp_path / "out", installed, machine, options)
    own = set(errors_of(source))
    for path in summary.files:
        assert set(errors_of(path)) <= own


@needs_dciodvfy
@pytest.mark.parametrize(
    ("count", "values", "thickness", "reason"),
    [
        (3, {"SliceThickness": None}, 5, ""),
        (3, {"SliceThickness": ""}, 5, ""),
        (1, {"SliceThickness": "", "SpacingBetweenSlices": 4}, 4, ""),
        (1, {"SliceThickness": ""}, None, "how thick a slice is or how far apart slices are"),
        (1, {"PixelSpacing": [0, 0]}, None, "how far apart their pixels are"),
        (1, {"PixelSpacing": None}, None, "how far apart their pixels are"),
        (1, {"FrameOfReferenceUID": None}, None, "no frame of reference"),
    ],
)
def test_a_segmentation_knows_its_pixel_measures_or_is_not_written(
    tmp_path: Path, installed: Installed, machine: MachineConfig, options: Options, count: int, values: dict,
    thickness: float | None, reason: str,
) -> None:  # fmt: skip
    """PS3.3 C.7.6.16.2.1: slices 5 mm apart that do not say how thick they are count as 5 mm thick."""
    write_ct(tmp_path / "study", count, **values)
    summary = enhance_study(tmp_path / "study", tmp_path / "out", installed, machine, options)
    page = (tmp_path / "out" / "report.html").read_text()
    assert ("No DICOM segmentation" in page) == bool(reason)
    assert reason in page
    assert len(summary.files) == count + (thickness is not None)
    if thickness is not None:
        seg = pydicom.dcmread(summary.files[-1])
        assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == thickness
        assert errors_of(summary.files[-1]) == []


def sagittal(folder: Path, count: int, side: int) -> list[Path]:
    """Slices along the patient's left: rows run towards the feet, columns towards the back."""
    rng = np.random.default_rng(1)
    return [
        save_dicom(
            image(
                index,
                rng.integers(900, 1200, (side, side + 2)).astype(np.uint16),
                ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
                ImagePositionPatient=[4 * index, -20, 30],
                PixelSpacing=[2, 3],
            ),
            folder / f"{index}.dcm",
        )
        for index in range(count)
    ]


def test_a_layout_is_that_of_the_ingest_and_its_way_back_is_exact(tmp_path: Path, campaign: CampaignConfig) -> None:
    sagittal(tmp_path / "study", 9, 12)
    (stack,) = find(tmp_path / "study", tmp_path / "out", campaign.data, quiet).stacks
    layout = layout_of(stack, campaign.data)
    volume = np.random.default_rng(0).random((9, 12, 14)).astype(np.float32)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[-4, 0, 0], [0, 0, 3], [0, -2, 0]])  # columns: frames, rows, columns
    expected, _ = reorder(volume, Grid(volume.shape, (4, 2, 3), affine))
    assert not layout.by_frame
    np.testing.assert_array_equal(layout.oriented(volume), expected)
    np.testing.assert_array_equal(layout.as_acquired(layout.oriented(volume)), volume)


def test_sagittal_slices_are_enhanced_in_the_planes_that_the_release_knows(
    tmp_path: Path, campaign: CampaignConfig, machine: MachineConfig, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network meets axial planes; what it adds to one axial plane lands in that row of every sagittal slice."""
    from client.enhance import release as module

    paths = sagittal(tmp_path / "study", 9, 12)
    seen = []

    def enhanced(release: object, image_FCHW: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(image_FCHW.shape))
        added = torch.zeros_like(image_FCHW)
        added[2] = 0.1  # the third plane from the feet
        return image_FCHW + added

    monkeypatch.setattr(module, "enhanced", enhanced)
    summary = enhance_study(
        tmp_path / "study",
        tmp_path / "out",
        make_installed(tmp_path / "r", campaign),
        machine,
        replace(options, draws=0),
    )
    assert seen == [(12, 1, 14, 9)]
    for path in summary.files[:9]:
        ds = pydicom.dcmread(path)
        source = next(one for one in map(pydicom.dcmread, paths) if one.ImagePositionPatient == ds.ImagePositionPatient)
        steps = ds.pixel_array.astype(int) - source.pixel_array
        assert set(steps[12 - 1 - 2]) == {40}
        assert not np.delete(steps, 12 - 1 - 2, axis=0).any()


def test_resampling_touches_no_pixel_that_the_network_did_not_change(
    tmp_path: Path, campaign: CampaignConfig, machine: MachineConfig, options: Options
) -> None:
    """On a grid coarser than the image the details stay those of the image: only the correction is interpolated."""
    write_ct(tmp_path / "study", 1, side=64)
    coarse = of(campaign, "CT", spacing=(5.0, 6.0, 6.0))
    summary = enhance_study(
        tmp_path / "study", tmp_path / "out", make_installed(tmp_path / "r", coarse), machine, options
    )
    assert summary.series[0].shown[0].before_HW.shape == (22, 32)
    before = pydicom.dcmread(tmp_path / "study" / "slice-0.dcm")
    assert pydicom.dcmread(summary.files[0]).PixelData == before.PixelData
