"""Why a series is not enhanced: words of a fixed vocabulary, counted beside those of the ingest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from client.ingest.reasons import Quarantined, Skipped


class Why(StrEnum):
    """Beside the reasons of client/ingest/reasons.py."""

    SOP_CLASS = "SOP class not supported"
    MODALITY = "modality is not the release's"
    LOSSY_COLOUR = "lossy multi-frame colour"
    COLOUR = "colour image, and the release is for grey ones"
    LOOKUP = "stored values go through a lookup table"
    BITS = "stored values are not of 8 or 16 bits"
    ENHANCED = "enhanced already"
    TOO_LARGE = "image too large for an enhancer with attention"
    NO_IDENTITY = "study, series or instance UID missing"
    BAD_IDENTITY = "instance UID is not valid"
    COPY = "instance UID met before: the first file counts"


class NotEnhanced(Exception):
    """Raised where a series cannot be enhanced; caught by the study's loop, which counts the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(str(reason))
        self.reason = str(reason)


@contextmanager
def as_refusal() -> Iterator[None]:
    """Inside, what the ingest would quarantine or skip is not enhanced, for the same reason."""
    try:
        yield
    except (Quarantined, Skipped) as refusal:
        raise NotEnhanced(refusal.reason.value) from None
