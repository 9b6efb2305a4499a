"""A volume and an invented identity in, single-frame DICOM files out (Explicit VR Little Endian, PS3.10 with meta).

MR Image Storage, CT Image Storage or Digital X-Ray Image Storage - For Presentation. Nothing is taken from a clock or
a random generator: UIDs are hashes of what they name. The identity is spread over the places in which real files
carry it (nested sequences, comments, a private element), because de-identification is tested on these files.

A pair is two series of one study with one FrameOfReferenceUID and the same geometry; see `ACQUISITIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

from simulation.hospitals.identity import PatientIdentity, SiteIdentity
from simulation.hospitals.volume import Geometry, Source, Stored, Volume

SOP_CLASSES = {"MR": MRImageStorage, "CT": CTImageStorage, "DX": DigitalXRayImageStorageForPresentation}
IMPLEMENTATION = generate_uid(entropy_srcs=["wardround", "simulation.hospitals"])


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


def write_study(
    folder: Path, *, source: Source, volume: Volume, site: SiteIdentity, patient: PatientIdentity
) -> list[Dataset]:
    """Write the one or two series of a patient's study below `folder`; returns the clean series in slice order."""
    clean, degraded = ACQUISITIONS[source.modality]
    study = _study(source, site, patient)
    series = _write_series(folder, study, 1, acquisition=clean, stored_DHW=volume.stored_DHW, volume=volume)
    if volume.degraded_DHW is not None:
        assert degraded is not None, "no second acquisition is known for this modality"
        _write_series(folder, study, 2, acquisition=degraded, stored_DHW=volume.degraded_DHW, volume=volume)
    return series


def _study(source: Source, site: SiteIdentity, patient: PatientIdentity) -> Dataset:
    """All that the images of one study share."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID = SOP_CLASSES[source.modality]
    ds.Modality = source.modality
    ds.StudyInstanceUID = uid("study", patient.patient_id, patient.accession, source.description)
    ds.StudyDescription = source.description
    ds.StudyID, ds.AccessionNumber = patient.study_id, patient.accession
    for prefix in ("Study", "Series", "Acquisition", "Content", "InstanceCreation"):
        setattr(ds, f"{prefix}Date", patient.study_date)
        setattr(ds, f"{prefix}Time", patient.study_time)
    ds.BurnedInAnnotation = "NO"
    _add_site(ds, site)
    _add_patient(ds, patient)
    return ds


def _add_site(ds: Dataset, site: SiteIdentity) -> None:
    ds.Manufacturer, ds.ManufacturerModelName = site.manufacturer, site.model
    ds.InstitutionName, ds.InstitutionAddress = site.institution, site.address
    ds.InstitutionalDepartmentName, ds.StationName = site.department, site.station
    ds.DeviceSerialNumber, ds.SoftwareVersions = site.serial, "wardround hospitals 1"
    referring, performing, reading, operator, requesting = site.physicians
    ds.ReferringPhysicianName, ds.PerformingPhysicianName = referring, performing
    ds.NameOfPhysiciansReadingStudy, ds.OperatorsName = reading, operator
    ds.RequestingPhysician = requesting


def _add_patient(ds: Dataset, patient: PatientIdentity) -> None:
    ds.PatientName, ds.PatientID = patient.name, patient.patient_id
    ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = patient.birth_date, patient.sex, patient.age
    ds.PatientSize, ds.PatientWeight = patient.size_m, patient.weight_kg
    ds.PatientAddress, ds.PatientTelephoneNumbers = patient.address, patient.telephone
    ds.PatientComments = patient.comment
    ds.ImageComments = f"Reviewed with {patient.name}"
    other = Dataset()
    other.PatientID, other.TypeOfPatientID = patient.other_id, "TEXT"
    ds.OtherPatientIDsSequence = Items([other])
    request = Dataset()
    request.RequestedProcedureID, request.ScheduledProcedureStepID = patient.study_id, patient.study_id
    request.RequestedProcedureDescription = f"Requested for {patient.name}"
    ds.RequestAttributesSequence = Items([request])
    block = ds.private_block(0x0011, "WARDROUND HOSPITALS", create=True)
    block.add_new(0x01, "LO", patient.name)
    block.add_new(0x02, "LO", patient.patient_id)


def _write_series(
    folder: Path, study: Dataset, number: int, *, acquisition: Acquisition, stored_DHW: Stored, volume: Volume
) -> list[Dataset]:
    series = _copy(study)
    series.SeriesInstanceUID = uid("series", study.StudyInstanceUID, number)
    series.SeriesNumber = series.AcquisitionNumber = number
    series.SeriesDescription = series.ProtocolName = f"{study.StudyDescription} {acquisition.words}"
    for keyword, value in acquisition.tags.items():
        setattr(series, keyword, value)
    _MODALITY_MODULES[study.Modality](series, volume)
    _add_pixel_module(series, stored_DHW, volume)
    place = folder / study.PatientID / f"series-{number:03d}"
    place.mkdir(parents=True)
    images = [_image(series, index, stored_DHW[index], volume.geometry) for index in range(len(stored_DHW))]
    for image in images:
        image.save_as(place / f"IM{image.InstanceNumber:04d}.dcm", enforce_file_format=True)
    return images


def _copy(ds: Dataset) -> Dataset:
    """Assigning to an attribute changes its element in place, so every element is a new one too."""
    copied = Dataset()
    for element in ds:
        copied.add(copy(element))
    return copied


def _image(series: Dataset, index: int, stored_HW: Stored, geometry: Geometry) -> Dataset:
    image = _copy(series)
    image.SOPInstanceUID = uid("image", series.SeriesInstanceUID, index)
    image.InstanceNumber = index + 1
    if series.Modality != "DX":
        position = geometry.position_mm(index)
        image.ImagePositionPatient = [decimal(value) for value in position]
        normal = np.cross(geometry.along_columns, geometry.along_rows)
        image.SliceLocation = decimal(float(np.dot(position, normal)))
    pixels = stored_HW.astype(stored_HW.dtype.newbyteorder("<")).tobytes()
    padding = b"\0" * (len(pixels) % 2)  # PS3.5 8.1.1: even length
    image.add_new("PixelData", "OW" if stored_HW.dtype.itemsize == 2 else "OB", pixels + padding)
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.ImplementationClassUID = IMPLEMENTATION
    image.file_meta.ImplementationVersionName = "WARDROUND"
    return image


def _add_pixel_module(ds: Dataset, stored_DHW: Stored, volume: Volume) -> None:
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
    ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "GR", "SP", "", "3D"
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
    ds.PatientOrientation = ["L", "F"]
    ds.DetectorType, ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "SCINTILLATOR", "LOG", -1
    ds.ImagerPixelSpacing = ds.PixelSpacing = [decimal(value) for value in volume.geometry.pixel_spacing_mm]
    ds.PresentationLUTShape, ds.LossyImageCompression = "IDENTITY", "00"
    ds.WindowCenter, ds.WindowWidth = "127.5", "256"
    ds.AnatomicRegionSequence, ds.AcquisitionContextSequence = Items([_chest()]), Items([])


def _chest() -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "51185008", "SCT", "Chest"
    return code


_MODALITY_MODULES = {"MR": _add_mr, "CT": _add_ct, "DX": _add_dx}
