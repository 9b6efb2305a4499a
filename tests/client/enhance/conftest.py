"""An installed release without a signature, from a tiny campaign; and DICOM series of a few pixels to enhance."""

from __future__ import annotations

import datetime as dt
import hashlib
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from safetensors.numpy import save
from torch import nn

from client.enhance.series import Options
from client.installed import Installed
from shared.config import CampaignConfig
from shared.networks import Networks, build_networks
from shared.weights import to_arrays
from tests.client.ingest.conftest import ROOT

NOW = dt.datetime(2026, 11, 22, 10, 11, 12, tzinfo=dt.UTC)
BINS = {"bins": [{"count": 40, "confidence": 0.1 * i + 0.05, "correct": 0.1 * i} for i in range(10)]}


def make_installed(
    folder: Path, campaign: CampaignConfig, networks: Networks | None = None, **manifest: Any
) -> Installed:
    """As `client.releases.install` leaves it, but for the signature that nobody reads here."""
    folder.mkdir(parents=True, exist_ok=True)
    content = save({name: values.copy() for name, values in to_arrays(networks or build_networks(campaign)).items()})
    (folder / "weights.safetensors").write_bytes(content)
    files = {"weights.safetensors": {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}}
    values = {
        "name": "tiny",
        "version": 3,
        "digest": "ab" * 32,
        "files": files,
        "calibration": BINS,
        "descriptors": None,
    }
    return Installed(SimpleNamespace(**{**values, **manifest}), folder, campaign)  # type: ignore[arg-type]


class Shift(nn.Module):
    """image + a constant: a correction that is known in every unit."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.tensor(amount))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image + self.amount


def with_correction(campaign: CampaignConfig, amount: float = 0.05, seed: int = 0) -> Networks:
    """The campaign's enhancer with a last layer that does something."""
    networks = build_networks(campaign)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        last = list(networks.enhancer.parameters())[-2]
        last.add_(amount * torch.randn(last.shape, generator=rng))
    return networks


@pytest.fixture
def options() -> Options:
    return Options(now=NOW, draws=2, pictures=1)


@pytest.fixture
def installed(tmp_path: Path, campaign: CampaignConfig) -> Installed:
    return make_installed(tmp_path / "release", campaign, with_correction(campaign))


@pytest.fixture
def identity(tmp_path: Path, campaign: CampaignConfig) -> Installed:
    """An untrained enhancer, which changes nothing."""
    return make_installed(tmp_path / "release", campaign)


def image(index: int, stored: np.ndarray, *, series: str = "1", modality: str = "CT", **values: Any) -> Dataset:
    """One slice at z = 5 * index mm with all that its IOD asks for."""
    storage = {"CT": "2", "MR": "4", "CR": "1", "DX": "1.1"}[modality]
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = f"1.2.840.10008.5.1.4.1.1.{storage}", f"{ROOT}9.{series}.{index + 1}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{ROOT}9.77", f"{ROOT}9.{series}.99"
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = f"{ROOT}9.88", ""
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Quillfeather^Ottoline", "MRN-7", "19430917", "F"
    ds.BodyPartExamined = "ABDOMEN"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20230314", "081233", "S1", "ACC55"
    ds.ReferringPhysicianName, ds.Manufacturer = "", "Acme"
    ds.ContentDate, ds.ContentTime = "20230314", "081233"
    ds.Modality, ds.ImageType = modality, ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "OTHER"]
    ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = 4, index + 1, 1
    ds.SeriesDescription = "ABDOMEN 5 MM"
    ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-10, -20, 5 * index]
    ds.PixelSpacing, ds.SliceThickness, ds.KVP = [2, 3], 5, "120"
    ds.PatientPosition = "HFS"
    ds.Rows, ds.Columns = stored.shape[-2:] if stored.ndim < 4 else stored.shape[1:3]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = 8 * stored.dtype.itemsize
    ds.BitsStored, ds.HighBit = ds.BitsAllocated, ds.BitsAllocated - 1
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
    pixels = stored.tobytes()
    ds.add_new("PixelData", "OW" if ds.BitsAllocated == 16 else "OB", pixels + b"\0" * (len(pixels) % 2))
    for keyword, value in values.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    if "BitsStored" in values:
        ds.HighBit = ds.BitsStored - 1
    return ds


def save_dicom(ds: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True)
    return path


def ct_slices(count: int = 3, side: int = 32, seed: int = 0) -> list[np.ndarray]:
    """A disc of 60 HU in air with noise, stored as value + 1024."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    disc = np.where(x**2 + y**2 < 0.6, 1084, 24)
    return [(disc + rng.normal(0, 20, disc.shape)).clip(0).astype(np.uint16) for _ in range(count)]


def write_ct(folder: Path, count: int = 3, side: int = 32, seed: int = 0, **values: Any) -> list[Path]:
    stored = ct_slices(count, side, seed)
    return [save_dicom(image(i, one, **values), folder / f"slice-{i}.dcm") for i, one in enumerate(stored)]


def errors_of(path: Path) -> list[str]:
    """What dciodvfy calls an error."""
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace", check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


needs_dciodvfy = pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy (Debian's dicom3tools) is not installed: DICOM is not validated"
)
