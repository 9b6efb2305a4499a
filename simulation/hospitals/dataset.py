"""What the real data sets share: the folder with its labels.csv, NIfTI volumes in patient coordinates, stored values.

Real images keep their own grid, orientation and values, and all their slices (`hospitals.slices` counts simulated
slices only): no scanner profile is applied and no pair is invented.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared.config import HospitalConfig, SimulationConfig
from shared.errors import ConfigError, DataError
from shared.seeding import numpy_generator
from simulation.hospitals.volume import Geometry, Stored, Vector

LAYOUTS = {
    "hippocampus": "labels.csv (id, image, mask, protocol), images/*.nii.gz and masks/*.nii.gz (1, 2)",
    "pneumonia": "labels.csv (split, index, label_name) and one .npz with SPLIT_images (N, 28, 28)",
    "totalseg": "labels.csv (id), ct_dicom/*.dcm and nifti/example_{seg_dicom,ct_sm,seg}.nii.gz",
}


def root_of(config: SimulationConfig) -> Path:
    """data.root as a folder with a labels.csv; ConfigError says how to give it."""
    data = config.campaign.data
    if data.root is None or not (Path(data.root) / "labels.csv").is_file():
        raise ConfigError(
            f"data={data.kind} reads a data set from disk: set data.root to the folder that holds {LAYOUTS[data.kind]}"
        )
    return Path(data.root)


def read_labels(root: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of labels.csv; DataError names the first column that is missing."""
    with (root / "labels.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"labels.csv of data.root has no column {missing[0]!r}; data.root is not this data set")
        return list(reader)


def deal(
    config: SimulationConfig,
    hospitals: Sequence[HospitalConfig],
    pool: Sequence[str],
    fits: Callable[[HospitalConfig, str], bool],
) -> list[list[str]]:
    """Deal the shuffled pool to the hospitals without putting any item back: no patient is at two sites.

    Hospitals with a protocol choose first, so that those that take anything do not starve them.
    """
    order = numpy_generator(config.campaign.seed, "hospitals", "deal").permutation(len(pool))
    left = [pool[index] for index in order]
    dealt: dict[str, list[str]] = {}
    for hospital in sorted(hospitals, key=lambda hospital: hospital.protocol is None):
        fitting = [item for item in left if fits(hospital, item)]
        if len(fitting) < hospital.patients:
            kind = "" if hospital.protocol is None else f" of protocol {hospital.protocol!r}"
            raise ConfigError(
                f"hospital {hospital.name!r} asks for {hospital.patients} patients{kind}, but data.root has "
                f"{len(fitting)} left; lower its patients or the number of sites"
            )
        dealt[hospital.name] = fitting[: hospital.patients]
        left = [item for item in left if item not in set(dealt[hospital.name])]
    return [dealt[hospital.name] for hospital in hospitals]


def read_nifti(path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """A NIfTI volume (X, Y, Z) and its affine (voxel to R, A, S mm); DataError without the path's folder."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        image = nibabel.load(path)
        values = np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError):
        raise DataError(
            f"{path.name} of data.root is missing or no readable NIfTI file; fetch the data set again"
        ) from None
    if values.ndim != 3:
        raise DataError(f"{path.name} of data.root must hold one 3-D volume, got {values.ndim} dimensions")
    return values, np.asarray(image.affine, dtype=np.float64)


def slices_last(values_XYZ: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(X, Y, Z) as slices (D, H, W): one slice per Z, rows along Y, columns along X. No axis is flipped."""
    return np.ascontiguousarray(values_XYZ.transpose(2, 1, 0))


def geometry_of(affine_ras: npt.NDArray[np.float64]) -> Geometry:
    """The place of `slices_last`: NIfTI's R, A, S becomes DICOM's L, P, S by the sign of the first two rows."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_ras
    between_columns, between_rows, between_slices = (float(np.linalg.norm(lps[:3, axis])) for axis in range(3))
    if min(between_columns, between_rows, between_slices) <= 0:
        raise DataError("an affine in data.root has an axis of length 0; fetch the data set again")
    return Geometry(
        origin_mm=_vector(lps[:3, 3]),
        along_columns=_vector(lps[:3, 0] / between_columns),
        along_rows=_vector(lps[:3, 1] / between_rows),
        slice_step_mm=_vector(lps[:3, 2]),
        pixel_spacing_mm=(between_rows, between_columns),
        thickness_mm=between_slices,
    )


def _vector(values: npt.NDArray[np.float64]) -> Vector:
    x, y, z = (float(value) for value in values)
    return x, y, z


def stored_mr(values: npt.NDArray[np.float32]) -> tuple[Stored, float]:
    """Non-negative MR values as uint16 and the slope that restores them: 1 unless they need the room."""
    if not np.isfinite(values).all():
        raise DataError("an image in data.root holds values that are not finite; fetch the data set again")
    shifted = np.maximum(values, 0)
    slope = max(1.0, float(f"{float(shifted.max()) / 65000:.6g}"))
    return np.rint(shifted / np.float32(slope)).astype(np.uint16), slope
