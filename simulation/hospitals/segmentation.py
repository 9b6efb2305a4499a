"""A label volume and its source images in, one DICOM SEG file out, in the site's own segment numbers.

PS3.3 C.8.20.2 wants the segment numbers of a BINARY segmentation to run 1, 2, 3...; a site whose own numbers do not
(11, 12, 20) writes a LABELMAP segmentation (Label Map Segmentation Storage), which may use any numbers. Real archives
hold both, so both are written and ingest must read both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from simulation.hospitals.modules import uid

# SNOMED CT names of pydicom.sr.codedict: (category, type)
_CODES = {
    "grey matter": ("Tissue", "GrayMatter"),
    "white matter": ("Tissue", "WhiteMatter"),
    "lesion": ("MorphologicallyAbnormalStructure", "Lesion"),
    "anterior": ("AnatomicalStructure", "Hippocampus"),
    "posterior": ("AnatomicalStructure", "Hippocampus"),
}


def write_segmentation(
    path: Path, images: Sequence[Dataset], label_DHW: npt.NDArray[np.uint8], segments: Mapping[str, tuple[int, int]]
) -> None:
    """`segments`: mask name -> (value in label_DHW, the site's segment number). Empty segments stay declared."""
    import highdicom as hd

    codes_DHW = np.zeros_like(label_DHW)
    for value, number in segments.values():
        codes_DHW[label_DHW == value] = number
    numbers = sorted(number for _, number in segments.values())
    names = {number: name for name, (_, number) in segments.items()}
    first = images[0]
    seg = hd.seg.Segmentation(
        source_images=images,
        pixel_array=codes_DHW,
        segmentation_type="BINARY" if numbers == list(range(1, len(numbers) + 1)) else "LABELMAP",
        segment_descriptions=[_description(hd, number, names[number]) for number in numbers],
        series_instance_uid=uid("segmentation series", first.SeriesInstanceUID),
        series_number=100,
        sop_instance_uid=uid("segmentation", first.SeriesInstanceUID),
        instance_number=1,
        manufacturer=first.Manufacturer,
        manufacturer_model_name=first.ManufacturerModelName,
        software_versions=first.SoftwareVersions,
        device_serial_number=first.DeviceSerialNumber,
        content_label="MASKS",
        content_creator_name=str(first.NameOfPhysiciansReadingStudy),
        series_description="Masks",
        content_date=first.StudyDate,
        content_time=first.StudyTime,
    )
    _pin(seg, first)
    path.parent.mkdir(parents=True, exist_ok=True)
    seg.save_as(path, enforce_file_format=True)


def _description(hd: Any, number: int, name: str) -> Any:
    from pydicom.sr.codedict import codes

    category, kind = _CODES.get(name, ("AnatomicalStructure", "Organ"))
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=getattr(codes.SCT, category),
        segmented_property_type=getattr(codes.SCT, kind),
        algorithm_type="MANUAL",
        tracking_uid=uid("tracking", name),
        tracking_id=name,
    )


def _pin(seg: Dataset, first: Dataset) -> None:
    """Replace what highdicom takes from the clock and from random UIDs: same seed, same bytes."""
    seg.InstanceCreationDate, seg.InstanceCreationTime = first.StudyDate, first.StudyTime
    dimension = uid("dimensions", seg.SOPInstanceUID)
    for items in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in getattr(seg, items, ()):
            item.DimensionOrganizationUID = dimension
    for item in getattr(seg, "ContributingEquipmentSequence", ()):
        if "ContributionDateTime" in item:
            item.ContributionDateTime = first.StudyDate + first.StudyTime
