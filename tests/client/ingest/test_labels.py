"""Labels: the table of diagnoses, and segmentations of every kind onto the image's grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from client.ingest import labels
from client.ingest.keys import keyed_id
from client.ingest.labels import Diagnoses, LabelCodes, label_codes, label_digest, read_table
from client.ingest.reasons import IngestReport, Quarantined, Reason
from client.ingest.run import ingest
from client.ingest.series import lookup_key
from client.ingest.sources import SourceFile
from client.ingest.store import Store
from shared.config import DataConfig

SECRET = bytes(range(32))
CODES = LabelCodes(masks={5: 1}, diagnoses={"healthy": 0, "lung cancer": 1})


def table(tmp_path: Path, content: str | bytes) -> Diagnoses | None:
    path = tmp_path / "x.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(SourceFile(path, path.stat().st_size, regular=True), CODES, SECRET)


@pytest.mark.parametrize(
    "content",
    [
        "PatientID,diagnosis\n1,healthy\n2,Lung  Cancer\n",
        "\ufeffpatientid;DIAGNOSIS;note\r\n1;HEALTHY;a\r\n2;lung cancer;\r\n\r\n",
        'note\tdiagnosis\tPatientID\n"x"\thealthy\t 1 \n\tlung cancer\t2\n',
        "PatientID,diagnosis,Arzt\n1,healthy,Müller\n2,lung cancer,\n".encode("latin-1"),
    ],
)
def test_a_table_is_read_whatever_its_dialect(tmp_path: Path, content: str | bytes) -> None:
    found = table(tmp_path, content)
    assert found == Diagnoses({lookup_key("1", SECRET): 0, lookup_key("2", SECRET): 1}, 0)


def test_unknown_words_and_contradictions_are_counted_and_give_no_diagnosis(tmp_path: Path) -> None:
    found = table(tmp_path, "PatientID,diagnosis\n1,healthy\n1,lung cancer\n2,healthy\n2,healthy\n3,who knows\n")
    assert found == Diagnoses({lookup_key("2", SECRET): 0}, 2)


def test_other_tables_are_none_and_broken_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert table(tmp_path, "a,b\n1,2\n") is None
    assert table(tmp_path, "") is None
    for broken in ('PatientID,diagnosis\n1,"healthy\n', "PatientID,diagnosis\n1\n"):
        with pytest.raises(Quarantined) as refusal:
            table(tmp_path, broken)
        assert refusal.value.reason == Reason.BAD_TABLE
        assert refusal.value.__suppress_context__
    monkeypatch.setattr(labels, "MAX_TABLE_BYTES", 4)
    with pytest.raises(Quarantined, match="size limit"):
        table(tmp_path, "PatientID,diagnosis\n1,healthy\n")


def test_a_site_without_maps_uses_the_campaigns_codes(data: DataConfig) -> None:
    assert label_codes(data, {}, {}) == LabelCodes({1: 1, 2: 2}, {"none": 0, "tumour": 1})


def test_the_digest_of_labels_is_empty_without_any_and_follows_each(hospital: Any) -> None:
    assert label_digest([], -1, "", SECRET) == ""
    assert label_digest([], 0, "", SECRET) != label_digest([], 1, "", SECRET)
    assert label_digest([], 0, "", SECRET) != label_digest([], 0, "partner", SECRET)


def test_two_tables_that_contradict_give_no_diagnosis(hospital: Any, data: DataConfig, tmp_path: Path) -> None:
    hospital.write_series(tmp_path / "source", 1)
    for name, word in (("a", "none"), ("b", "tumour")):
        patient = f"{hospital.identity['PatientID']}-1"
        (tmp_path / "source" / f"{name}.csv").write_text(f"PatientID,diagnosis\n{patient},{word}\n")
    report = ingest(tmp_path / "source", tmp_path / "store", data, secret=SECRET, mask_codes={}, diagnosis_codes={})
    assert (report.diagnoses, report.diagnoses_unknown) == (0, 1)


# ------------------------------------------------------------------------------------------------------ segmentations


def ingested(
    hospital: Any, data: DataConfig, tmp_path: Path, images: list[Dataset], *segs: Dataset
) -> tuple[IngestReport, np.ndarray | None]:
    for number, ds in enumerate([*images, *segs]):
        hospital.save(ds, tmp_path / "source" / f"{number}.dcm")
    report = ingest(
        tmp_path / "source",
        tmp_path / "store",
        data,
        secret=SECRET,
        mask_codes={"organ": 5, "lesion": 9},
        diagnosis_codes={},
    )
    store = Store.open(tmp_path / "store")
    return report, store.mask(store.series[0].key)


def blob() -> np.ndarray:
    mask = np.zeros((3, 8, 6), dtype=bool)
    mask[1, 2:5, 1:4] = True
    return mask


def test_a_label_map_and_a_fractional_segmentation_are_read(hospital: Any, data: DataConfig, tmp_path: Path) -> None:
    images = [hospital.new_image(index) for index in range(3)]
    numbers = np.zeros((3, 8, 6), np.uint8)
    numbers[0, :2], numbers[1, 3:5], numbers[2, 0] = 5, 9, 7
    whole = hospital.new_segmentation({5: np.ones((3, 8, 6), bool)}, images, SegmentationType="LABELMAP")
    whole.BitsAllocated = whole.BitsStored = 8
    whole.HighBit = 7
    whole.PixelData = numbers.tobytes()
    _, mask = ingested(hospital, data, tmp_path / "labelmap", images, whole)
    np.testing.assert_array_equal(mask, np.select([numbers == 5, numbers == 9], [1, 2], 0))

    part = hospital.new_segmentation({5: np.ones((3, 8, 6), bool)}, images, SegmentationType="FRACTIONAL")
    part.BitsAllocated = part.BitsStored = 8
    part.HighBit, part.MaximumFractionalValue = 7, 200
    part.PixelData = (np.arange(144, dtype=np.uint8)).tobytes()
    _, mask = ingested(hospital, data, tmp_path / "fractional", images, part)
    np.testing.assert_array_equal(mask, np.arange(144).reshape(3, 8, 6) >= 100)


def test_a_segmentation_of_another_grid_is_sampled_where_the_image_is(
    hospital: Any, data: DataConfig, tmp_path: Path
) -> None:
    images = [hospital.new_image(index) for index in range(3)]
    # Twice as fine in the plane, shifted by half of a fine pixel to centre on the coarse ones, and upside down.
    fine = [
        hospital.new_image(index, ImageOrientationPatient=[1, 0, 0, 0, -1, 0], PixelSpacing=[1, 1.5])
        for index in (2, 1, 0)
    ]
    mask = blob()
    doubled = mask.repeat(2, axis=1).repeat(2, axis=2)[::-1, ::-1]
    for image in fine:
        z = image.ImagePositionPatient[2]
        image.ImagePositionPatient = [-10 - 0.75, -20 - 0.5 + 15, z]
    seg = hospital.new_segmentation({5: doubled}, fine, Rows=16, Columns=12)
    seg.ReferencedSeriesSequence[0].SeriesInstanceUID = images[0].SeriesInstanceUID
    report, found = ingested(hospital, data, tmp_path, images, seg)
    assert report.count("used as label") == 1
    np.testing.assert_array_equal(found, mask)


def test_without_a_patients_geometry_frames_follow_the_instances_they_name(
    hospital: Any, data: DataConfig, tmp_path: Path
) -> None:
    flat = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    image = hospital.new_image(0, **flat)
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    mask = blob()[1:2]
    seg = hospital.new_segmentation({5: mask}, [image])
    del image.ImageOrientationPatient
    _, found = ingested(hospital, data, tmp_path, [image], seg)
    np.testing.assert_array_equal(found, mask)


def test_frames_of_a_multi_frame_image_are_named_by_number(hospital: Any, data: DataConfig, tmp_path: Path) -> None:
    frames = np.concatenate([hospital.stored_pixels(index)[None] for index in range(3)])
    flat = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    image = hospital.new_image(0, NumberOfFrames=3, PixelData=frames.tobytes(), **flat)
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    seg = hospital.new_segmentation({5: blob()[1:2]}, [image])
    group = seg.PerFrameFunctionalGroupsSequence[0]
    group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = 2
    del image.ImageOrientationPatient
    _, found = ingested(hospital, data, tmp_path, [image], seg)
    np.testing.assert_array_equal(found, blob())


def test_two_segmentations_of_one_series_are_joined(hospital: Any, data: DataConfig, tmp_path: Path) -> None:
    images = [hospital.new_image(index) for index in range(3)]
    one = hospital.new_segmentation({5: blob()}, images)
    two = hospital.new_segmentation({9: np.roll(blob(), 1, axis=1)}, images, SOPInstanceUID="1.2.3.99")
    _, found = ingested(hospital, data, tmp_path, images, one, two)
    np.testing.assert_array_equal(found, np.maximum(blob() * 1, np.roll(blob(), 1, axis=1) * 2))


def _elsewhere(seg: Dataset) -> None:
    for group in seg.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence[0].ImagePositionPatient = [5000, 5000, 5000]


def _other_frame_of_reference(seg: Dataset) -> None:
    seg.FrameOfReferenceUID = "1.2.3.4"
    seg.Rows, seg.Columns = 6, 8


def _unknown_segments(seg: Dataset) -> None:
    seg.SegmentSequence[0].SegmentNumber = 77


def _another_image(seg: Dataset) -> None:
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.2.3.4.5"
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence = Sequence([item])
    for group in seg.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence


def _no_segment_number(seg: Dataset) -> None:
    del seg.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence


def _far_frames(seg: Dataset) -> None:
    seg.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0].ImagePositionPatient = [-10, -20, 0.001]
    seg.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0].ImagePositionPatient = [-10, -20, 9e5]


def _no_pixels(seg: Dataset) -> None:
    seg.PixelData = b"\0\0"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_elsewhere, Reason.MISFIT_LABEL),
        (_other_frame_of_reference, Reason.MISFIT_LABEL),
        (_unknown_segments, Reason.UNMAPPED_LABEL),
        (_another_image, Reason.UNMATCHED_LABEL),
        (_no_segment_number, Reason.MALFORMED),
        (_far_frames, Reason.MISFIT_LABEL),
        (_no_pixels, Reason.UNDECODABLE),
    ],
)
def test_a_label_that_cannot_be_used_is_quarantined_and_its_image_is_not(
    hospital: Any, data: DataConfig, tmp_path: Path, change: Any, expected: Reason
) -> None:
    images = [hospital.new_image(index) for index in range(3)]
    seg = hospital.new_segmentation({5: np.ones((3, 8, 6), bool)}, images)
    change(seg)
    report, mask = ingested(hospital, data, tmp_path, images, seg)
    assert report.count("stored") == 3
    assert [reason for outcome, reason in report.outcomes if outcome == "quarantined"] == [expected]
    assert mask is None
    identity = keyed_id(SECRET, "uid", seg.SOPInstanceUID)
    assert Store.open(tmp_path / "store").quarantine == {identity: expected.value}
    again, _ = ingested(hospital, data, tmp_path, [])
    assert again.outcomes[("quarantined", expected)] == 1


def test_a_series_reference_alone_matches(hospital: Any, data: DataConfig, tmp_path: Path) -> None:
    images = [hospital.new_image(index) for index in range(3)]
    seg = hospital.new_segmentation({5: blob()}, images)
    del seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    for group in seg.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    _, mask = ingested(hospital, data, tmp_path, images, seg)
    np.testing.assert_array_equal(mask, blob())


def test_an_empty_segmentation_is_a_label_too(hospital: Any, data: DataConfig, tmp_path: Path) -> None:
    images = [hospital.new_image(index) for index in range(3)]
    seg = hospital.new_segmentation({5: np.ones((3, 8, 6), bool)}, images)
    seg.PixelData = b"\0" * len(seg.PixelData)
    _, mask = ingested(hospital, data, tmp_path, images, seg)
    assert mask is not None
    assert not mask.any()


def test_a_campaign_without_masks_skips_segmentations(hospital: Any, make_data: Any, tmp_path: Path) -> None:
    images = [hospital.new_image()]
    seg = hospital.new_segmentation({5: np.ones((1, 8, 6), bool)}, images)
    for number, ds in enumerate([*images, seg]):
        hospital.save(ds, tmp_path / "source" / f"{number}.dcm")
    (tmp_path / "source" / "other.csv").write_text("a,b\n")
    report = ingest(
        tmp_path / "source",
        tmp_path / "store",
        make_data(masks=()),
        secret=SECRET,
        mask_codes={},
        diagnosis_codes={},
    )
    assert report.count("skipped", Reason.MODALITY) == 1
    assert report.count("skipped", Reason.NOT_DICOM) == 1


def test_a_mask_without_a_patients_geometry_is_resampled_with_its_image(
    hospital: Any, make_data: Any, tmp_path: Path
) -> None:
    image = hospital.new_image(0)
    seg = hospital.new_segmentation({5: blob()[1:2]}, [image])
    del image.ImagePositionPatient, image.ImageOrientationPatient
    data = make_data(spacing_mm=(5.0, 1.0, 1.5))
    _, mask = ingested(hospital, data, tmp_path, [image], seg)
    assert mask is not None
    assert mask.shape == (1, 15, 11)
    np.testing.assert_array_equal(mask[:, ::2, ::2], blob()[1:2])


def test_a_segmentation_of_two_series_counts_once_and_is_used_where_it_fits(
    hospital: Any, data: DataConfig, tmp_path: Path
) -> None:
    one = [hospital.new_image(index) for index in range(3)]
    far = {"ImagePositionPatient": [9000, 0, 0], "FrameOfReferenceUID": "1.2.3"}
    two = [hospital.new_image(0, series="2", **far)]
    seg = hospital.new_segmentation({5: blob()}, one)
    reference = Dataset()
    reference.ReferencedSOPInstanceUID = two[0].SOPInstanceUID
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence.append(reference)
    report, _ = ingested(hospital, data, tmp_path, [*two, *one], seg)
    assert report.count("used as label") == 1
    assert report.masks == 1
