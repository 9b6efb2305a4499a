"""Refusals at the door: every reason, and inputs made to exhaust the machine."""

from __future__ import annotations

import logging
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, UltrasoundImageStorage

from client.ingest import prepare, sources, validate
from client.ingest.pixels import Frames, codestream_pixels, decode, decode_segments
from client.ingest.reasons import Quarantined, Reason, Skipped
from client.ingest.run import ingest
from client.ingest.sources import SourceFile
from client.ingest.validate import check_image, read_header, read_whole, reading
from shared.config import DataConfig, IntensityConfig

real = os.open


def source(path: Path) -> SourceFile:
    return SourceFile(path, path.stat().st_size, regular=True)


def reason_of(hospital: Any, data: DataConfig, tmp_path: Path, *files: Dataset) -> list[Reason]:
    """Reasons that an ingest gives these files, stored ones left out."""
    for number, ds in enumerate(files):
        hospital.save(ds, tmp_path / "source" / f"{number}.dcm")
    report = ingest(
        tmp_path / "source", tmp_path / "store", data, secret=hospital.secret, mask_codes={}, diagnosis_codes={}
    )
    return [reason for outcome, reason in report.outcomes if outcome != "stored"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"Modality": "MR"}, Reason.MODALITY),
        ({"Modality": ""}, Reason.NO_MODALITY),
        ({"Modality": None}, Reason.NO_MODALITY),
        ({"BurnedInAnnotation": "YES"}, Reason.BURNED_IN),
        ({"BurnedInAnnotation": "yes"}, Reason.BURNED_IN),
        ({"SOPClassUID": UltrasoundImageStorage}, Reason.MAY_SHOW_TEXT),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, Reason.MAY_SHOW_TEXT),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, Reason.MAY_SHOW_TEXT),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"], "BurnedInAnnotation": "NO"}, Reason.MAY_SHOW_TEXT),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, Reason.LOCALISER),
        ({"Rows": None}, Reason.NO_PIXELS),
        ({"PixelData": None}, Reason.NO_PIXELS),
        ({"Rows": 0}, Reason.MALFORMED),
        ({"NumberOfFrames": "0"}, Reason.MALFORMED),
        ({"Rows": 40_000}, Reason.TOO_MANY_PIXELS),
        ({"NumberOfFrames": "20000"}, Reason.TOO_MANY_PIXELS),
        ({"Rows": 30_000, "Columns": 30_000}, Reason.TOO_MANY_PIXELS),
        ({"PixelData": b"\0\0"}, Reason.UNDECODABLE),
        ({"BitsStored": 12, "HighBit": 15}, Reason.UNDECODABLE),
        ({"BitsStored": 24, "HighBit": 23}, Reason.UNDECODABLE),
        ({"PhotometricInterpretation": "HSV"}, Reason.UNSUPPORTED_COLOUR),
        ({"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PixelData": bytes(288)}, Reason.UNSUPPORTED_COLOUR),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, Reason.UNDECODABLE),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, Reason.GEOMETRY),
    ],
)
def test_an_image_that_must_not_be_used_has_its_reason(
    hospital: Any, data: DataConfig, tmp_path: Path, changes: dict[str, Any], expected: Reason
) -> None:
    assert reason_of(hospital, data, tmp_path, hospital.new_image(**changes)) == [expected]


def test_ultrasound_that_says_it_carries_no_text_is_stored(hospital: Any, data: DataConfig, tmp_path: Path) -> None:
    image = hospital.new_image(SOPClassUID=UltrasoundImageStorage, BurnedInAnnotation="NO")
    assert reason_of(hospital, data, tmp_path, image) == []


def test_values_without_a_bit_depth_a_contrast_or_a_finite_number_are_refused(
    hospital: Any, make_data: Any, tmp_path: Path
) -> None:
    floats = {"PixelData": None, "FloatPixelData": np.ones((8, 6), np.float32).tobytes(), "BitsAllocated": 32}
    ranged = make_data(intensity=IntensityConfig(rule="range"))
    assert reason_of(hospital, ranged, tmp_path / "a", _float_image(hospital, floats)) == [Reason.NO_BIT_DEPTH]
    percentile = make_data(intensity=IntensityConfig(rule="percentile", low=0, high=100))
    assert reason_of(hospital, percentile, tmp_path / "b", _float_image(hospital, floats)) == [Reason.CONSTANT]
    floats["FloatPixelData"] = np.full((8, 6), np.nan, np.float32).tobytes()
    assert reason_of(hospital, percentile, tmp_path / "c", _float_image(hospital, floats)) == [Reason.NOT_FINITE]


def _float_image(hospital: Any, values: dict[str, Any]) -> Dataset:
    image: Dataset = hospital.new_image(**values)
    del image.BitsStored, image.HighBit, image.PixelRepresentation
    return image


def test_broken_files_are_refused_by_kind(hospital: Any, tmp_path: Path) -> None:
    good = hospital.save(hospital.new_image(), tmp_path / "good.dcm").read_bytes()
    cases = {
        b"": (Skipped, Reason.NOT_DICOM),
        b"hello": (Skipped, Reason.NOT_DICOM),
        good[132:]: (Quarantined, Reason.NO_PREAMBLE),
        good[:140]: (Quarantined, Reason.NO_TRANSFER_SYNTAX),
        good[:132]: (Quarantined, Reason.NO_TRANSFER_SYNTAX),
    }
    for content, (kind, reason) in cases.items():
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(kind) as refusal:
            read_header(source(tmp_path / "x"))
        assert refusal.value.reason == reason
        assert refusal.value.__context__ is None or refusal.value.__suppress_context__


def test_a_random_byte_anywhere_neither_stops_a_run_nor_makes_it_talk(
    hospital: Any, data: DataConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = bytearray(hospital.save(hospital.new_image(), tmp_path / "good.dcm").read_bytes())
    rng = np.random.Generator(np.random.PCG64(7))
    (tmp_path / "source").mkdir()
    for number in range(150):
        damaged = bytearray(good)
        for place in rng.integers(132, len(good), 4):
            damaged[place] = rng.integers(0, 256)
        (tmp_path / "source" / f"{number:03d}.dcm").write_bytes(damaged)
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        report = ingest(
            tmp_path / "source", tmp_path / "store", data, secret=hospital.secret, mask_codes={}, diagnosis_codes={}
        )
    assert report.files == 150
    assert seen == []
    assert "".join(capfd.readouterr()) == ""


def test_a_file_over_the_limit_is_not_parsed(hospital: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hospital.save(hospital.new_image(), tmp_path / "x.dcm")
    monkeypatch.setattr(validate, "MAX_FILE_BYTES", 100)
    with pytest.raises(Quarantined, match="size limit"):
        read_header(source(path))
    assert sources.MAX_FILE_BYTES > 1 << 30


def test_a_deflate_bomb_ends_at_the_limit(hospital: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hospital.save(hospital.new_image(), tmp_path / "x.dcm", DeflatedExplicitVRLittleEndian)
    assert read_whole(source(path)).Modality == "CT"
    whole = read_whole(source(path))
    whole.save_as(path, enforce_file_format=True)
    monkeypatch.setattr(validate, "MAX_INFLATED_BYTES", 1 << 20)
    start = path.read_bytes().find(zlib.compress(b"")[:0], 132)
    group_length = int(pydicom.filereader.read_file_meta_info(path).FileMetaInformationGroupLength)
    start = 128 + 4 + 12 + group_length
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = packer.compress(b"\0" * (64 << 20)) + packer.flush()
    assert len(bomb) < 1 << 20
    path.write_bytes(path.read_bytes()[:start] + bomb)
    with pytest.raises(Quarantined, match="size limit"):
        read_header(source(path))


def test_sequences_nested_a_thousand_deep_are_refused(hospital: Any, data: DataConfig, tmp_path: Path) -> None:
    path = hospital.save(hospital.new_image(), tmp_path / "source" / "x.dcm")
    opening = struct.pack("<HH2sHIHHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
    closing = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    whole = path.read_bytes()
    place = whole.find(struct.pack("<HH", 0x0010, 0x0010) + b"PN")
    path.write_bytes(whole[:place] + opening * 3000 + closing * 3000 + whole[place:])
    report = ingest(
        tmp_path / "source", tmp_path / "store", data, secret=hospital.secret, mask_codes={}, diagnosis_codes={}
    )
    assert report.table() == (("quarantined", "header malformed", 1),)


def test_sequences_deeper_than_the_profile_follows_are_refused(hospital: Any, data: DataConfig, tmp_path: Path) -> None:
    ds = Dataset()
    for _ in range(20):
        outer = Dataset()
        outer.ViewCodeSequence = Sequence([ds])
        ds = outer
    image = hospital.new_image(AnatomicRegionSequence=Sequence([ds]))
    assert reason_of(hospital, data, tmp_path, image) == [Reason.TOO_DEEP]


def test_a_codestream_larger_than_its_header_is_not_decoded(hospital: Any, tmp_path: Path) -> None:
    siz = b"\xff\x4f\xff\x51" + struct.pack(">HH8I", 47, 0, 60_000, 60_000, 0, 0, 60_000, 60_000, 0, 0)
    jpeg = b"\xff\xd8\xff\xe0\x00\x04ab" + b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, 50_000, 40_000, 1)
    lossless = b"\xff\xd8\xff\xff\xf7" + struct.pack(">HBHHB", 11, 8, 300, 400, 1)
    assert codestream_pixels(siz) == 60_000**2
    assert codestream_pixels(jpeg) == 50_000 * 40_000
    assert codestream_pixels(lossless) == 300 * 400
    assert codestream_pixels(b"\x01\x00\x00\x00") == codestream_pixels(b"\xff\xd8\xff") == 0
    assert codestream_pixels(b"\xff\xd8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00") == 0
    for number, (stream, syntax) in enumerate(((siz, JPEG2000Lossless), (jpeg, JPEGBaseline8Bit))):
        image = hospital.new_image(PixelData=encapsulate([stream]))
        image["PixelData"].is_undefined_length = True
        path = hospital.save(image, tmp_path / f"{number}.dcm", syntax)
        with pytest.raises(Quarantined, match="not decodable"):
            decode(read_whole(source(path)))


def test_third_parties_are_silent_inside_and_as_before_outside(capfd: pytest.CaptureFixture[str]) -> None:
    logger, child = logging.getLogger("pydicom"), logging.getLogger("pydicom.some.part")
    level, propagates = logger.level, logger.propagate

    def loud() -> None:
        with reading(Reason.MALFORMED):
            warnings.warn("Ottoline", stacklevel=1)
            logger.error("Ottoline")
            child.critical("Ottoline")
            raise ValueError("Ottoline")

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(Quarantined) as refusal:
            loud()
    assert seen == []
    assert "".join(capfd.readouterr()) == ""
    assert (logger.level, logger.propagate) == (level, propagates)
    assert str(refusal.value) == "header malformed"
    assert refusal.value.__suppress_context__


def test_our_own_mistakes_are_not_hidden_as_bad_input() -> None:
    with pytest.raises(AssertionError), reading(Reason.MALFORMED):
        raise AssertionError


def test_a_segmentation_passes_the_door_whatever_the_modalities(hospital: Any) -> None:
    images = [hospital.new_image()]
    seg = hospital.new_segmentation({1: np.ones((1, 8, 6), dtype=bool)}, images)
    check_image(seg, ("MR",))
    seg.file_meta = pydicom.dataset.FileMetaDataset()
    seg.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    assert decode_segments(seg).shape == (1, 8, 6)


def test_a_series_over_the_limit_is_refused_before_it_is_decoded(
    hospital: Any, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "MAX_STACK_VALUES", 2 * 8 * 6)
    images = [hospital.new_image(index) for index in range(3)]
    assert reason_of(hospital, data, tmp_path, *images) == [Reason.TOO_MANY_PIXELS]


def test_a_file_that_cannot_be_opened_is_quarantined_by_a_keyed_id(
    hospital: Any, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hospital.save(hospital.new_image(), tmp_path / "source" / "Ottoline.dcm")

    def denied(*_: Any) -> int:
        raise PermissionError(13, "denied", str(path))

    arguments: dict[str, Any] = {"secret": hospital.secret, "mask_codes": {}, "diagnosis_codes": {}}
    with monkeypatch.context() as patch:
        patch.setattr(sources.os, "open", lambda name, *a: denied() if "Ottoline" in str(name) else real(name, *a))
        report = ingest(tmp_path / "source", tmp_path / "store", data, **arguments)
    assert report.table() == (("quarantined", "file cannot be read", 1),)
    assert b"Ottoline" not in (tmp_path / "store" / "index.json").read_bytes()


def test_pixels_of_another_shape_than_announced_are_refused(
    hospital: Any, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Frames(np.zeros((2, 8, 6, 1), np.float32), 0, 1)
    monkeypatch.setattr(prepare, "decode", lambda dataset: wrong)
    assert reason_of(hospital, data, tmp_path, hospital.new_image()) == [Reason.UNDECODABLE]
