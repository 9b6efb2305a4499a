"""Every file that pydicom and pydicom-data carry: the run goes on, each file has one outcome, pixels are right."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.data
import pytest

from client.ingest.pixels import Frames, decode, decode_segments, to_channels
from client.ingest.reasons import Quarantined, Reason
from client.ingest.run import ingest
from client.ingest.sources import SourceFile
from client.ingest.store import Store
from client.ingest.validate import read_whole
from shared.config import DataConfig, IntensityConfig

MODALITIES = ("CT", "MR", "CR", "DX", "US", "OT", "NM", "RTDOSE", "XA")


def _folder(package: str, inside: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / inside


FOLDERS = (_folder("pydicom", "data/test_files"), _folder("data_store", "data"))
FILES = sorted(path for folder in FOLDERS for path in folder.rglob("*") if path.is_file() and path.suffix != ".py")


def source_of(name: str) -> SourceFile:
    path = Path(str(pydicom.data.get_testdata_file(name, download=False)))
    return SourceFile(path, path.stat().st_size, regular=True)


def frames_of(name: str) -> Frames:
    return decode(read_whole(source_of(name)))


def values_of(name: str) -> np.ndarray:
    return frames_of(name).values_FHWC


def test_there_are_files_to_test() -> None:
    assert len(FILES) > 200


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_run_goes_on_and_the_file_has_one_outcome(
    path: Path, hospital: Any, make_data: Callable[..., DataConfig], tmp_path: Path
) -> None:
    data = make_data(modalities=MODALITIES, intensity=IntensityConfig(rule="percentile", low=0, high=100))
    shutil.copy(path, tmp_path / "source-file")
    (tmp_path / "source").mkdir()
    (tmp_path / "source-file").rename(tmp_path / "source" / "file")
    report = ingest(
        tmp_path / "source",
        tmp_path / "store",
        data,
        secret=hospital.secret,
        mask_codes={"organ": 1},
        diagnosis_codes={},
    )
    ((outcome, reason, files),) = report.table()
    assert files == report.files == 1
    assert (outcome == "stored") == (reason == "image")
    if outcome == "stored":
        store = Store.open(tmp_path / "store")
        image = store.image(store.series[0].key)
        assert np.isfinite(image).all()
        assert (float(image.min()), float(image.max())) == (0.0, 1.0)
    if outcome == "quarantined":
        index = (tmp_path / "store" / "index.json").read_text()
        assert reason in index


# Expected outcomes by trait: specs, section "odd DICOM files". US and SC carry no word on burned-in text.
EXPECTED = {
    "693_J2KI.dcm": Reason.IMAGE,
    "J2K_pixelrep_mismatch.dcm": Reason.IMAGE,
    "JPEG2000-embedded-sequence-delimiter.dcm": Reason.MAY_SHOW_TEXT,
    "JPGLosslessP14SV1_1s_1f_8b.dcm": Reason.IMAGE,
    "MR_small_jpeg_ls_lossless.dcm": Reason.IMAGE,
    "JPEGLSNearLossless_16.dcm": Reason.NO_MODALITY,
    "MR_small_RLE.dcm": Reason.IMAGE,
    "MR_small_bigendian.dcm": Reason.IMAGE,
    "emri_small_big_endian.dcm": Reason.IMAGE,
    "ExplVR_BigEnd.dcm": Reason.MAY_SHOW_TEXT,
    "image_dfl.dcm": Reason.MAY_SHOW_TEXT,
    "examples_palette.dcm": Reason.MAY_SHOW_TEXT,
    "RG1_UNCR.dcm": Reason.IMAGE,
    "liver_1frame.dcm": Reason.UNMATCHED_LABEL,
    "rtdose.dcm": Reason.IMAGE,
    "MR-SIEMENS-DICOM-WithOverlays.dcm": Reason.IMAGE,
    "rtstruct.dcm": Reason.NO_PREAMBLE,
    "OT-PAL-8-face.dcm": Reason.NO_PREAMBLE,
    "ExplVR_LitEndNoMeta.dcm": Reason.NO_PREAMBLE,
    "ExplVR_BigEndNoMeta.dcm": Reason.NO_PREAMBLE,
    "meta_missing_tsyntax.dcm": Reason.NO_TRANSFER_SYNTAX,
    "SC_jpeg_no_color_transform.dcm": Reason.NO_MODALITY,
    "MR_truncated.dcm": Reason.UNDECODABLE,
    "badVR.dcm": Reason.MALFORMED,
    "emri_small_jpeg_2k_lossless_too_short.dcm": Reason.MALFORMED,
    "bad_sequence.dcm": Reason.IMAGE,
    "explicit_VR-UN.dcm": Reason.IMAGE,
    "nested_priv_SQ.dcm": Reason.NO_IMAGE,
    "UN_sequence.dcm": Reason.NO_IMAGE,
    "reportsi.dcm": Reason.NO_IMAGE,
    "test-SR.dcm": Reason.NO_IMAGE,
    "rtplan.dcm": Reason.NO_IMAGE,
    "waveform_ecg.dcm": Reason.NO_IMAGE,
    "DICOMDIR": Reason.DIRECTORY,
    "zipMR.gz": Reason.NOT_DICOM,
}


@pytest.mark.parametrize(("name", "expected"), EXPECTED.items(), ids=EXPECTED)
def test_an_odd_file_has_the_expected_reason(
    name: str, expected: Reason, hospital: Any, make_data: Callable[..., DataConfig], tmp_path: Path
) -> None:
    data = make_data(modalities=MODALITIES, intensity=IntensityConfig(rule="percentile", low=0, high=100))
    (tmp_path / "source").mkdir()
    shutil.copy(source_of(name).path, tmp_path / "source" / "x")
    report = ingest(
        tmp_path / "source", tmp_path / "store", data, secret=hospital.secret, mask_codes={}, diagnosis_codes={}
    )
    assert [reason for _, reason in report.outcomes] == [expected]


@pytest.mark.parametrize("folder", FOLDERS, ids=["pydicom", "pydicom-data"])
def test_a_whole_folder_of_them_is_one_silent_run(
    folder: Path,
    hospital: Any,
    make_data: Callable[..., DataConfig],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = make_data(modalities=MODALITIES, intensity=IntensityConfig(rule="range"))
    arguments: dict[str, Any] = {"secret": hospital.secret, "mask_codes": {}, "diagnosis_codes": {}}
    report = ingest(folder, tmp_path / "store", data, **arguments)
    assert "".join(capfd.readouterr()) == "", "not even from C"
    assert report.files == sum(path.is_file() for path in folder.rglob("*"))
    assert report.count("stored") > 10
    again = ingest(folder, tmp_path / "store", data, **arguments)
    assert again.series_new == again.series_updated == 0
    assert again.count("already stored") == report.count("stored")
    assert again.count("quarantined") == report.count("quarantined")


# ------------------------------------------------------------------------------------------------------ right pixels


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("emri_small_big_endian.dcm", "emri_small.dcm"),
        ("emri_small_RLE.dcm", "emri_small.dcm"),
        ("emri_small_jpeg_2k_lossless.dcm", "emri_small.dcm"),
        ("emri_small_jpeg_ls_lossless.dcm", "emri_small.dcm"),
        ("693_J2KR.dcm", "693_UNCR.dcm"),
        ("MR2_J2KR.dcm", "MR2_UNCR.dcm"),
        ("RG1_J2KR.dcm", "RG1_UNCR.dcm"),
        ("RG3_J2KR.dcm", "RG3_UNCR.dcm"),
        ("US1_J2KR.dcm", "US1_UNCR.dcm"),
        ("JPEG2000.dcm", "JPEG2000_UNC.dcm"),
        ("OBXXXX1A_rle.dcm", "OBXXXX1A.dcm"),
        ("OBXXXX1A_expb.dcm", "OBXXXX1A.dcm"),
        ("SC_rgb_rle_2frame.dcm", "SC_rgb_2frame.dcm"),
        ("SC_rgb_rle_16bit_2frame.dcm", "SC_rgb_16bit_2frame.dcm"),
        ("SC_rgb_rle_32bit.dcm", "SC_rgb_32bit.dcm"),
        ("SC_rgb_expb_16bit_2frame.dcm", "SC_rgb_16bit_2frame.dcm"),
        ("SC_rgb_small_odd_big_endian.dcm", "SC_rgb_small_odd.dcm"),
        ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb.dcm"),
        ("rtdose_expb.dcm", "rtdose.dcm"),
        ("rtdose_rle.dcm", "rtdose.dcm"),
        ("gdcm-US-ALOKA-16_big.dcm", "gdcm-US-ALOKA-16.dcm"),
    ],
)
def test_a_lossless_transfer_syntax_gives_the_pixels_of_its_uncompressed_twin(name: str, twin: str) -> None:
    decoded = values_of(name)
    assert decoded.dtype == np.dtype("=f4")
    np.testing.assert_array_equal(decoded, values_of(twin))


@pytest.mark.parametrize(
    ("name", "twin", "largest"),
    [("693_J2KI.dcm", "693_UNCI.dcm", 0), ("MR2_J2KI.dcm", "MR2_UNCI.dcm", 1), ("US1_J2KI.dcm", "US1_UNCI.dcm", 1),
     ("SC_rgb_small_odd_jpeg.dcm", "SC_rgb_small_odd.dcm", 8),],
)  # fmt: skip
def test_a_lossy_or_ybr_twin_is_as_near_as_its_coding_allows(name: str, twin: str, largest: int) -> None:
    assert np.abs(values_of(name) - values_of(twin)).max() <= largest


@pytest.mark.parametrize("name", ["SC_ybr_full_uncompressed.dcm", "SC_ybr_full_422_uncompressed.dcm"])
def test_ybr_becomes_rgb_by_the_equations_of_the_standard(name: str) -> None:
    ds = read_whole(source_of(name))
    y, cb, cr = np.moveaxis(pydicom.pixels.pixel_array(ds, raw=True).astype(float), -1, 0)
    # PS3.3 C.7.6.3.1.2, solved for R, G, B.
    red, green, blue = y + 1.402 * (cr - 128), y - 0.3441 * (cb - 128) - 0.7141 * (cr - 128), y + 1.772 * (cb - 128)
    expected = np.clip(np.stack([red, green, blue], axis=-1), 0, 255)
    np.testing.assert_allclose(decode(ds).values_FHWC[0], expected, atol=1)


@pytest.mark.parametrize("name", ["RG1_UNCR.dcm", "RG1_J2KI.dcm", "RG3_UNCR.dcm", "RG3_J2KR.dcm"])
def test_monochrome1_is_mirrored_inside_its_bit_depth(name: str) -> None:
    ds = read_whole(source_of(name))
    assert ds.PhotometricInterpretation == "MONOCHROME1"
    frames = decode(ds)
    stored = ds.pixel_array.astype(float)
    np.testing.assert_array_equal(frames.values_FHWC[0, ..., 0], 2**ds.BitsStored - 1 - stored)
    assert (frames.lowest, frames.highest) == (0, 2**ds.BitsStored - 1)


def test_signed_j2k_with_a_contradicting_header_is_signed() -> None:
    values = values_of("J2K_pixelrep_mismatch.dcm")
    ds = read_whole(source_of("J2K_pixelrep_mismatch.dcm"))
    assert values.min() == -2000 * float(ds.RescaleSlope) + float(ds.RescaleIntercept)


def test_the_modality_lut_is_applied_entry_by_entry() -> None:
    ds = read_whole(source_of("mlut_18.dcm"))
    lut = ds.ModalityLUTSequence[0]
    entries, first, bits = lut.LUTDescriptor
    data = np.asarray(lut.LUTData)
    assert len(data) == entries
    frames = decode(ds)
    expected = data[np.clip(ds.pixel_array.astype(int) - first, 0, entries - 1)]
    np.testing.assert_array_equal(frames.values_FHWC[0, ..., 0], expected)
    assert (frames.lowest, frames.highest) == (0, 2**bits - 1)


def test_a_palette_becomes_its_colours() -> None:
    ds = read_whole(source_of("OBXXXX1A.dcm"))
    colours = [
        np.frombuffer(ds[f"{name}PaletteColorLookupTableData"].value, "<u2") for name in ("Red", "Green", "Blue")
    ]
    expected = np.stack([table[ds.pixel_array] for table in colours], axis=-1)
    frames = decode(ds)
    np.testing.assert_array_equal(frames.values_FHWC[0], expected)
    assert frames.highest == 2**16 - 1
    grey = to_channels(frames.values_FHWC, 1)
    np.testing.assert_allclose(grey[0, ..., 0], expected @ [0.299, 0.587, 0.114], rtol=1e-5)


def test_frames_of_a_multi_frame_image_stay_apart() -> None:
    assert values_of("emri_small.dcm").shape == (10, 64, 64, 1)
    assert values_of("examples_ybr_color.dcm").shape == (30, 240, 320, 3)
    two = values_of("SC_rgb_2frame.dcm")
    one = values_of("SC_rgb.dcm")
    np.testing.assert_array_equal(two[0], one[0])
    assert not np.array_equal(two[0], two[1])


def test_rescale_and_dose_scaling_lead_to_the_modalitys_unit() -> None:
    ds = read_whole(source_of("CT_small.dcm"))
    expected = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    np.testing.assert_array_equal(values_of("CT_small.dcm")[0, ..., 0], expected)
    dose = read_whole(source_of("rtdose.dcm"))
    grey = values_of("rtdose.dcm")[..., 0]
    np.testing.assert_allclose(grey, dose.pixel_array * float(dose.DoseGridScaling), rtol=1e-6)


def test_a_deflated_file_is_inflated() -> None:
    ds = read_whole(source_of("image_dfl.dcm"))
    np.testing.assert_array_equal(decode(ds).values_FHWC[0, ..., 0], ds.pixel_array)


def test_one_bit_segments_are_unpacked_in_either_byte_order() -> None:
    little = decode_segments(read_whole(source_of("liver.dcm")))
    big = decode_segments(read_whole(source_of("liver_expb.dcm")))
    assert little.shape == (3, 512, 512)
    assert set(np.unique(little)) == {0, 1}
    np.testing.assert_array_equal(little, big)


@pytest.mark.parametrize("name", ["JPEG-lossy.dcm", "JPEG2000-embedded-sequence-delimiter.dcm", "MR_truncated.dcm"])
def test_what_no_plugin_decodes_is_refused_without_a_word_of_the_plugin(name: str) -> None:
    with pytest.raises(Quarantined) as refusal:
        frames_of(name)
    assert refusal.value.reason == Reason.UNDECODABLE
    assert str(refusal.value) == Reason.UNDECODABLE.value
    assert refusal.value.__cause__ is None
    assert refusal.value.__context__ is None or refusal.value.__suppress_context__
