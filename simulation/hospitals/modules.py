"""What the series of each modality must carry (PS3.3 module tables), and what tells the two series of a pair apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation, MRImageStorage, generate_uid

from simulation.hospitals.volume import Geometry, Stored, Volume

SOP_CLASSES = {"MR": MRImageStorage, "CT": CTImageStorage, "DX": DigitalXRayImageStorageForPresentation}


class Acquisition(NamedTuple):
    """What tells the series of a pair apart: the last words of SeriesDescription and ProtocolName, and the physics."""

    words: str
    tags: Mapping[str, str]


# Clean first, degraded second. A ninth of the averages: three times the noise. A tenth of the current: 3.2 times.
ACQUISITIONS: dict[str, tuple[Acquisition, Acquisition | None]] = {
    "MR": (
        Acquisition("STANDARD", {"NumberOfAverages": "9", "PercentPhaseFieldOfView": "100"}),
        Acquisition("FAST", {"NumberOfAverages": "1", "PercentPhaseFieldOfView": "100"}),
    ),
    "CT": (
        Acquisition("FULL DOSE", {"XRayTubeCurrent": "200", "Exposure": "100"}),
        Acquisition("LOW DOSE", {"XRayTubeCurrent": "20", "Exposure": "10"}),
    ),
    "DX": (Acquisition("PA", {"Exposure": "3"}), None),
}


def uid(*names: str | int) -> str:
    """A UID under pydicom's root that is a SHA-512 hash of what it names."""
    return str(generate_uid(entropy_srcs=["wardround hospitals", *map(str, names)]))


def decimal(value: float) -> str:
    """A DICOM decimal string (VR DS): at most 16 characters."""
    return f"{round(value, 9) + 0.0:.9g}"


def add_pixel_module(ds: Dataset, stored_DHW: Stored, volume: Volume) -> None:
    """PS3.3 C.7.6.3."""
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = stored_DHW.shape[1:]
    ds.BitsAllocated = stored_DHW.dtype.itemsize * 8
    ds.BitsStored, ds.HighBit = volume.bits_stored, volume.bits_stored - 1
    ds.PixelRepresentation = int(stored_DHW.dtype.kind == "i")
    if ds.Modality != "MR" or (volume.slope, volume.intercept) != (1.0, 0.0):
        ds.RescaleSlope, ds.RescaleIntercept = decimal(volume.slope), decimal(volume.intercept)
        ds.RescaleType = "HU" if ds.Modality == "CT" else "US"


def _add_plane(ds: Dataset, geometry: Geometry) -> None:
    """PS3.3 C.7.6.2 and C.7.4.1."""
    ds.FrameOfReferenceUID = uid("frame of reference", ds.StudyInstanceUID)
    ds.PositionReferenceIndicator = ""
    ds.PatientPosition = "HFS"
    ds.ImageOrientationPatient = [decimal(value) for value in (*geometry.along_columns, *geometry.along_rows)]
    ds.PixelSpacing = [decimal(value) for value in geometry.pixel_spacing_mm]
    ds.SliceThickness = decimal(geometry.thickness_mm)
    ds.SpacingBetweenSlices = decimal(float(np.linalg.norm(geometry.slice_step_mm)))


def _add_mr(ds: Dataset, volume: Volume) -> None:
    _add_plane(ds, volume.geometry)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
    ds.BodyPartExamined = "BRAIN"
    # A magnetisation-prepared gradient echo: InversionTime is for ScanningSequence IR alone (PS3.3 C.8.3.1).
    ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = ["GR", "IR"], ["SP", "MP"], "", "3D"
    ds.RepetitionTime, ds.EchoTime, ds.InversionTime, ds.EchoTrainLength = "2300", "2.98", "900", 1
    ds.FlipAngle, ds.MagneticFieldStrength = "9", "3"


def _add_ct(ds: Dataset, volume: Volume) -> None:
    _add_plane(ds, volume.geometry)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.BodyPartExamined = "ABDOMEN"
    ds.KVP, ds.ExposureTime, ds.ConvolutionKernel = "120", "500", "B30"
    ds.WindowCenter, ds.WindowWidth = "40", "400"


def _add_dx(ds: Dataset, volume: Volume) -> None:
    ds.ImageType = ["ORIGINAL", "PRIMARY", ""]
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.BodyPartExamined, ds.ViewPosition, ds.ImageLaterality = "CHEST", "PA", "U"
    ds.PatientOrientation, ds.PositionerType = ["L", "F"], "COLUMN"
    ds.DetectorType, ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "SCINTILLATOR", "LOG", -1
    ds.ImagerPixelSpacing = ds.PixelSpacing = [decimal(value) for value in volume.geometry.pixel_spacing_mm]
    ds.PresentationLUTShape, ds.LossyImageCompression = "IDENTITY", "00"
    ds.WindowCenter, ds.WindowWidth = "127.5", "256"
    ds.AnatomicRegionSequence, ds.AcquisitionContextSequence = Items([_chest()]), Items([])


def _chest() -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "51185008", "SCT", "Chest"
    return code


MODALITY_MODULES: dict[str, Callable[[Dataset, Volume], None]] = {"MR": _add_mr, "CT": _add_ct, "DX": _add_dx}
