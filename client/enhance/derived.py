"""An instance and its new stored values in, the derived instance of the same patient, study and geometry out.

PS3.3 C.7.6.1 (General Image: Image Type, derivation, source images), C.7.5.2 (Contributing Equipment), C.7.6.16.2.6
(Derivation Image, for multi-frame images with functional groups). What described the old pixels is dropped: extreme
values, overlays, icons, signatures, private attributes. What happened to them before (lossy compression) is kept.
"""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from client.enhance.decode import Decoded
from client.enhance.find import LOSSY_SYNTAXES, MANUFACTURER
from client.enhance.release import InUse
from client.ingest.reasons import Quarantined, Reason
from client.ingest.validate import PARSE_ERRORS, silent, text

STALE = (
    *("SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries", "LargestPixelValueInSeries"),
    *("IconImageSequence", "DigitalSignaturesSequence", "MACParametersSequence", "EncryptedAttributesSequence"),
    *("HistogramSequence", "DataSetTrailingPadding", "PixelDataProviderURL", "PixelData", "StorageMediaFileSetUID"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "LengthToEnd", "OriginalAttributesSequence"),
)
FRAMES = tuple(f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2.1", "2.2", "4.1", "4.4", "128.1"))
"""Multi-frame images with functional groups."""
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
ACQUIRED = (
    *("PulseSequenceName", "MRAcquisitionType", "EchoPulseSequence", "MultipleSpinEcho", "MultiPlanarExcitation"),
    *("PhaseContrast", "TimeOfFlightContrast", "ArterialSpinLabelingContrast", "SteadyStatePulseSequence"),
    *("EchoPlanarPulseSequence", "SaturationRecovery", "SpectrallySelectedSuppression", "OversamplingPhase"),
    *("GeometryOfKSpaceTraversal", "RectilinearPhaseEncodeReordering", "SegmentedKSpaceTraversal"),
    *("CoverageOfKSpace", "NumberOfKSpaceTrajectories", "BulkMotionCompensationTechnique"),
)
"""What an enhanced MR image says of its pulse sequence while it is ORIGINAL or MIXED, and not when DERIVED (C.8.13.4,
C.7.6.18.2 by dciodvfy's tables); the source, which is referred to, says it still."""
IMPLEMENTATION = "2.25.257180351310936837428917326510482736465"
MOST_LO, MOST_ST = 64, 1024


@dataclass(frozen=True, slots=True)
class Series:
    """What the derived instances of one stack share."""

    uid: str
    number: int
    instances: Mapping[str, str]
    """SOP instance UID of a source -> that of its derived instance."""
    now: dt.datetime


def new_uid() -> str:
    """A UID of its own (PS3.5 B.2, from a random UUID)."""
    return str(generate_uid(prefix=None))


def derived(decoded: Decoded, stored_FHWC: npt.NDArray[Any], series: Series, release: InUse) -> Dataset:
    """The whole dataset with file meta information, Explicit VR Little Endian, uncompressed."""
    source = decoded.dataset
    with silent():
        # Element by element into a new dataset: one that remembers its byte order cannot be written in another.
        ds = Dataset()
        for element in source:
            ds.add(copy.deepcopy(element))
        _drop_stale(ds)
        if source.original_encoding[1] is False:
            _swap_words(ds)
        _identify(ds, source, series)
        _describe(ds, source, release, series.now)
        _keep_lossy_history(ds, decoded)
        _set_pixels(ds, stored_FHWC)
    return ds


def save(ds: Dataset, path: Path) -> None:
    """OSError is the disk's; Quarantined where an element that was taken over cannot be written."""
    try:
        with silent():
            ds.save_as(path, enforce_file_format=True)
    except PARSE_ERRORS as error:
        _raise_if_of_the_disk(error)
        raise Quarantined(Reason.MALFORMED) from None


def _raise_if_of_the_disk(error: BaseException | None) -> None:
    """pydicom raises OSError of its own for values, and the disk's anew with the tag in the text and without number."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            raise error from None
        error = error.__cause__


def _drop_stale(ds: Dataset) -> None:
    ds.remove_private_tags()
    for keyword in (*STALE, *(ACQUIRED if text(ds, "SOPClassUID") == ENHANCED_MR else ())):
        if keyword in ds:
            delattr(ds, keyword)
    # Overlays (60xx) and curves (50xx), repeating groups without keywords; group lengths.
    for tag in [tag for tag in ds.keys() if tag.group >> 8 in (0x50, 0x60) or tag.element == 0]:  # noqa: SIM118
        del ds[tag]


def _swap_words(ds: Dataset) -> None:
    """Words of big-endian files are kept as bytes; written as little endian they must be turned round."""
    for element in ds.iterall():
        if element.VR == "OW" and isinstance(element.value, bytes):
            element.value = np.frombuffer(element.value, ">u2").astype("<u2").tobytes()


def _identify(ds: Dataset, source: Dataset, series: Series) -> None:
    ds.SOPInstanceUID = series.instances[text(source, "SOPInstanceUID")]
    ds.SeriesInstanceUID, ds.SeriesNumber = series.uid, series.number
    description = text(source, "SeriesDescription")
    ds.SeriesDescription = f"{description[: MOST_LO - 28]} enhanced, research only".strip()
    today, now = f"{series.now:%Y%m%d}", f"{series.now:%H%M%S}"
    for prefix in ("Series", "Content", "InstanceCreation"):
        setattr(ds, f"{prefix}Date", today)
        setattr(ds, f"{prefix}Time", now)
    ds.InstanceCreatorUID = IMPLEMENTATION
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = IMPLEMENTATION
    ds.file_meta.ImplementationVersionName = "WARDROUND"
    ds.preamble = b"\0" * 128


def _describe(ds: Dataset, source: Dataset, release: InUse, now: dt.datetime) -> None:
    kind = [str(word) for word in _values(source.get("ImageType"))]
    frames = "SharedFunctionalGroupsSequence" in ds
    # Made after the examination from its images (C.7.6.1.1.2); functional groups know PRIMARY alone (C.8.16.1.2).
    ds.ImageType = ["DERIVED", "PRIMARY" if text(ds, "SOPClassUID") in FRAMES else "SECONDARY", *kind[2:]]
    references = Dataset()
    references.DerivationDescription = f"Enhanced by Wardround, {release.words}. Research only."[:MOST_ST]
    references.DerivationCodeSequence = Items([_coded(codes.DCM.Smoothing)])
    references.SourceImageSequence = Items([_source_image(source)])
    if frames:
        _describe_frames(ds, references, kind)
        ds.SourceImageEvidenceSequence = Items([_evidence(source)])
    else:
        for element in references:
            ds.add(element)
    equipment = list(ds.get("ContributingEquipmentSequence") or ())
    ds.ContributingEquipmentSequence = Items([*equipment, _equipment(release, now)])


def _describe_frames(ds: Dataset, references: Dataset, kind: list[str]) -> None:
    """The derivation of every frame, and Frame Type as Image Type."""
    groups = list(ds.get("PerFrameFunctionalGroupsSequence") or ())
    for group in groups:
        if "DerivationImageSequence" in group:
            del group.DerivationImageSequence
    ds.SharedFunctionalGroupsSequence[0].DerivationImageSequence = Items([references])
    for group in (*ds.SharedFunctionalGroupsSequence, *groups):
        for keyword in ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence"):
            for item in group.get(keyword) or ():
                own = [str(word) for word in _values(item.get("FrameType"))] or kind
                item.FrameType = ["DERIVED", "PRIMARY", *own[2:]]


def _source_image(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = Items([_coded(codes.cid7202.SourceImageForImageProcessingOperation)])
    return item


def _evidence(source: Dataset) -> Dataset:
    """Study, series and instance of the source, as multi-frame images list what they refer to (C.8.13.1)."""
    instance, series, study = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    series.SeriesInstanceUID, series.ReferencedSOPSequence = source.SeriesInstanceUID, Items([instance])
    study.StudyInstanceUID, study.ReferencedSeriesSequence = source.StudyInstanceUID, Items([series])
    return study


def _equipment(release: InUse, now: dt.datetime) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = Items([_coded(codes.cid7005.ProcessingEquipment)])
    item.Manufacturer, item.ManufacturerModelName = MANUFACTURER, "wardround-site enhance"
    item.SoftwareVersions = [version("wardround"), f"release {release.name} v{release.version}"[:MOST_LO]]
    item.ContributionDateTime = f"{now:%Y%m%d%H%M%S}"
    item.ContributionDescription = f"Image enhancement by {release.words}"[:MOST_ST]
    return item


def _keep_lossy_history(ds: Dataset, decoded: Decoded) -> None:
    """C.7.6.1.1.5: once lossy, always lossy; a method that only the transfer syntax knew is written down."""
    method = LOSSY_SYNTAXES.get(text(decoded.dataset.file_meta, "TransferSyntaxUID"))
    if method is None or text(ds, "LossyImageCompression") == "01":
        return
    ds.LossyImageCompression, ds.LossyImageCompressionMethod = "01", method
    ds.LossyImageCompressionRatio = f"{decoded.stored_FHWC.nbytes / decoded.encoded_bytes:.4g}"


def _set_pixels(ds: Dataset, stored_FHWC: npt.NDArray[Any]) -> None:
    if stored_FHWC.shape[-1] == 3:
        ds.PhotometricInterpretation, ds.PlanarConfiguration = "RGB", 0
    width = int(ds.BitsAllocated) // 8
    pixels = stored_FHWC.astype(stored_FHWC.dtype.newbyteorder("<")).tobytes()
    assert len(pixels) == stored_FHWC.size * width, "stored values keep their width"
    # PS3.5 8.1.1 and A.2: even length; OB or OW by the bits.
    ds.add_new("PixelData", "OW" if width == 2 else "OB", pixels + b"\0" * (len(pixels) % 2))
    if "_pixel_array" in ds.__dict__:
        ds._pixel_array = None


def _coded(code: Any) -> Dataset:
    return _code(code.value, code.scheme_designator, code.meaning)


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _values(value: Any) -> list[Any]:
    if value is None or isinstance(value, str):
        return [value] if value else []
    return list(value)
