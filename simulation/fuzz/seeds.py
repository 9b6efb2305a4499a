"""Nothing in; small valid files that mutation starts from, with canary words wherever a person could be named, out.

Images of a simulated hospital (simulation/hospitals) in every transfer syntax that the ingest reads, a multi-frame
image, a palette image, a modality table, two segmentations, and the small ones of pydicom's own odd files.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pydicom
from pydicom import uid as uids
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from simulation.hospitals.dicom import write_study
from simulation.hospitals.identity import patient_identity, site_identity
from simulation.hospitals.modules import uid
from simulation.hospitals.segmentation import write_segmentation
from simulation.hospitals.volume import Source, Volume, axial

CANARY = "Kestrelmoth"
"""In every text that names or describes a person, a place or a thing; looked for in all that comes out."""
CANARY_DATE, CANARY_ROOT = "19430917", "1.2.826.0.1.3680043.8.498.47110815"
LARGEST_BYTES = 12_000
SIDE = 32
# Table E.1-1 of PS3.15 removes or replaces all of them.
NAMING = ("PN", "LT", "ST", "UT")
NAMED = (
    *("PatientID", "AccessionNumber", "InstitutionName", "StationName", "StudyID", "DeviceSerialNumber"),
    *("StudyDescription", "InstitutionalDepartmentName", "RequestedProcedureID", "ScheduledProcedureStepID"),
    *("RequestedProcedureDescription", "PatientTelephoneNumbers"),
)
SYNTAXES = (
    uids.ImplicitVRLittleEndian,
    uids.ExplicitVRBigEndian,
    uids.DeflatedExplicitVRLittleEndian,
    uids.RLELossless,
    uids.JPEGLSLossless,
    uids.JPEGLSNearLossless,
    uids.JPEG2000Lossless,
    uids.JPEG2000,
)


@dataclass(frozen=True, slots=True)
class Seed:
    name: str
    content: bytes


def dicom_seeds() -> tuple[Seed, ...]:
    """Deterministic, and in a fixed order."""
    with tempfile.TemporaryDirectory() as folder:
        made = [Seed(name, content) for name, content in _simulated(Path(folder))]
    return (*made, *_odd_files())


def companions() -> tuple[bytes, ...]:
    """The images that the two segmentations were drawn on."""
    with tempfile.TemporaryDirectory() as folder:
        return tuple(_bytes(ds) for ds in _study(Path(folder), "CT"))


def _simulated(folder: Path) -> Iterator[tuple[str, bytes]]:
    for modality in ("MR", "CT"):
        images = _study(folder / modality, modality)
        yield f"{modality} slice", _bytes(images[0])
        yield f"{modality} other slice", _bytes(images[1])
    for syntax in SYNTAXES:
        yield syntax.name, _in_syntax(images[0], syntax)
    yield "JPEG", _bytes(_in_jpeg(images[0]))
    yield "multi-frame", _bytes(_multi_frame(images))
    yield "palette", _bytes(_palette(images[0]))
    yield "modality table", _bytes(_modality_table(images[0]))
    for name, numbers in (("SEG", (1, 2)), ("label map", (11, 20))):
        label_DHW = np.indices((len(images), SIDE, SIDE)).sum(0).astype(np.uint8) % 3
        path = folder / f"{name}.dcm"
        write_segmentation(path, images, label_DHW, {"lesion": (1, numbers[0]), "organ": (2, numbers[1])})
        yield name, path.read_bytes()


def _study(folder: Path, modality: str) -> list[Dataset]:
    """Three slices of SIDE x SIDE, named as planted."""
    stored_DHW = ((np.indices((3, SIDE, SIDE)) + 1).prod(0) % 1024).astype(np.int16 if modality == "CT" else np.uint16)
    volume = Volume(stored_DHW, None, axial(SIDE, SIDE, 3, (2.0, 1.0, 1.0)), 16, 1.0, -1000.0)
    source = Source(modality, (), (), None, None, "HEAD")  # type: ignore[arg-type]
    site = site_identity(0, "north")
    write_study(folder, source=source, volume=volume, site=site, patient=patient_identity(0, "north", 0))
    files = sorted(folder.rglob("*.dcm"))
    return [planted(pydicom.dcmread(path)) for path in files]


def planted(ds: Dataset) -> Dataset:
    """The dataset with the canary in everything that could name somebody."""
    for element in ds.iterall():
        if element.VR in NAMING or element.keyword in NAMED or element.tag.is_private:
            if element.VR in (*NAMING, "LO", "SH") and not element.tag.is_private_creator:
                element.value = f"{CANARY}^" if element.VR == "PN" else CANARY
        elif element.VR in ("DA", "DT"):
            element.value = CANARY_DATE
        elif element.VR == "UI" and element.value and not str(element.value).startswith("1.2.840.10008."):
            element.value = f"{CANARY_ROOT}.{int(uid(str(element.value))[-12:])}"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def _bytes(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _copy(ds: Dataset) -> Dataset:
    return pydicom.dcmread(io.BytesIO(_bytes(ds)))


def _in_syntax(ds: Dataset, syntax: uids.UID) -> bytes:
    copy = _copy(ds)
    if syntax.is_encapsulated:
        lossy = {"j2k_cr": [4.0]} if syntax == uids.JPEG2000 else {"jls_error": 2} if "Near" in syntax.name else {}
        copy.compress(syntax, generate_instance_uid=False, **lossy)
        return _bytes(copy)
    copy.file_meta.TransferSyntaxUID = syntax
    if syntax == uids.ExplicitVRBigEndian:
        copy.PixelData = np.frombuffer(copy.PixelData, "<u2").astype(">u2").tobytes()
    buffer = io.BytesIO()
    little = syntax != uids.ExplicitVRBigEndian
    implicit = syntax == uids.ImplicitVRLittleEndian
    pydicom.dcmwrite(buffer, copy, implicit_vr=implicit, little_endian=little, force_encoding=True)
    return buffer.getvalue()


def _in_jpeg(ds: Dataset) -> Dataset:
    from PIL import Image
    from pydicom.encaps import encapsulate

    copy, buffer = _copy(ds), io.BytesIO()
    Image.fromarray((copy.pixel_array % 256).astype(np.uint8)).save(buffer, "JPEG")
    copy.BitsAllocated, copy.BitsStored, copy.HighBit, copy.PixelRepresentation = 8, 8, 7, 0
    copy.PixelData = encapsulate([buffer.getvalue()])
    copy["PixelData"].VR = "OB"
    copy.file_meta.TransferSyntaxUID = uids.JPEGBaseline8Bit
    return copy


def _multi_frame(images: list[Dataset]) -> Dataset:
    """An enhanced CT image: positions and rescale per frame in functional groups."""
    ds = _copy(images[0])
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uids.EnhancedCTImageStorage
    ds.NumberOfFrames = len(images)
    ds.PixelData = b"".join(image.PixelData for image in images)
    groups = []
    for image in images:
        group, position, transformation = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = image.ImagePositionPatient
        transformation.RescaleSlope, transformation.RescaleIntercept = image.RescaleSlope, image.RescaleIntercept
        group.PlanePositionSequence = Sequence([position])
        group.PixelValueTransformationSequence = Sequence([transformation])
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = ds.PixelSpacing, "2"
    orientation.ImageOrientationPatient = ds.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    return ds


def _palette(image: Dataset) -> Dataset:
    ds = _copy(image)
    ds.PhotometricInterpretation, ds.PixelRepresentation = "PALETTE COLOR", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = (np.arange(SIDE * SIDE) % 256).astype(np.uint8).tobytes()
    ds["PixelData"].VR = "OB"
    for colour in ("Red", "Green", "Blue"):
        ds.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        ds.add_new(f"{colour}PaletteColorLookupTableData", "OW", np.arange(256, dtype="<u2").tobytes())
    return ds


def _modality_table(image: Dataset) -> Dataset:
    ds, table = _copy(image), Dataset()
    del ds.RescaleSlope, ds.RescaleIntercept
    ds.PixelRepresentation = 0
    table.ModalityLUTType = "HU"
    table.add_new("LUTDescriptor", "US", [256, 0, 16])
    table.add_new("LUTData", "OW", np.arange(256, dtype="<u2").tobytes())
    ds.ModalityLUTSequence = Sequence([table])
    return ds


def _odd_files() -> Iterator[Seed]:
    """Those of pydicom and, where it is installed, pydicom-data that are small; as they are."""
    for package, inside in (("pydicom", "data/test_files"), ("data_store", "data")):
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for path in sorted((Path(spec.origin).parent / inside).rglob("*")):
            if path.is_file() and path.suffix != ".py" and path.stat().st_size <= LARGEST_BYTES:
                yield Seed(path.name, path.read_bytes())
