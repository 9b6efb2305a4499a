"""The reference volumes of TotalSegmentator in; CT hospitals with organ masks out.

Wasserthal et al., TotalSegmentator, Radiology: Artificial Intelligence 2023; tests/reference_files of its repository
(Apache-2.0). The masks are the tool's own output, not drawn by hand. `data.root` holds labels.csv, ct_dicom/*.dcm with
nifti/example_seg_dicom.nii.gz (20 slices of 512 x 512), and nifti/example_ct_sm.nii.gz with nifti/example_seg.nii.gz
(30 slices at 3 mm). That makes two CT patients: the set's third CT, example_ct, is the whole body around example_ct_sm,
so the same patient, and has no mask.

The NIfTI masks name their own places in the patient; the mask of ct_dicom is laid on the slices by
`seg[:, ::-1, k].T` for slice k in the order of z.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared.config import HospitalConfig, SimulationConfig
from shared.errors import DataError
from simulation.hospitals.cohort import Case, cohort, refuse_simulation_of_real_data
from simulation.hospitals.dataset import deal, geometry_of, read_labels, read_nifti, root_of, slices_last
from simulation.hospitals.volume import Geometry, Renderer, Source, Volume

# Class ids of task `total` (totalsegmentator/map_to_binary.py); parts of one organ are taken together.
ORGANS: dict[str, tuple[int, ...]] = {
    "spleen": (1,),
    "kidney": (2, 3),
    "gallbladder": (4,),
    "liver": (5,),
    "stomach": (6,),
    "pancreas": (7,),
    "lung": (10, 11, 12, 13, 14),
    "colon": (20,),
    "aorta": (52,),
}
PATIENTS = ("ct_dicom", "ct_sm")
INTERCEPT_HU = -1024.0


def cohorts(config: SimulationConfig, hospitals: Sequence[HospitalConfig]) -> tuple[tuple[Case, ...], ...]:
    refuse_simulation_of_real_data(hospitals, "totalseg")
    listed = {row["id"] for row in read_labels(root_of(config), ("id",))}
    pool = [patient for patient in PATIENTS if patient in listed]
    dealt = deal(config, hospitals, pool, lambda hospital, item: hospital.protocol in (None, item))
    return tuple(cohort(config, h, items, [None] * len(items)) for h, items in zip(hospitals, dealt, strict=True))


def renderer(config: SimulationConfig) -> Renderer:
    root = root_of(config)
    readers = {"ct_dicom": _read_dicom, "ct_sm": _read_nifti_pair}

    def render(case: Case, hospital: HospitalConfig) -> Volume:
        image_hu, classes, geometry = readers[case.item](root)
        if classes.shape != image_hu.shape:
            raise DataError(f"the mask of {case.item} in data.root does not lie on the image's grid; fetch it again")
        label = np.zeros(classes.shape, dtype=np.uint8)
        for code, ids in enumerate(ORGANS.values(), start=1):
            label[np.isin(classes, ids)] = code
        stored = np.clip(np.rint(image_hu - INTERCEPT_HU), 0, 4095).astype(np.int16)
        return Volume(stored, label, geometry, bits_stored=16, intercept=INTERCEPT_HU)

    return render


def _read_nifti_pair(root: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], Geometry]:
    image_hu, affine = read_nifti(root / "nifti" / "example_ct_sm.nii.gz")
    classes, _ = read_nifti(root / "nifti" / "example_seg.nii.gz")
    return slices_last(image_hu), slices_last(classes), geometry_of(affine)


def _read_dicom(root: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], Geometry]:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        images = [dcmread(path) for path in sorted((root / "ct_dicom").glob("*.dcm"))]
        images.sort(key=lambda image: float(image.ImagePositionPatient[2]))
        slices = [image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept) for image in images]
        image_hu = np.stack(slices).astype(np.float32)
    except (OSError, InvalidDicomError, AttributeError, ValueError, RuntimeError):
        raise DataError("ct_dicom of data.root cannot be read as one CT series; fetch the data set again") from None
    positions = np.asarray([image.ImagePositionPatient for image in images], dtype=np.float64)
    step = (positions[-1] - positions[0]) / max(len(images) - 1, 1)
    orientation = [float(value) for value in images[0].ImageOrientationPatient]
    row_mm, column_mm = (float(value) for value in images[0].PixelSpacing)
    geometry = Geometry(
        origin_mm=(float(positions[0][0]), float(positions[0][1]), float(positions[0][2])),
        along_columns=(orientation[0], orientation[1], orientation[2]),
        along_rows=(orientation[3], orientation[4], orientation[5]),
        slice_step_mm=(float(step[0]), float(step[1]), float(step[2])),
        pixel_spacing_mm=(row_mm, column_mm),
        thickness_mm=float(images[0].SliceThickness),
    )
    classes_XYZ, _ = read_nifti(root / "nifti" / "example_seg_dicom.nii.gz")
    return image_hu, slices_last(classes_XYZ[:, ::-1, :]), geometry


SOURCE = Source("CT", tuple(ORGANS), (), cohorts, renderer, "BODY")
