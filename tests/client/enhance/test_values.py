"""What the enhancer does not change is written back bit for bit; what it changes is right in the modality's unit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000, JPEG2000Lossless, RLELossless

from client.enhance.series import Options
from client.enhance.study import enhance_study
from client.installed import Installed
from shared.config import CampaignConfig, IngestConfig, IntensityConfig, MachineConfig
from shared.networks import Networks, build_networks
from tests.client.enhance.conftest import Shift, image, make_installed, save_dicom

PERCENTILE = IntensityConfig(rule="percentile", low=1, high=99)
RANGE = IntensityConfig(rule="range")
WINDOW = IntensityConfig(rule="window", low=-160, high=240)
RNG = np.random.default_rng(0)
FULL = RNG.integers(0, 65536, (20, 24)).astype(np.uint16)
FULL[0, :2] = 0, 65535
SIGNED = RNG.integers(-32768, 32768, (20, 24)).astype(np.int16)
TWELVE = RNG.integers(0, 4096, (20, 24)).astype(np.uint16)
EIGHT = RNG.integers(0, 256, (21, 23)).astype(np.uint8)
KINDS: dict[str, tuple[np.ndarray, dict[str, Any], IntensityConfig]] = {
    "unsigned-16": (FULL, {}, WINDOW),
    "signed-16": (SIGNED, {"RescaleIntercept": 0}, PERCENTILE),
    "12-bit": (TWELVE, {"BitsStored": 12}, RANGE),
    "8-bit-odd-size": (EIGHT, {"RescaleIntercept": 0}, RANGE),
    "monochrome1": (TWELVE, {"BitsStored": 12, "PhotometricInterpretation": "MONOCHROME1"}, RANGE),
    "slope": (TWELVE, {"BitsStored": 12, "RescaleSlope": "0.37", "RescaleIntercept": "-700.5"}, WINDOW),
    "steep-slope": (TWELVE, {"BitsStored": 12, "RescaleSlope": "17.25"}, PERCENTILE),
    "padding": (TWELVE, {"BitsStored": 12, "PixelPaddingValue": 7}, WINDOW),
}


def of(campaign: CampaignConfig, rule: IntensityConfig, **ingest: Any) -> CampaignConfig:
    rule_of = IngestConfig(modalities=("CT", "MR", "CR"), intensity=rule, **ingest)
    return replace(campaign, data=replace(campaign.data, ingest=rule_of))


def enhanced(tmp_path: Path, installed: Installed, machine: MachineConfig, options: Options) -> pydicom.FileDataset:
    summary = enhance_study(tmp_path / "study", tmp_path / "out", installed, machine, options)
    return pydicom.dcmread(summary.files[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resampled", [False, True])
def test_an_identity_enhancer_changes_no_bit(
    tmp_path: Path, campaign: CampaignConfig, machine: MachineConfig, options: Options, kind: str, resampled: bool
) -> None:
    stored, values, rule = KINDS[kind]
    save_dicom(image(0, stored, **values), tmp_path / "study" / "a.dcm")
    spacing = (5.0, 3.0, 2.0) if resampled else None
    installed = make_installed(tmp_path / "release", of(campaign, rule, spacing_mm=spacing))
    ds = enhanced(tmp_path, installed, machine, replace(options, draws=0))
    before = pydicom.dcmread(tmp_path / "study" / "a.dcm")
    assert ds.PixelData == before.PixelData
    for keyword in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PhotometricInterpretation",
                    "RescaleSlope", "RescaleIntercept", "Rows", "Columns", "PixelSpacing", "ImagePositionPatient",
                    "ImageOrientationPatient"):  # fmt: skip
        assert ds[keyword].value == before[keyword].value, keyword


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_images_come_back_uncompressed_bit_for_bit(
    tmp_path: Path, campaign: CampaignConfig, machine: MachineConfig, options: Options, syntax: str
) -> None:
    stored = RNG.integers(0, 4096, (64, 72)).astype(np.uint16)
    ds = image(0, stored, BitsStored=12)
    save_dicom(ds, tmp_path / "study" / "a.dcm")
    ds.compress(syntax, generate_instance_uid=False)
    ds.save_as(tmp_path / "study" / "a.dcm", enforce_file_format=True)
    out = enhanced(tmp_path, make_installed(tmp_path / "release", of(campaign, WINDOW)), machine, options)
    assert (out.pixel_array == stored).all()
    assert "LossyImageCompression" not in out


def test_a_compression_that_lost_something_stays_known_with_its_method_and_its_ratio(
    tmp_path: Path, campaign: CampaignConfig, machine: MachineConfig, options: Options
) -> None:
    ds = image(0, np.arange(64 * 72, dtype=np.uint16).reshape(64, 72) // 2, BitsStored=12)
    save_dicom(ds, tmp_path / "study" / "a.dcm")
    ds.compress(JPEG2000, generate_instance_uid=False, j2k_cr=[8])
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if keyword in ds:
            delattr(ds, keyword)
    ds.save_as(tmp_path / "study" / "a.dcm", enforce_file_format=True)
    out = enhanced(tmp_path, make_installed(tmp_path / "release", of(campaign, WINDOW)), machine, options)
    assert (out.LossyImageCompression, out.LossyImageCompressionMethod) == ("01", "ISO_15444_1")
    assert float(out.LossyImageCompressionRatio) == pytest.approx(2 * 64 * 72 / len(ds.PixelData), rel=1e-3)


def test_frames_of_a_multi_frame_image_stay_bit_identical(
    tmp_path: Path, campaign: CampaignConfig, machine: MachineConfig, options: Options
) -> None:
    stored = RNG.integers(-2000, 2000, (4, 16, 16)).astype(np.int16)
    ds = image(0, stored[0], modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1", NumberOfFrames=4)
    ds.PixelData = stored.tobytes()
    save_dicom(ds, tmp_path / "study" / "a.dcm")
    out = enhanced(tmp_path, make_installed(tmp_path / "release", of(campaign, PERCENTILE)), machine, options)
    assert (out.pixel_array == stored).all()
    assert int(out.NumberOfFrames) == 4


@pytest.mark.parametrize(
    ("values", "expected_steps"),
    [
        ({}, 40),  # 0.1 of a window of 400 HU at slope 1
        ({"RescaleSlope": "0.5"}, 80),
        ({"RescaleSlope": "-1", "RescaleIntercept": "1024"}, -40),
        ({"PhotometricInterpretation": "MONOCHROME1"}, -40),
    ],
)
def test_a_known_correction_is_right_in_stored_values(
    tmp_path: Path, campaign: CampaignConfig, machine: MachineConfig, options: Options,
    values: dict[str, Any], expected_steps: int, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """0.1 of the scale brighter is 40 HU more, whatever the stored values look like."""
    stored = np.full((16, 16), 1024 if values.get("RescaleSlope") != "0.5" else 2048, np.uint16)
    if "PhotometricInterpretation" in values:
        # Mirrored inside the range of 12 bits, -1023 to 3072 HU: 3072 - 1023 = 2049 becomes 0 HU.
        stored, values = np.full((16, 16), 3072, np.uint16), {**values, "RescaleIntercept": -1023}
    networks = build_networks(campaign)
    monkeypatch.setattr(Installed, "networks", lambda self: Networks(Shift(0.1), networks.recogniser))
    save_dicom(image(0, stored, BitsStored=12, **values), tmp_path / "study" / "a.dcm")
    out = enhanced(tmp_path, make_installed(tmp_path / "release", of(campaign, WINDOW)), machine, options)
    assert set((out.pixel_array.astype(int) - stored).flatten()) == {expected_steps}


def test_values_are_held_inside_the_stored_range_and_padding_does_not_move(
    tmp_path: Path, campaign: CampaignConfig, machine: MachineConfig, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = np.full((16, 16), 4090, np.uint16)
    stored[0] = 0
    networks = build_networks(campaign)
    monkeypatch.setattr(Installed, "networks", lambda self: Networks(Shift(0.1), networks.recogniser))
    ds = image(0, stored, BitsStored=12, RescaleIntercept=-4000, PixelPaddingValue=0)
    save_dicom(ds, tmp_path / "study" / "a.dcm")
    out = enhanced(tmp_path, make_installed(tmp_path / "release", of(campaign, WINDOW)), machine, options)
    assert set(out.pixel_array[1:].flatten()) == {4095}
    assert set(out.pixel_array[0]) == {0}
