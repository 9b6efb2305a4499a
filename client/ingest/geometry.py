"""DICOM positions in, one grid per series out: sorted slices, a common orientation, the campaign's spacing.

Orientation of a stored volume: axial-major in LPS. Axis D runs towards the head, H towards the back, W towards the
patient's left (PS3.3 C.7.6.2.1.1: +z, +y, +x). Axes are permuted and flipped to the nearest of these, never rotated:
an oblique scan keeps its own planes and its own pixels. A stack of fewer than MIN_SLICES_TO_REORDER slices, and an
image without geometry, keep the plane they were acquired in.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from client.ingest.reasons import Quarantined, Reason

Floats = npt.NDArray[np.float64]

MIN_SLICES_TO_REORDER = 8
SAME_POSITION_MM = 1e-3
MOST_MM = 1e6
"""Of a place, a distance or a spacing: what lies a kilometre away is no part of a patient, and squares of the largest
numbers are infinite."""
MOST_COARSER = 256.0
"""Campaign's spacing over the acquired one: smoothing costs time by it."""
MAX_GRID_VALUES = 1 << 29
"""Voxels after resampling; 2 GB as float32."""
UNEVEN = 1.5
"""Largest gap over the median gap (and the median over the smallest) before slices count as missing."""


@dataclass(frozen=True, slots=True, eq=False)
class FramePlanes:
    """Where the frames of one instance lie; empty arrays where the file does not tell."""

    positions_F3: Floats
    """Centre of the first pixel of each frame, LPS, mm."""
    row_direction: Floats
    """Unit vector along which the column index grows (W)."""
    column_direction: Floats
    """Unit vector along which the row index grows (H)."""
    spacing_hw: tuple[float, float]
    """Distance of rows, of columns, mm; 0 unknown."""
    thickness_mm: float
    """Slice spacing or thickness by the header; 0 unknown."""

    @property
    def placed(self) -> bool:
        return len(self.positions_F3) > 0 and 0 not in self.spacing_hw

    @property
    def normal(self) -> Floats:
        return np.cross(self.row_direction, self.column_direction)

    @property
    def depths_mm(self) -> Floats:
        """Distance of each frame along the normal."""
        return self.positions_F3 @ self.normal


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A regular grid of voxels; `affine` takes (d, h, w, 1) to LPS mm and is None without geometry."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine: Floats | None


# ------------------------------------------------------------------------------------------------- from the header


def frame_planes(dataset: Dataset, num_frames: int) -> FramePlanes:
    """Planes of a classic, an enhanced multi-frame or an RT dose instance. Quarantined where they contradict."""
    shared = _first(dataset.get("SharedFunctionalGroupsSequence"))
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    groups: list[tuple[Dataset, ...]] = [(frame, shared, dataset) for frame in per_frame[:num_frames]]
    groups = groups or [(shared, dataset)]
    positions = [_vector(_find(group, "PlanePositionSequence", "ImagePositionPatient"), 3) for group in groups]
    orientations = [_vector(_find(group, "PlaneOrientationSequence", "ImageOrientationPatient"), 6) for group in groups]
    spacing = _vector(_find(groups[0], "PixelMeasuresSequence", "PixelSpacing"), 2)
    if spacing is None:
        spacing = _vector(dataset.get("ImagerPixelSpacing"), 2)
    thickness = _number(_find(groups[0], "PixelMeasuresSequence", "SpacingBetweenSlices"))
    thickness = thickness or _number(_find(groups[0], "PixelMeasuresSequence", "SliceThickness"))
    known = spacing is not None and min(spacing) >= 1 / MOST_MM and max(spacing) <= MOST_MM
    spacing_hw = (float(spacing[0]), float(spacing[1])) if spacing is not None and known else (0.0, 0.0)
    nowhere = FramePlanes(np.zeros((0, 3)), np.zeros(3), np.zeros(3), spacing_hw, thickness)
    if orientations[0] is None or any(position is None for position in positions):
        return nowhere
    if any(other is None or np.abs(other - orientations[0]).max() > 1e-3 for other in orientations):
        return nowhere
    placed = np.array(positions, dtype=np.float64)
    if np.abs(placed).max() > MOST_MM:
        raise Quarantined(Reason.GEOMETRY)
    row, column = _directions(orientations[0])
    if len(placed) == 1 and num_frames > 1:
        offsets = _vector(dataset.get("GridFrameOffsetVector"), num_frames)
        if offsets is None:
            return nowhere
        if np.abs(offsets).max() > MOST_MM:
            raise Quarantined(Reason.GEOMETRY)
        placed = placed + (offsets - offsets[0])[:, None] * np.cross(row, column)[None]
    if len(placed) != num_frames:
        return nowhere
    return FramePlanes(placed, row, column, spacing_hw, thickness)


def _first(sequence: Any) -> Dataset:
    return sequence[0] if sequence else Dataset()


def _find(groups: tuple[Dataset, ...], sequence: str, keyword: str) -> Any:
    """The value in the frame's own functional group, else the shared one, else the plain attribute."""
    for group in groups:
        value = _first(group.get(sequence)).get(keyword)
        value = group.get(keyword) if value is None else value
        if value is not None:
            return value
    return None


def _vector(value: Any, length: int) -> Floats | None:
    if value is None or isinstance(value, str | bytes) or not hasattr(value, "__len__") or len(value) != length:
        return None
    numbers = np.array([float(item) for item in value], dtype=np.float64)
    return numbers if np.isfinite(numbers).all() else None


def _number(value: Any) -> float:
    number = float(value) if value not in (None, "") else 0.0
    return number if 1 / MOST_MM <= number <= MOST_MM else 0.0


def _directions(orientation: Floats) -> tuple[Floats, Floats]:
    row, column = orientation[:3], orientation[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if abs(lengths[0] - 1) > 1e-2 or abs(lengths[1] - 1) > 1e-2 or abs(float(row @ column)) > 1e-2:
        raise Quarantined(Reason.GEOMETRY)
    return row / lengths[0], column / lengths[1]


# ------------------------------------------------------------------------------------------------------------ stacks


def layers(depths_mm: Floats) -> tuple[tuple[int, ...], ...]:
    """Indices sorted by depth; places that occur k times give k stacks (echoes, time points), in the given order."""
    order = sorted(range(len(depths_mm)), key=lambda index: (round(float(depths_mm[index]) / SAME_POSITION_MM), index))
    stacks: list[list[int]] = []
    for _, same in itertools.groupby(order, key=lambda index: round(float(depths_mm[index]) / SAME_POSITION_MM)):
        for layer, index in enumerate(same):
            if layer == len(stacks):
                stacks.append([])
            stacks[layer].append(index)
    return tuple(tuple(stack) for stack in stacks)


def check_even(depths_mm: Floats) -> None:
    """Quarantined where a sorted stack has a hole: a volume with a missing slice must not be closed up silently."""
    if len(depths_mm) < 3:
        return
    gaps = np.diff(depths_mm)
    middle = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    if gaps.max() > UNEVEN * middle or gaps.min() * UNEVEN < middle:
        raise Quarantined(Reason.SLICE_GAP)


def stack_grid(planes: FramePlanes, shape: tuple[int, int, int]) -> Grid:
    """Grid of sorted frames (`planes` in their order); Quarantined where slices are missing."""
    height_mm, width_mm = planes.spacing_hw
    if not planes.placed:
        return Grid(shape, (planes.thickness_mm, height_mm, width_mm), None)
    check_even(planes.depths_mm)
    first, last = planes.positions_F3[0], planes.positions_F3[-1]
    step = (last - first) / (shape[0] - 1) if shape[0] > 1 else planes.normal * (planes.thickness_mm or 1.0)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = planes.column_direction * height_mm
    affine[:3, 2] = planes.row_direction * width_mm
    affine[:3, 3] = first
    depth_mm = float(np.linalg.norm(step)) if shape[0] > 1 else planes.thickness_mm
    return Grid(shape, (depth_mm, height_mm, width_mm), affine)


# ---------------------------------------------------------------------------------------------------- common grid


def reorder(array: npt.NDArray[Any], grid: Grid) -> tuple[npt.NDArray[Any], Grid]:
    """Array (D, H, W, ...) and its grid in the common orientation (see the module's first lines)."""
    if grid.affine is None or grid.shape[0] < MIN_SLICES_TO_REORDER:
        return array, grid
    axes, flipped = orientation(grid)
    array = array.transpose(*axes, *range(3, array.ndim))
    affine = grid.affine.copy()
    affine[:, :3] = grid.affine[:, :3][:, list(axes)]
    for axis in flipped:
        array = np.flip(array, axis)
        affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
        affine[:3, axis] *= -1
    depth, height, width = (grid.spacing_mm[axis] for axis in axes)
    return array, Grid((array.shape[0], array.shape[1], array.shape[2]), (depth, height, width), affine)


def orientation(grid: Grid) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """(axes, flipped): which axis of the grid becomes D, H and W of the common orientation, and which of these are
    flipped then; nothing changes for a grid without geometry or with few slices."""
    if grid.affine is None or grid.shape[0] < MIN_SLICES_TO_REORDER:
        return (0, 1, 2), ()
    directions = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    # World axes z, y, x in this order for D, H, W: the assignment with the largest total alignment.
    score = np.abs(directions[[2, 1, 0], :])
    d, h, w = max(itertools.permutations(range(3)), key=lambda axes: sum(score[i, axis] for i, axis in enumerate(axes)))
    return (d, h, w), tuple(axis for axis, world in enumerate((2, 1, 0)) if grid.affine[world, (d, h, w)[axis]] < 0)


def resampled_grid(grid: Grid, spacing_mm: tuple[float, float, float] | None) -> Grid:
    """The grid with the campaign's spacing, first voxel in place; a single slice keeps its own thickness.

    Quarantined where the spacing is not known, or would take a grid beyond MAX_GRID_VALUES or MOST_COARSER.
    """
    if spacing_mm is None:
        return grid
    target = tuple(
        own if size == 1 and axis == 0 else wanted
        for axis, (own, wanted, size) in enumerate(zip(grid.spacing_mm, spacing_mm, grid.shape, strict=True))
    )
    if 0 in (spacing for spacing, size in zip(grid.spacing_mm, grid.shape, strict=True) if size > 1):
        raise Quarantined(Reason.NO_SPACING)
    factors = [new / old if old else 1.0 for new, old in zip(target, grid.spacing_mm, strict=True)]
    depth, height, width = (
        int(np.floor((size - 1) / factor + 1e-6)) + 1 for size, factor in zip(grid.shape, factors, strict=True)
    )
    if max(factors) > MOST_COARSER:
        raise Quarantined(Reason.GEOMETRY)
    if depth * height * width > MAX_GRID_VALUES:
        raise Quarantined(Reason.TOO_MANY_PIXELS)
    affine = None if grid.affine is None else grid.affine @ np.diag([*factors, 1.0])
    return replace(grid, shape=(depth, height, width), spacing_mm=(target[0], target[1], target[2]), affine=affine)


def resample(volume: npt.NDArray[np.float32], grid: Grid, target: Grid) -> npt.NDArray[np.float32]:
    """Linear interpolation of (D, H, W) from its grid to `target`, smoothed first along axes that get coarser.

    Sampling at i * new / old: the centre of the first voxel stays. Gaussian of (factor - 1) / 2 voxels against
    aliasing, as scikit-image's resize does.
    """
    if grid.shape == target.shape and grid.spacing_mm == target.spacing_mm:
        return volume
    from scipy import ndimage

    factors = [new / old if old else 1.0 for new, old in zip(target.spacing_mm, grid.spacing_mm, strict=True)]
    sigma = [max(0.0, (factor - 1) / 2) for factor in factors]
    smooth = ndimage.gaussian_filter(volume, sigma, mode="nearest") if any(sigma) else volume
    sampled: npt.NDArray[np.float32] = ndimage.affine_transform(
        smooth, np.array(factors), output_shape=target.shape, order=1, mode="nearest", output=np.float32
    )
    return sampled


def nearest(labels: npt.NDArray[np.uint8], source: Grid, target: Grid) -> npt.NDArray[np.uint8]:
    """Labels of the source grid at the voxel centres of the target grid, 0 outside; both grids have geometry."""
    assert source.affine is not None
    assert target.affine is not None
    from scipy import ndimage

    between = np.linalg.inv(source.affine) @ target.affine
    sampled: npt.NDArray[np.uint8] = ndimage.affine_transform(
        labels,
        between[:3, :3],
        between[:3, 3],
        output_shape=target.shape,
        order=0,
        mode="grid-constant",
        output=np.uint8,
    )
    return sampled
