"""A tiny hospital: CT series of 8 x 6 pixels with invented identities, written file by file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SegmentationStorage

from shared.config import DataConfig, IngestConfig, IntensityConfig

SECRET = bytes(range(32))
HEIGHT, WIDTH = 8, 6
ROOT = "1.2.826.0.1.3680043.8.498."

IDENTITY = {
    "PatientName": "Quillfeather^Ottoline",
    "PatientID": "MRN-7741902",
    "IssuerOfPatientID": "Zephyrhill Trust",
    "PatientBirthDate": "19430917",
    "PatientAddress": "17 Larkspur Lane",
    "AccessionNumber": "ACC5550123",
    "InstitutionName": "Zephyrhill Infirmary",
    "ReferringPhysicianName": "Thistlewood^Barnaby",
    "OperatorsName": "Marchbanks^Una",
    "StudyDate": "20230314",
    "SeriesDate": "20230315",
    "StudyTime": "081233",
    "StationName": "SCAN-BAY-9",
    "DeviceSerialNumber": "SN-998877",
    "StudyDescription": "Ottoline follow up",
    "PatientComments": "lives with Wilhelmina",
}


def stored_pixels(index: int) -> np.ndarray:
    """Different in every voxel, so that a flip, a swap or a shift shows."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (index * 100 + rows * 10 + columns).astype(np.int16)


def new_image(index: int = 0, *, patient: str = "1", series: str = "1", **values: Any) -> Dataset:
    """One CT slice at z = 5 * index mm, stored value + (-1000) HU; keywords override or, with None, remove."""
    ds = Dataset()
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = f"{ROOT}{patient}.{series}.{index + 1}"
    ds.SeriesInstanceUID = f"{ROOT}{patient}.{series}.0"
    ds.StudyInstanceUID = f"{ROOT}{patient}.77"
    ds.FrameOfReferenceUID = f"{ROOT}{patient}.88"
    ds.Modality, ds.ImageType, ds.InstanceNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], index + 1
    for keyword, value in IDENTITY.items():
        setattr(ds, keyword, value)
    ds.PatientID = f"{IDENTITY['PatientID']}-{patient}"
    ds.Manufacturer, ds.KVP, ds.Exposure, ds.ConvolutionKernel = "Acme", "120", "100", "B30"
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.ImagePositionPatient = [-10, -20, 5 * index]
    ds.PixelSpacing, ds.SliceThickness = [2, 3], 5
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = HEIGHT, WIDTH, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1000
    ds.PixelData = stored_pixels(index).tobytes()
    request = Dataset()
    request.RequestedProcedureID, request.ScheduledProcedureStepDescription = "REQ-31337", "asked by Thistlewood"
    ds.RequestAttributesSequence = Sequence([request])
    block = ds.private_block(0x0011, "ZEPHYR PRIVATE", create=True)
    block.add_new(0x01, "LO", "Ottoline again")
    for keyword, value in values.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def save(ds: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    if "SOPInstanceUID" in ds:
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.preamble = b"\0" * 128
    ds.save_as(path)
    return path


def write_series(folder: Path, slices: int = 3, *, patient: str = "1", series: str = "1", **values: Any) -> list[Path]:
    """A CT series of `slices` files in an order of names that is not the order of the slices."""
    paths = []
    for index in range(slices):
        name = f"{'QUILL' if patient == '1' else 'OTHER'}-{series}-{(index * 7) % 10}{index}.dcm"
        paths.append(save(new_image(index, patient=patient, series=series, **values), folder / patient / name))
    return paths


def new_segmentation(masks: dict[int, np.ndarray], images: list[Dataset], **values: Any) -> Dataset:
    """A BINARY SEG of segment number -> (D, H, W) bools on the images; empty frames are left out, as highdicom does."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = SegmentationStorage, images[0].SeriesInstanceUID + ".9"
    ds.SeriesInstanceUID, ds.StudyInstanceUID = images[0].SeriesInstanceUID + ".5", images[0].StudyInstanceUID
    ds.FrameOfReferenceUID, ds.PatientID = images[0].FrameOfReferenceUID, images[0].PatientID
    ds.PatientName, ds.Modality, ds.SegmentationType = images[0].PatientName, "SEG", "BINARY"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = HEIGHT, WIDTH, 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 1
    ds.HighBit = ds.PixelRepresentation = 0
    ds.SegmentSequence = Sequence([_item(SegmentNumber=number, SegmentLabel="Ottoline's") for number in masks])
    instances = [_item(ReferencedSOPClassUID=CTImageStorage, ReferencedSOPInstanceUID=i.SOPInstanceUID) for i in images]
    reference = _item(SeriesInstanceUID=images[0].SeriesInstanceUID, ReferencedInstanceSequence=Sequence(instances))
    ds.ReferencedSeriesSequence = Sequence([reference])
    measures = _item(PixelSpacing=images[0].PixelSpacing, SliceThickness=5, SpacingBetweenSlices=5)
    orientation = _item(ImageOrientationPatient=images[0].ImageOrientationPatient)
    shared = _item(PixelMeasuresSequence=Sequence([measures]), PlaneOrientationSequence=Sequence([orientation]))
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    frames, groups = [], []
    for number, mask in masks.items():
        for plane, image in zip(mask, images, strict=True):
            if plane.any():
                frames.append(plane)
                groups.append(_frame_group(number, image))
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    ds.NumberOfFrames = len(frames)
    bits = np.packbits(np.array(frames, dtype=np.uint8).reshape(-1), bitorder="little").tobytes()
    ds.PixelData = bits + b"\0" * (len(bits) % 2)
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def _frame_group(number: int, image: Dataset) -> Dataset:
    source = _item(ReferencedSOPClassUID=CTImageStorage, ReferencedSOPInstanceUID=image.SOPInstanceUID)
    derivation = _item(SourceImageSequence=Sequence([source]))
    group = _item(
        SegmentIdentificationSequence=Sequence([_item(ReferencedSegmentNumber=number)]),
        DerivationImageSequence=Sequence([derivation]),
    )
    if "ImagePositionPatient" in image:
        group.PlanePositionSequence = Sequence([_item(ImagePositionPatient=image.ImagePositionPatient)])
    return group


def _item(**values: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


class Hospital:
    """The functions above, for tests that ask for the fixture."""

    secret = SECRET
    identity = IDENTITY
    height, width = HEIGHT, WIDTH
    stored_pixels = staticmethod(stored_pixels)
    new_image = staticmethod(new_image)
    new_segmentation = staticmethod(new_segmentation)
    save = staticmethod(save)
    write_series = staticmethod(write_series)


@pytest.fixture(scope="session")
def hospital() -> type[Hospital]:
    return Hospital


@pytest.fixture
def data() -> DataConfig:
    """CT in a window of 1000 HU from -1000, so that stored value v becomes v / 1000."""
    return data_config()


@pytest.fixture(scope="session")
def make_data() -> Callable[..., DataConfig]:
    return data_config


def data_config(
    *,
    modalities: tuple[str, ...] = ("CT",),
    intensity: IntensityConfig | None = None,
    masks: tuple[str, ...] = ("organ", "lesion"),
    diagnoses: tuple[str, ...] = ("none", "tumour"),
    **ingest: Any,
) -> DataConfig:
    intensity = intensity or IntensityConfig(rule="window", low=-1000, high=0)
    rule = IngestConfig(modalities=modalities, intensity=intensity, **ingest)
    return DataConfig(kind="store", ingest=rule, masks=masks, diagnoses=diagnoses, image_size=(16, 16))
