"""Grids against the mathematics: a volume that holds its own coordinates tells where every voxel went."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from client.ingest.geometry import (
    FramePlanes,
    Grid,
    check_even,
    frame_planes,
    layers,
    nearest,
    reorder,
    resample,
    resampled_grid,
    stack_grid,
)
from client.ingest.reasons import Quarantined

SHAPE = (9, 10, 11)
AXES = np.eye(3)


def grid_of(directions: np.ndarray, spacing: tuple[float, float, float] = (3.0, 2.0, 1.0)) -> Grid:
    """Columns of `directions`: where D, H and W run in LPS."""
    affine = np.eye(4)
    affine[:3, :3] = directions * np.array(spacing)
    affine[:3, 3] = [7, -5, 11]
    return Grid(SHAPE, spacing, affine)


def positions(grid: Grid) -> np.ndarray:
    """LPS mm of every voxel, (D, H, W, 3)."""
    assert grid.affine is not None
    index = np.stack(np.meshgrid(*(np.arange(size) for size in grid.shape), indexing="ij"), axis=-1)
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_every_orientation_becomes_axial_major_lps(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    grid = grid_of(AXES[:, list(order)] * np.array(signs))
    places = positions(grid)
    moved, upright = reorder(places, grid)
    np.testing.assert_allclose(moved, positions(upright), atol=1e-9)
    assert moved.shape[:3] == upright.shape
    # D grows towards the head, H towards the back, W to the left.
    assert (np.diff(moved[..., 2], axis=0) > 0).all()
    assert (np.diff(moved[..., 1], axis=1) > 0).all()
    assert (np.diff(moved[..., 0], axis=2) > 0).all()
    assert upright.spacing_mm == tuple(np.linalg.norm(upright.affine[:3, axis]) for axis in range(3))


def test_an_oblique_scan_keeps_its_own_planes() -> None:
    angle = np.deg2rad(20)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    grid = grid_of(turn @ AXES[:, [2, 1, 0]])
    moved, upright = reorder(positions(grid), grid)
    assert upright.shape == SHAPE
    np.testing.assert_allclose(moved, positions(upright), atol=1e-9)


def test_a_thin_stack_and_an_image_without_geometry_stay_as_acquired() -> None:
    volume = np.zeros((3, 4, 5))
    thin = Grid((3, 4, 5), (1.0, 1.0, 1.0), -np.eye(4))
    assert reorder(volume, thin) == (volume, thin)
    nowhere = Grid(SHAPE, (0.0, 0.0, 0.0), None)
    assert reorder(volume, nowhere)[1] is nowhere


@pytest.mark.parametrize("spacing", [(3.0, 2.0, 1.0), (1.5, 1.0, 0.5), (3.0, 1.0, 0.25)])
def test_finer_sampling_of_a_linear_field_is_exact(spacing: tuple[float, float, float]) -> None:
    grid = grid_of(AXES[:, [2, 1, 0]])
    target = resampled_grid(grid, spacing)
    field = positions(grid) @ [0.3, -0.2, 0.5]
    sampled = resample(field.astype(np.float32), grid, target)
    np.testing.assert_allclose(sampled, positions(target) @ [0.3, -0.2, 0.5], atol=1e-4)
    assert target.spacing_mm == spacing


def test_coarser_sampling_keeps_a_constant_and_damps_what_it_cannot_show() -> None:
    grid = grid_of(AXES[:, [2, 1, 0]])
    target = resampled_grid(grid, (3.0, 4.0, 1.0))
    assert target.shape == (9, 5, 11)
    np.testing.assert_allclose(resample(np.ones(SHAPE, np.float32), grid, target), 1, atol=1e-6)
    stripes = np.broadcast_to((-1.0) ** np.arange(10)[None, :, None], SHAPE).astype(np.float32)
    assert np.abs(resample(stripes, grid, target)[:, 1:-1]).max() < 0.6, "aliased, it would be 1"


def test_the_same_spacing_changes_nothing_and_unknown_spacing_is_refused() -> None:
    grid = grid_of(AXES[:, [2, 1, 0]])
    volume = np.ones(SHAPE, np.float32)
    assert resample(volume, grid, resampled_grid(grid, None)) is volume
    assert resample(volume, grid, resampled_grid(grid, grid.spacing_mm)) is volume
    with pytest.raises(Quarantined, match="spacing missing"):
        resampled_grid(Grid((1, 5, 5), (0.0, 0.0, 0.0), None), (1.0, 1.0, 1.0))
    single = resampled_grid(Grid((1, 5, 5), (0.0, 2.0, 2.0), None), (5.0, 1.0, 1.0))
    assert (single.shape, single.spacing_mm) == ((1, 9, 9), (0.0, 1.0, 1.0))


def test_nearest_labels_agree_with_a_slow_twin() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    source = grid_of(AXES[:, [2, 1, 0]] * [1, -1, 1])
    target = Grid((5, 6, 7), (4.0, 3.0, 1.5), np.diag([1.5, 3.0, 4.0, 1.0])[:, [2, 1, 0, 3]])
    assert target.affine is not None
    target.affine[:3, 3] = [8.13, -12.27, 15.41]
    labels = rng.integers(0, 4, SHAPE).astype(np.uint8)
    expected = np.zeros(target.shape, np.uint8)
    places = positions(target)
    for index in np.ndindex(target.shape):
        d, h, w = np.round(np.linalg.solve(source.affine, [*places[index], 1])[:3]).astype(int)
        if all(0 <= place < size for place, size in zip((d, h, w), SHAPE, strict=True)):
            expected[index] = labels[d, h, w]
    assert expected.any()
    np.testing.assert_array_equal(nearest(labels, source, target), expected)


def test_layers_sort_by_depth_and_split_repeated_places() -> None:
    assert layers(np.array([5.0, 0.0, 10.0])) == ((1, 0, 2),)
    assert layers(np.array([0.0, 5.0, 0.0, 5.0, 0.0])) == ((0, 1), (2, 3), (4,))


@pytest.mark.parametrize("depths", [[0, 5, 15], [0, 5, 10, 12], [0, 5, 10, 20]])
def test_a_hole_or_a_squeezed_slice_is_refused(depths: list[float]) -> None:
    with pytest.raises(Quarantined, match="unevenly"):
        check_even(np.array(depths, dtype=float))


def test_even_stacks_and_pairs_of_slices_pass() -> None:
    check_even(np.array([0, 5, 10.2, 15.1]))
    check_even(np.array([0.0, 50.0]))


def test_a_tilted_gantry_keeps_its_shear_in_the_grid() -> None:
    places = np.array([[0, 2.0 * index, 5.0 * index] for index in range(4)])
    planes = FramePlanes(places, AXES[0], AXES[1], (1.0, 1.0), 5.0)
    grid = stack_grid(planes, (4, 6, 6))
    assert grid.affine is not None
    np.testing.assert_allclose(grid.affine @ [3, 0, 0, 1], [0, 6, 15, 1])


# ----------------------------------------------------------------------------------------------------- from headers


def enhanced(**changes: object) -> Dataset:
    ds, shared = Dataset(), Dataset()
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [2, 3], 4
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for index in range(3):
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, 4 * index]
        group.PlanePositionSequence = Sequence([position])
        frames.append(group)
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


def test_planes_of_an_enhanced_image_come_from_its_functional_groups() -> None:
    planes = frame_planes(enhanced(), 3)
    assert planes.placed
    np.testing.assert_array_equal(planes.depths_mm, [0, 4, 8])
    assert (planes.spacing_hw, planes.thickness_mm) == ((2.0, 3.0), 4.0)


def test_frames_of_different_orientation_or_number_have_no_common_planes() -> None:
    ds, other = enhanced(), Dataset()
    other.ImageOrientationPatient = [0, 1, 0, 0, 0, 1]
    ds.PerFrameFunctionalGroupsSequence[1].PlaneOrientationSequence = Sequence([other])
    assert not frame_planes(ds, 3).placed
    assert not frame_planes(enhanced(), 4).placed
    assert not frame_planes(Dataset(), 1).placed


def test_rt_dose_frames_follow_their_offsets() -> None:
    ds = Dataset()
    ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing = [1, 2, 3], [1, 0, 0, 0, 1, 0], [1, 1]
    assert not frame_planes(ds, 3).placed
    ds.GridFrameOffsetVector = [0, 2, 4]
    np.testing.assert_array_equal(frame_planes(ds, 3).positions_F3[:, 2], [3, 5, 7])


def test_directions_that_are_no_directions_are_refused() -> None:
    ds = Dataset()
    ds.ImagePositionPatient, ds.PixelSpacing = [0, 0, 0], [1, 1]
    for wrong in ([1, 0, 0, 1, 0, 0], [2, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]):
        ds.ImageOrientationPatient = wrong
        with pytest.raises(Quarantined, match="geometry"):
            frame_planes(ds, 1)
