"""A patient's deformation is real (millimetres), smooth, and one-to-one."""

from __future__ import annotations

import numpy as np
import pytest

from shared.seeding import numpy_generator
from simulation.hospitals.deform import LINEAR, STEEPEST, deform, draw_deformation, steepest_slope


def _grid(step_mm: float) -> np.ndarray:
    axis = np.arange(-90, 90, step_mm, dtype=np.float32)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))


@pytest.mark.parametrize("seed", range(6))
def test_no_point_folds(seed: int) -> None:
    """The Jacobian determinant, by central differences on a grid finer than the control grid, stays above 0."""
    step = 4.0
    moved = deform(draw_deformation(numpy_generator(seed, "d")), _grid(step))
    jacobian = np.stack([np.stack(np.gradient(moved[i], step), axis=-1) for i in range(3)], axis=-2)
    determinant = np.linalg.det(jacobian)
    assert determinant.min() > 0.1
    assert determinant.max() < 4


@pytest.mark.parametrize("seed", range(20))
def test_bounds_of_the_contraction_hold(seed: int) -> None:
    deformation = draw_deformation(numpy_generator(seed, "d"))
    assert steepest_slope(deformation.displacement_mm) <= STEEPEST * (1 + 1e-5)
    assert np.abs(deformation.linear - np.eye(3)).sum(axis=1).max() < LINEAR
    assert STEEPEST + LINEAR < 1


def test_patients_differ_by_millimetres_and_one_patient_is_always_the_same() -> None:
    points = _grid(30.0)
    first, again, other = (deform(draw_deformation(numpy_generator(seed, "d")), points) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    apart_mm = np.linalg.norm(first - other, axis=0)
    assert 2 < float(np.median(apart_mm)) < 25
