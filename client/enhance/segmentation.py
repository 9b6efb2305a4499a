"""Masks of a derived series in, one DICOM SEG out (PS3.3 C.8.20), which refers to the derived and the source images."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from client.enhance.derived import MOST_LO, Series, new_uid
from client.enhance.find import MANUFACTURER
from client.enhance.release import InUse
from client.ingest.validate import silent

# Words of a mask's name -> SNOMED CT (category, type) in pydicom.sr.codedict; the first that fits.
CODES: tuple[tuple[str, str, str], ...] = (
    ("grey matter", "Tissue", "GrayMatter"),
    ("gray matter", "Tissue", "GrayMatter"),
    ("white matter", "Tissue", "WhiteMatter"),
    ("lesion", "MorphologicallyAbnormalStructure", "Lesion"),
    ("tumour", "MorphologicallyAbnormalStructure", "Neoplasm"),
    ("tumor", "MorphologicallyAbnormalStructure", "Neoplasm"),
    ("hippocampus", "AnatomicalStructure", "Hippocampus"),
    ("anterior", "AnatomicalStructure", "Hippocampus"),
    ("posterior", "AnatomicalStructure", "Hippocampus"),
    ("liver", "AnatomicalStructure", "Liver"),
    ("spleen", "AnatomicalStructure", "Spleen"),
    ("kidney", "AnatomicalStructure", "Kidney"),
    ("pancreas", "AnatomicalStructure", "Pancreas"),
    ("lung", "AnatomicalStructure", "Lung"),
    ("heart", "AnatomicalStructure", "Heart"),
    ("brain", "AnatomicalStructure", "Brain"),
    ("organ", "AnatomicalStructure", "Organ"),
)


def segmentation(
    images: Sequence[Dataset],
    sources: Sequence[Dataset],
    mask_FHW: npt.NDArray[np.uint8],
    series: Series,
    release: InUse,
    slice_mm: float,
) -> Dataset | str:
    """BINARY segments numbered as the campaign's codes; `images` are the derived ones, in the order of the frames.

    A segment of which nothing was found stays declared. Pixels are not read from `images`, and where these do not say
    how thick a slice is, `slice_mm`, the spacing between slices (0 unknown), is written into them.
    In place of a SEG, in words: what the images do not say and a SEG of several frames must.
    """
    import highdicom as hd

    try:
        with silent():
            if missing := _unmeasured(images, slice_mm):
                return missing
            seg = _built(hd, images, sources, mask_FHW, series, release)
    except (ValueError, AttributeError, TypeError, LookupError):  # highdicom, on what the source does not say
        return "the images have no frame of reference that its frames could refer to"
    if "FrameOfReferenceUID" not in images[0]:
        # C.7.6.1: without a plane orientation the general image module asks for it, and knows it empty.
        seg.PatientOrientation = images[0].get("PatientOrientation") or ""
    return seg


def _unmeasured(images: Sequence[Dataset], slice_mm: float) -> str:
    """What is not known of the pixel measures that a SEG takes over (C.7.6.16.2.1), "" for nothing; a thickness that is
    missing is filled in."""
    for image in images:
        groups = image.get("SharedFunctionalGroupsSequence")
        measures = groups[0].PixelMeasuresSequence[0] if groups else image
        spacing, placed = measures.get("PixelSpacing"), "FrameOfReferenceUID" in image
        if not all(float(value) > 0 for value in spacing) if spacing else placed:
            return "the images do not say how far apart their pixels are"
        if placed and not float(measures.get("SliceThickness") or 0) > 0:
            if not slice_mm > 0:
                return "the images do not say how thick a slice is or how far apart slices are"
            measures.SliceThickness = f"{slice_mm:.6g}"
    return ""


def _built(
    hd: Any,
    images: Sequence[Dataset],
    sources: Sequence[Dataset],
    mask_FHW: npt.NDArray[np.uint8],
    series: Series,
    release: InUse,
) -> Dataset:
    identification = hd.AlgorithmIdentificationSequence(
        name=f"Wardround {release.name}"[:MOST_LO],
        family=_codes().cid7162.ArtificialIntelligence,
        version=f"v{release.version}, wardround {version('wardround')}"[:MOST_LO],
        source=MANUFACTURER,
        parameters={"release_sha256": release.digest, "personalised": release.personal or "no"},
    )
    built: Dataset = hd.seg.Segmentation(
        source_images=list(images),
        pixel_array=mask_FHW,
        segmentation_type="BINARY",
        segment_descriptions=[
            _description(hd, number, name, identification)
            for number, name in enumerate(release.campaign.masks, start=1)
        ],
        series_instance_uid=new_uid(),
        series_number=series.number + 1000,
        sop_instance_uid=new_uid(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name="wardround-site enhance",
        software_versions=version("wardround"),
        device_serial_number=release.digest[:16],
        content_label="MASKS",
        content_description="Masks found in the enhanced images. Research only."[:MOST_LO],
        series_description=f"Masks {release.name} v{release.version}, research only"[:MOST_LO],
        content_date=f"{series.now:%Y%m%d}",
        content_time=f"{series.now:%H%M%S}",
        further_source_images=list(sources),
    )
    return built


def codes_of(name: str) -> tuple[Any, Any]:
    """SNOMED CT category and type of a mask's name; "anatomical structure" where the name says nothing known."""
    known = _codes().SCT
    for word, category, kind in CODES:
        if word in name.casefold():
            return getattr(known, category), getattr(known, kind)
    return known.AnatomicalStructure, known.AnatomicalStructure


def _description(hd: Any, number: int, name: str, identification: Any) -> Any:
    category, kind = codes_of(name)
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=identification,
        tracking_uid=new_uid(),
        tracking_id=name,
    )


def _codes() -> Any:
    from pydicom.sr.codedict import codes

    return codes
