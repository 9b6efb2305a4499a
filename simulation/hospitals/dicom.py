"""A volume and an invented identity in, single-frame DICOM files out (Explicit VR Little Endian, PS3.10 with meta).

MR Image Storage, CT Image Storage or Digital X-Ray Image Storage - For Presentation. Nothing is taken from a clock or
a random generator: UIDs are hashes of what they name. The identity is spread over the places in which real files
carry it (nested sequences, comments, a private element), because de-identification is tested on these files.

A pair is two series of one study with one FrameOfReferenceUID and the same geometry; see `modules.ACQUISITIONS`.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from simulation.hospitals.identity import PatientIdentity, SiteIdentity
from simulation.hospitals.modules import (
    ACQUISITIONS,
    MODALITY_MODULES,
    SOP_CLASSES,
    Acquisition,
    add_pixel_module,
    decimal,
    uid,
)
from simulation.hospitals.volume import Geometry, Source, Stored, Volume

IMPLEMENTATION = generate_uid(entropy_srcs=["wardround", "simulation.hospitals"])


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
    MODALITY_MODULES[study.Modality](series, volume)
    add_pixel_module(series, stored_DHW, volume)
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
