"""True and segmented lesions in, what was found, missed, erased and invented out; by connected components of one class.

A lesion is a component of the true map, pixels of the class that touch along an edge or a corner. It is found where at
least a quarter of its pixels are segmented as the class: a detection, not an outline, so that a lesion that is outlined
too small is not called erased. A segmented component that holds no true lesion pixel is a false positive.

Between two states of an image, before and after: erased is a lesion that was found before and is not after; invented is
a false positive of after that overlaps none of before's: what overlaps one is that one in another shape. Lesions are
counted one by one, false positives per image, as acceptance gates ask for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FOUND = 0.25
"""Least share of a lesion's pixels."""

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Lesions:
    """One image, read before and after; L true lesions."""

    before_L: Flags
    """Found before."""
    after_L: Flags
    false_before: int
    """Segmented components without any true lesion pixel."""
    false_after: int
    invented: int
    """Of `false_after`, those that overlap none of `false_before`."""

    @property
    def erased_L(self) -> Flags:
        erased_L: Flags = self.before_L & ~self.after_L
        return erased_L


def lesions(truth_HW: Flags, before_HW: Flags, after_HW: Flags) -> Lesions:
    """Compare two segmentations (bool maps of the class) of one image with its true map."""
    false_before_HW, false_before = _false(before_HW, truth_HW)
    false_after_HW, false_after = _false(after_HW, truth_HW)
    known = np.unique(false_after_HW[(false_before_HW > 0) & (false_after_HW > 0)])
    return Lesions(
        _found_L(truth_HW, before_HW), _found_L(truth_HW, after_HW), false_before, false_after, false_after - len(known)
    )


def _found_L(truth_HW: Flags, segmented_HW: Flags) -> Flags:
    labels_HW, count = _components(truth_HW)
    size_L = np.bincount(labels_HW.ravel(), minlength=count + 1)[1:]
    hit_L = np.bincount(labels_HW[segmented_HW], minlength=count + 1)[1:]
    found_L: Flags = hit_L >= FOUND * size_L
    return found_L


def _false(segmented_HW: Flags, truth_HW: Flags) -> tuple[npt.NDArray[np.int32], int]:
    """Labels of the segmented components that hold no true pixel (0 elsewhere), and how many they are."""
    labels_HW, _ = _components(segmented_HW)
    true = np.unique(labels_HW[truth_HW])
    false_HW = np.where(np.isin(labels_HW, true), 0, labels_HW)
    return false_HW, len(np.unique(false_HW[false_HW > 0]))


def _components(map_HW: Flags) -> tuple[npt.NDArray[np.int32], int]:
    """8-connected components, numbered from 1."""
    from scipy import ndimage

    labels_HW, count = ndimage.label(map_HW, structure=np.ones((3, 3), dtype=bool))
    return labels_HW, int(count)
