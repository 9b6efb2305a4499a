"""Frames as acquired in, planes as the campaign's networks know them out; corrections and masks take the way back.

As in the ingest, a stack of 8 slices or more lies along the patient's axes (axial slices, towards the back and the
left), and the campaign's spacing is met within each plane. Spacing between slices stays as acquired: planes are
enhanced one by one. Way back: a correction is interpolated onto the acquired pixels, so that where it is zero nothing
changes, and geometry is never touched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from client.enhance.reasons import as_refusal
from client.ingest.geometry import Grid, orientation, resample, resampled_grid, stack_grid
from client.ingest.series import Stack
from shared.config import DataConfig


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """How the frames of a stack lie among the campaign's planes."""

    axes: tuple[int, int, int]
    """Which axis of (frames, rows, columns) becomes planes, rows and columns of the campaign."""
    flipped: tuple[int, ...]
    order: tuple[int, ...]
    """Frames by depth; as stored where they have no place."""
    acquired: Grid
    """One plane on the acquired pixels, in the campaign's orientation."""
    campaign: Grid
    """The same plane with the campaign's spacing."""

    @property
    def by_frame(self) -> bool:
        """A plane is a frame: each can be enhanced as it comes."""
        return self.axes[0] == 0

    @property
    def slice_mm(self) -> float:
        """Spacing of the frames, by their places or else by the header; 0 unknown."""
        return self.acquired.spacing_mm[self.axes.index(0)]

    def oriented(self, volume_DHW: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Frames, or whole volumes in their order, in the campaign's orientation; further axes follow."""
        turned = volume_DHW.transpose(*self.axes, *range(3, volume_DHW.ndim))
        return np.flip(turned, self._flips)

    def as_acquired(self, volume_DHW: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Undo `oriented`."""
        back = tuple(int(axis) for axis in np.argsort(self.axes))
        return np.flip(volume_DHW, self._flips).transpose(*back, *range(3, volume_DHW.ndim))

    @property
    def _flips(self) -> tuple[int, ...]:
        # Frames that come one by one have no order to turn round.
        return tuple(axis for axis in self.flipped if axis or not self.by_frame)

    def resampled(self, planes_DHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Acquired pixels -> the campaign's."""
        return _each(planes_DHW, self.acquired, self.campaign)

    def back(self, planes_DHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The campaign's pixels -> acquired ones."""
        return _each(planes_DHW, self.campaign, self.acquired)

    def labels_back(self, planes_DHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The nearest label of each acquired pixel."""
        rows, columns = (
            np.minimum(np.rint(np.arange(self.acquired.shape[axis]) * self._share(axis)).astype(int), size - 1)
            for axis, size in ((1, self.campaign.shape[1]), (2, self.campaign.shape[2]))
        )
        return planes_DHW[:, rows][:, :, columns]

    def _share(self, axis: int) -> float:
        own, agreed = self.acquired.spacing_mm[axis], self.campaign.spacing_mm[axis]
        return own / agreed if own and agreed else 1.0


def _each(planes_DHW: npt.NDArray[np.float32], old: Grid, new: Grid) -> npt.NDArray[np.float32]:
    if old.shape == new.shape and old.spacing_mm == new.spacing_mm:
        return planes_DHW
    return np.concatenate([resample(plane[None], old, new) for plane in planes_DHW])


def layout_of(stack: Stack, data: DataConfig) -> Layout:
    """Raises NotEnhanced where slices are missing, or the campaign resamples and the spacing is not known."""
    with as_refusal():
        order, grid = _frames(stack)
        axes, flipped = orientation(grid)
        spacing = tuple(grid.spacing_mm[axis] for axis in axes)
        shape = tuple(grid.shape[axis] for axis in axes)
        acquired = Grid((1, shape[1], shape[2]), (spacing[0], spacing[1], spacing[2]), None)
        return Layout(axes, flipped, order, acquired, resampled_grid(acquired, data.ingest.spacing_mm))


def _frames(stack: Stack) -> tuple[tuple[int, ...], Grid]:
    """The order of all frames by depth and their grid; without a place where two frames share one (cine, echoes)."""
    first = stack.first.planes
    shape = (stack.num_frames, *stack.first.shape[1:])
    as_stored = tuple(range(shape[0]))
    if not first.placed:
        return as_stored, stack_grid(first, shape)
    positions = np.concatenate([instance.planes.positions_F3 for instance in stack.instances])
    planes = replace(first, positions_F3=positions)
    order = tuple(int(index) for index in np.argsort(planes.depths_mm, kind="stable"))
    if any(abs(planes.depths_mm[b] - planes.depths_mm[a]) < 1e-3 for a, b in pairwise(order)):
        return as_stored, stack_grid(replace(first, positions_F3=np.zeros((0, 3))), shape)
    return order, stack_grid(replace(planes, positions_F3=positions[list(order)]), shape)
