"""Simulated patients of every modality, and a release that was really installed."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from client.enhance.series import Options
from client.enhance.study import enhance_study
from client.releases import install
from shared.config import CampaignConfig, IngestConfig, IntensityConfig, MachineConfig
from simulation.hospitals.dicom import write_study
from simulation.hospitals.identity import patient_identity, site_identity
from simulation.hospitals.volume import Source, Volume, axial
from tests.client.enhance.conftest import errors_of, make_installed, needs_dciodvfy, with_correction, write_ct
from tests.client.release_files import authority, released, site_of

RULES = {
    "CT": IntensityConfig(rule="window", low=-160, high=240),
    "MR": IntensityConfig(rule="percentile", low=0.5, high=99.8),
    "DX": IntensityConfig(rule="range"),
}


def write_patient(folder: Path, modality: str) -> list[Path]:
    """A disc in noise, written as the simulated hospitals write their patients."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[-1:1:32j, -1:1:36j]
    slices = 1 if modality == "DX" else 9
    disc = 900 * (x**2 + y**2 < 0.5) + rng.normal(0, 40, (slices, 32, 36)) + 200
    kind, bits = (np.uint8, 8) if modality == "DX" else (np.uint16, 12)
    stored = (disc.clip(0) / (8 if modality == "DX" else 1)).clip(0, 2**bits - 1).astype(kind)
    geometry = axial(32, 36, slices, (5.0, 2.0, 2.0))
    intercept = -1024.0 if modality == "CT" else 0.0
    volume = Volume(stored, None, geometry, bits_stored=bits, intercept=intercept)
    source = Source(modality, (), (), None, None, "STUDY")  # type: ignore[arg-type]
    write_study(
        folder, source=source, volume=volume, site=site_identity(0, "north"), patient=patient_identity(0, "north", 0)
    )
    return sorted(folder.rglob("*.dcm"))


@needs_dciodvfy
@pytest.mark.parametrize("modality", ["MR", "CT", "DX"])
def test_derived_objects_of_simulated_patients_pass_without_errors(
    tmp_path: Path, campaign: CampaignConfig, machine: MachineConfig, options: Options, modality: str
) -> None:
    sources = write_patient(tmp_path / "study", modality)
    assert errors_of(sources[0]) == []
    rule = IngestConfig(modalities=(modality,), intensity=RULES[modality])
    varied = replace(campaign, data=replace(campaign.data, ingest=rule))
    installed = make_installed(tmp_path / "release", varied, with_correction(campaign))
    summary = enhance_study(tmp_path / "study", tmp_path / "out", installed, machine, replace(options, draws=0))
    assert summary.files[-1].name == "SEG.dcm"
    for path in (summary.files[0], summary.files[-2], summary.files[-1]):
        assert errors_of(path) == []
    # Axial slices come back in the order of their place, each at its own.
    for path in summary.files[:-1]:
        ds = pydicom.dcmread(path)
        source = pydicom.dcmread(sources[int(ds.InstanceNumber) - 1])
        assert ds.get("ImagePositionPatient") == source.get("ImagePositionPatient")
        assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID


def test_a_release_that_is_installed_enhances_and_signs_what_it_made(
    tmp_path: Path, campaign: CampaignConfig, machine: MachineConfig, options: Options
) -> None:
    ours = authority()
    site = site_of(tmp_path / "site", ours)
    installed = install(site, released(tmp_path / "demo-v1.release", campaign, ours), dt.datetime.now(dt.UTC))
    write_ct(tmp_path / "study", 1)
    summary = enhance_study(tmp_path / "study", tmp_path / "out", installed, machine, options)
    ds = pydicom.dcmread(summary.files[0])
    assert installed.digest in ds.ContributingEquipmentSequence[0].ContributionDescription
    assert "release demo v1" in ds.DerivationDescription
