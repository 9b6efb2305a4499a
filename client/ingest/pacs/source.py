"""What a PACS is asked and what it answers: four functions, values that do not print identifiers, fixed reasons."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from shared.errors import ConfigError, PeerError, RefusedError, WardroundError

MOST_STUDIES = 100_000
"""Of one query; more is refused, not cut off."""
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


class Failure(StrEnum):
    """Why a study, an instance or a file did not pass between us and the PACS."""

    NO_CONNECTION = "no connection to the PACS"
    UNTRUSTED = "certificate of the PACS not trusted"
    REFUSED = "refused by the PACS"
    NOT_THERE = "not in the PACS any more"
    PACS_ERROR = "error of the PACS"
    TIMEOUT = "no answer in time"
    CUT_OFF = "connection lost in the midst"
    NOT_UNDERSTOOD = "answer is not DICOM as the standard says"
    REDIRECTED = "sent elsewhere, which is not followed"
    SUB_OPERATION = "sub-operation failed at the PACS"
    DAMAGED = "instance damaged"
    OTHER_STUDY = "instance of another study"
    REPEATED = "instance sent twice"
    TOO_LARGE = "over the size limit"
    TOO_MANY = "over the limit of files"
    NOTHING_CAME = "no instance came"
    NOT_ACCEPTED = "SOP class or transfer syntax not accepted"
    UNREADABLE = "file of ours is not readable DICOM"


class TransferError(Exception):
    """One request failed for one reason; caught by the four functions, never by a caller of theirs."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.value)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Dates:
    """Study dates, both ends included; None is open."""

    first: dt.date | None = None
    last: dt.date | None = None

    def __str__(self) -> str:
        """Range matching (PS3.4 C.2.2.2.5); empty: all dates."""
        if self.first is None and self.last is None:
            return ""
        first, last = (f"{day:%Y%m%d}" if day else "" for day in (self.first, self.last))
        return f"{first}-{last}"

    def hold(self, date: str) -> bool:
        """Whether a StudyDate lies within; a date that the PACS does not tell is its own affair."""
        if not re.fullmatch(r"[0-9]{8}", date):
            return True
        return (self.first is None or f"{self.first:%Y%m%d}" <= date) and (
            self.last is None or date <= f"{self.last:%Y%m%d}"
        )


ALL_DATES = Dates()


@dataclass(frozen=True, slots=True)
class FoundStudy:
    """One study of a query. Its identifiers are patient data: they are not in its repr."""

    uid: str = field(repr=False)
    """StudyInstanceUID."""
    patient: str = field(default="", repr=False)
    """PatientID; studies of one patient are ingested together."""
    date: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Fetched:
    """The files of one study, whole and with names of ours, and what did not come."""

    files: tuple[Path, ...]
    failed: Mapping[Failure, int]
    """Reason -> instances, or 1 where the study as a whole was cut off."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What the PACS says that it keeps, and why it does not keep the rest."""

    stored: int
    failed: Mapping[Failure, int]


class Source(Protocol):
    """A PACS. PeerError where it does not answer, RefusedError where it does not want us; both name host and port."""

    def echo(self) -> str:
        """Ask whether it is there and answers queries; what it is, in words."""

    def find(
        self, modality: str, body_part: str | None = None, dates: Dates = ALL_DATES, *, limit: int | None = None
    ) -> tuple[FoundStudy, ...]:
        """Studies with a series of this modality (and body part), each once, by date."""

    def fetch(self, study_uid: str, folder: Path) -> Fetched:
        """Write a study's instances into an existing folder; never raises for one study."""

    def send(self, files: Sequence[Path]) -> Sent:
        """Store files in the PACS. PeerError only where it is away before the first file."""


_WAYS_OUT = {
    Failure.NO_CONNECTION: "is it running, are host and port right, and does the firewall allow it?",
    Failure.UNTRUSTED: "compare `ca` in pacs.json and the host name with who runs it",
    Failure.REFUSED: "check user and password, or the AE titles that both sides know",
    Failure.REDIRECTED: "write the final URL into pacs.json; credentials follow no redirect",
    Failure.NOT_THERE: "check the path of the URL in pacs.json",
}


def spoken(failure: Failure, where: str) -> WardroundError:
    """The error of a whole request: RefusedError where they do not want us, PeerError otherwise."""
    kind = RefusedError if failure is Failure.REFUSED else PeerError
    return kind(f"PACS at {where}: {failure.value}; {_WAYS_OUT.get(failure, 'try again, or ask who runs it')}")


def is_uid(text: str) -> bool:
    """PS3.5 9.1, without the rule on leading zeros, which scanners break."""
    return 0 < len(text) <= 64 and _UID.fullmatch(text) is not None


def check_uid(text: str) -> None:
    """ConfigError for what names no study; it is not repeated, for it may be a name of another kind."""
    if not is_uid(text):
        raise ConfigError("a study is named by its Study Instance UID: digits and dots, 64 at most")


def same_word(asked: str, told: str) -> bool:
    """Code strings, compared as people write them."""
    return asked.strip().casefold() == told.strip().casefold()
