"""The fixed vocabulary of what became of a file, and the table that is printed at the end of an ingest.

A reason is one of these words and nothing else: no value of the file, no path and no text of a third party's exception
can come out of an ingest, because there is no place for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

Outcome: TypeAlias = Literal["stored", "already stored", "used as label", "skipped", "quarantined"]


class Reason(StrEnum):
    """Why a file had its outcome."""

    # stored, already stored
    IMAGE = "image"
    # used as label
    SEGMENTATION = "segmentation"
    DIAGNOSES = "table of diagnoses"
    # skipped: nothing for this campaign in it
    NOT_DICOM = "not a DICOM file"
    DIRECTORY = "DICOM directory file"
    NO_IMAGE = "no image in the file"
    MODALITY = "modality not in campaign"
    LINK = "link or special file"
    DUPLICATE = "same instance seen before"
    LOCALISER = "localiser"
    OTHER_INSTANCES = "series stored from other instances"
    FORGOTTEN = "patient was forgotten at this site"
    # quarantined: an image or a label that must not be used as it is
    UNREADABLE = "file cannot be read"
    TOO_LARGE = "file over the size limit"
    NO_PREAMBLE = "DICOM without preamble and file meta"
    NO_TRANSFER_SYNTAX = "transfer syntax missing"
    MALFORMED = "header malformed"
    TOO_DEEP = "sequences nested too deep"
    NO_MODALITY = "modality missing"
    BURNED_IN = "burned-in annotation"
    MAY_SHOW_TEXT = "pixels may show text"
    TOO_MANY_PIXELS = "image over the pixel or frame limit"
    NO_PIXELS = "pixel data missing"
    UNDECODABLE = "pixel data truncated or not decodable"
    UNSUPPORTED_COLOUR = "colour space not supported"
    NOT_FINITE = "pixel values not finite"
    CONSTANT = "image without contrast"
    NO_BIT_DEPTH = "no bit depth for the range rule"
    GEOMETRY = "slice geometry contradictory"
    SLICE_GAP = "slices missing or unevenly spaced"
    NO_SPACING = "pixel spacing missing"
    UNMATCHED_LABEL = "label without its image"
    MISFIT_LABEL = "label does not fit its image"
    UNMAPPED_LABEL = "no segment of the campaign"
    BAD_TABLE = "table of diagnoses not readable"


class Quarantined(Exception):
    """Raised where a file or a series cannot be used; caught by the ingest's loop, which counts the reason."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class Skipped(Exception):
    """Raised where a file holds nothing for the campaign."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class IngestReport:
    """Counts of one ingest; no identifier, no path. Every file of the folder is counted once in `outcomes`."""

    outcomes: Mapping[tuple[Outcome, Reason], int]
    """(outcome, reason) -> files."""
    series_new: int
    series_updated: int
    series_kept: int
    masks: int
    """Series of this folder with a mask."""
    diagnoses: int
    """Series of this folder with a diagnosis."""
    pairs: int
    """Clean series of this folder with their own degraded partner."""
    patients: int
    """Patients of this folder with a stored series."""
    diagnoses_unknown: int
    """Rows of the table of diagnoses that name no diagnosis of the campaign, or contradict another row."""

    @property
    def files(self) -> int:
        return sum(self.outcomes.values())

    def count(self, outcome: Outcome, reason: Reason | None = None) -> int:
        """Files with this outcome (and reason)."""
        return sum(n for (o, r), n in self.outcomes.items() if o == outcome and reason in (None, r))

    def table(self) -> tuple[tuple[str, str, int], ...]:
        """Rows (outcome, reason, files) for printing, the outcomes in a fixed order, most files first."""
        order: tuple[Outcome, ...] = ("stored", "already stored", "used as label", "skipped", "quarantined")
        ranked = sorted(self.outcomes.items(), key=lambda item: (order.index(item[0][0]), -item[1], item[0][1]))
        return tuple((outcome, reason.value, n) for (outcome, reason), n in ranked)
