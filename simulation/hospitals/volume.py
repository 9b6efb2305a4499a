"""The nouns between the sources of anatomy and the DICOM writer: a volume with its place in the patient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from shared.config import HospitalConfig, SimulationConfig
from simulation.hospitals.cohort import Case

Floats: TypeAlias = npt.NDArray[np.float32]
Stored: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.int16]
Vector: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where a volume lies, in the patient coordinates of DICOM PS3.3 C.7.6.2.1.1 (L, P, S in mm)."""

    origin_mm: Vector  # centre of the first pixel of the first slice
    along_columns: Vector  # unit direction of increasing column index: ImageOrientationPatient values 1-3
    along_rows: Vector  # unit direction of increasing row index: values 4-6
    slice_step_mm: Vector  # from one slice to the next
    pixel_spacing_mm: tuple[float, float]  # between rows, between columns
    thickness_mm: float

    def position_mm(self, index: int) -> Vector:
        """ImagePositionPatient of slice `index`."""
        x, y, z = (start + index * step for start, step in zip(self.origin_mm, self.slice_step_mm, strict=True))
        return x, y, z


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """One patient's acquisition as stored values; value = stored * slope + intercept."""

    stored_DHW: Stored
    label_DHW: npt.NDArray[np.uint8] | None  # 0 background, else 1 + the place in the source's `masks`
    geometry: Geometry
    bits_stored: int
    slope: float = 1.0
    intercept: float = 0.0
    degraded_DHW: Stored | None = None  # the second acquisition of a pair


Renderer: TypeAlias = Callable[[Case, HospitalConfig], Volume]


class Source(NamedTuple):
    """One kind of anatomy: its modality, what it can show, who its patients are, and how one becomes a volume."""

    modality: Literal["MR", "CT", "DX"]
    masks: tuple[str, ...]
    diagnoses: tuple[str, ...]
    cohorts: Callable[[SimulationConfig, Sequence[HospitalConfig]], tuple[tuple[Case, ...], ...]]
    renderer: Callable[[SimulationConfig], Renderer]
    description: str  # StudyDescription; protocol and series names start with it


def axial(rows: int, columns: int, slices: int, spacing_mm: Vector) -> Geometry:
    """Axial slices, feet to head, centred on the origin of the patient coordinates."""
    between_slices, between_rows, between_columns = spacing_mm
    return Geometry(
        origin_mm=(
            -(columns - 1) / 2 * between_columns,
            -(rows - 1) / 2 * between_rows,
            -(slices - 1) / 2 * between_slices,
        ),
        along_columns=(1.0, 0.0, 0.0),
        along_rows=(0.0, 1.0, 0.0),
        slice_step_mm=(0.0, 0.0, between_slices),
        pixel_spacing_mm=(between_rows, between_columns),
        thickness_mm=between_slices,
    )


def grid_mm(geometry: Geometry, shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """Patient coordinates (3, D, H, W), L P S in mm, of every pixel centre."""
    slices, rows, columns = np.meshgrid(*(np.arange(size, dtype=np.float32) for size in shape), indexing="ij")
    between_rows, between_columns = geometry.pixel_spacing_mm
    return np.stack(
        [
            geometry.origin_mm[axis]
            + slices * geometry.slice_step_mm[axis]
            + rows * (geometry.along_rows[axis] * between_rows)
            + columns * (geometry.along_columns[axis] * between_columns)
            for axis in range(3)
        ]
    ).astype(np.float32)
