"""A smooth random deformation of the head: drawn once per patient, applied to points. It cannot fold.

    x  ->  centre-relative rotation, scaling and shift of x, plus u(x)

u interpolates random displacements on a control grid; its steepest slope is scaled down to `STEEPEST`, and the linear
part differs from the identity by at most `LINEAR` (both as the largest row sum of absolute values). As their sum is
below 1, the map is the identity plus a contraction, hence one-to-one (Banach's fixed-point theorem).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulation.hospitals.volume import Floats

REACH_MM = 128.0  # the displacement is drawn on [-REACH, REACH] in all three axes
COARSE_POINTS = 9  # control points per axis, 32 mm apart
FINE_MM = 8.0
AMPLITUDE_MM = 5.0  # standard deviation at the control points, before the limit of slope
STEEPEST = 0.5
LINEAR = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Deformation:
    linear: Floats  # (3, 3)
    shift_mm: Floats  # (3,)
    displacement_mm: Floats  # (3, N, N, N) on the fine grid


def draw_deformation(rng: np.random.Generator) -> Deformation:
    from scipy.ndimage import zoom

    linear = _rotation(rng.uniform(-0.07, 0.07, size=3)) @ np.diag(rng.uniform(0.93, 1.07, size=3))
    shift_mm = rng.uniform(-3, 3, size=3)
    control = rng.normal(scale=AMPLITUDE_MM, size=(3, COARSE_POINTS, COARSE_POINTS, COARSE_POINTS))
    points = round(2 * REACH_MM / FINE_MM) + 1
    displacement = np.stack([zoom(axis, points / COARSE_POINTS, order=3, grid_mode=False) for axis in control])
    slope = steepest_slope(displacement)
    displacement *= min(1.0, STEEPEST / slope)
    assert np.abs(linear - np.eye(3)).sum(axis=1).max() < LINEAR
    return Deformation(linear.astype(np.float32), shift_mm.astype(np.float32), displacement.astype(np.float32))


def _rotation(
    angles: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    matrix = np.eye(3)
    for (first, second), angle in zip(((0, 1), (0, 2), (1, 2)), angles, strict=True):
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def steepest_slope(displacement_mm: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    """An upper bound of the row sums of |du/dx|: trilinear interpolation never exceeds the grid's own differences."""
    steepest = [[np.abs(np.diff(u, axis=axis)).max() / FINE_MM for axis in range(3)] for u in displacement_mm]
    return float(np.asarray(steepest).sum(axis=1).max())


def deform(deformation: Deformation, points_mm: Floats) -> Floats:
    """Points (3, ...) in mm around the centre of the head, to where their anatomy lies in the template."""
    from scipy.ndimage import map_coordinates

    grid = (points_mm + np.float32(REACH_MM)) / np.float32(FINE_MM)
    moved = np.tensordot(deformation.linear, points_mm, axes=1)
    moved += deformation.shift_mm.reshape(3, *[1] * (points_mm.ndim - 1))
    for axis in range(3):
        moved[axis] += map_coordinates(deformation.displacement_mm[axis], grid, order=1, mode="nearest")
    return np.asarray(moved, dtype=np.float32)
