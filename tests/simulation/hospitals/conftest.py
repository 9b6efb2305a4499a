"""Small hospitals that every test of this room may vary, and DICOM read by nothing but pydicom and numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset

from shared.config import (
    CampaignConfig,
    CompareConfig,
    HospitalConfig,
    HospitalsConfig,
    IngestConfig,
    IntensityConfig,
    MachineConfig,
    SimulationConfig,
)

Make = Callable[..., SimulationConfig]

KINDS: dict[str, dict[str, Any]] = {
    "phantom": {},
    "mni": {
        "masks": ("grey matter", "white matter", "lesion"),
        "diagnoses": ("none", "kind_a", "kind_b"),
        "ingest": IngestConfig(modalities=("MR",), intensity=IntensityConfig(rule="percentile", low=0.5, high=99.5)),
    },
    "hippocampus": {
        "masks": ("anterior", "posterior"),
        "diagnoses": (),
        "ingest": IngestConfig(modalities=("MR",), intensity=IntensityConfig(rule="percentile", low=0.5, high=99.5)),
    },
    "pneumonia": {
        "masks": (),
        "diagnoses": ("normal", "pneumonia"),
        "ingest": IngestConfig(modalities=("DX",), intensity=IntensityConfig(rule="range")),
    },
    "totalseg": {"masks": ("liver", "kidney"), "diagnoses": ()},
    "store": {},
}


@pytest.fixture
def make(campaign: CampaignConfig, tmp_path: Path) -> Make:
    """make(kind, *hospitals, sites=, slices=, root=, seed=): a simulation's config."""

    def build(
        kind: str = "phantom",
        *hospitals: HospitalConfig,
        sites: int | None = None,
        slices: int = 4,
        root: Path | None = None,
        seed: int = 0,
        **data: Any,
    ) -> SimulationConfig:
        listed = hospitals or (HospitalConfig(name="north", patients=4),)
        count = sites or len(listed)
        varied = replace(campaign.data, kind=kind, root=None if root is None else str(root), **KINDS[kind] | data)
        rounds = replace(campaign.rounds, quorum=1)
        return SimulationConfig(
            experiment="test",
            budget="quick",
            sites=count,
            seeds=(seed,),
            transport="inprocess",
            run_dir=str(tmp_path / "run"),
            campaign=replace(campaign, data=varied, rounds=rounds, seed=seed),
            hospitals=HospitalsConfig(slices=slices, sites=listed),
            compare=CompareConfig(),
            machine=MachineConfig(device="cpu", threads=1),
        )

    return build


def read_series(site: Path, patient: str, number: int = 1) -> list[Dataset]:
    """One series in slice order."""
    files = sorted((site / "studies" / patient / f"series-{number:03d}").glob("*.dcm"))
    return [pydicom.dcmread(path) for path in files]


def patients_of(site: Path) -> list[str]:
    return sorted(path.name for path in (site / "studies").iterdir())


def stored_DHW(images: list[Dataset]) -> npt.NDArray[Any]:
    """Pixel values from the bytes alone (PS3.5 8.1.1, little endian)."""
    first = images[0]
    kind = f"<{'i' if first.PixelRepresentation else 'u'}{first.BitsAllocated // 8}"
    count = first.Rows * first.Columns
    return np.stack(
        [np.frombuffer(i.PixelData, dtype=kind, count=count).reshape(first.Rows, first.Columns) for i in images]
    )
