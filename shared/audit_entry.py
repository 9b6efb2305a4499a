"""One entry of an audit log: values in, one line of JSON out, and back.

A line is the canonical JSON (sorted keys, no blanks, ASCII) of

    number     1, 2, 3 ... without a gap
    time       UTC, ISO 8601 with milliseconds
    by         login name of the operating system's user who ran the program
    event      what happened: `campaign.approved`, `round.left`, `release.installed`, ...
    facts      JSON scalars by name; counts, digests and names that a person chose, never a patient's value or a path
    previous   SHA-256 of the line before, with its signature; 64 zeros before the first
    signature  base64 of ECDSA (P-384, SHA-384) over "wardround audit entry 1", a line feed, and the line without it

so that the chain can be followed with `sha256sum` alone. The first line of a log may be of the event `audit.closed`:
it stands for entries that were older than the log's retention, and its facts `last` and `head` take the place of the
last of them (shared/audit_retention.py).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

from shared.errors import DataError

Scalar: TypeAlias = str | int | float | bool | None

START = "0" * 64
"""What comes before the first entry."""
CLOSED = "audit.closed"
MAX_LINE = 32_768  # bytes
MAX_TEXT = 8192  # characters of one fact
_DOMAIN = b"wardround audit entry 1\n"
_HEAD_DOMAIN = b"wardround audit head 1\n"
_EVENT = re.compile(r"[a-z0-9_]{1,32}(\.[a-z0-9_]{1,32}){0,2}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_KEYS = {"number", "time", "by", "event", "facts", "previous", "signature"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of an audit log."""

    number: int
    time: str
    by: str
    event: str
    facts: Mapping[str, Scalar]
    previous: str
    signature: str = ""
    """Base64; empty where the log is not signed (a simulation's)."""

    @property
    def line(self) -> bytes:
        """As it stands in the file, with its line feed."""
        return _canonical(asdict(self)) + b"\n"

    @property
    def content(self) -> bytes:
        """What is signed."""
        values = asdict(self)
        del values["signature"]
        return _DOMAIN + _canonical(values)

    @property
    def last(self) -> int:
        """The number that the next entry follows."""
        return int(self.facts["last"] or 0) if self.event == CLOSED else self.number

    @property
    def head(self) -> str:
        """What the next entry's `previous` is."""
        return str(self.facts["head"]) if self.event == CLOSED else hashlib.sha256(self.line).hexdigest()


@dataclass(frozen=True, slots=True)
class Head:
    """The head file: how far the log had come, so that a tail that was cut off is missed."""

    number: int
    head: str
    signer: str = ""
    """SHA-256 of what the signer is known by."""
    signature: str = ""

    @property
    def content(self) -> bytes:
        return _HEAD_DOMAIN + _canonical({"number": self.number, "head": self.head, "signer": self.signer})

    @property
    def line(self) -> bytes:
        return _canonical(asdict(self)) + b"\n"


def signed(entry: Entry, signature: bytes) -> Entry:
    return replace(entry, signature=base64.b64encode(signature).decode())


def signature_of(text: str) -> bytes:
    """The signature as bytes; empty where there is none or it is no base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def check_event(event: str, facts: Mapping[str, Scalar]) -> None:
    """Assert what only our own code can get wrong: names and types of an entry."""
    assert _EVENT.fullmatch(event), event
    assert event != CLOSED
    for name, value in facts.items():
        assert isinstance(value, str | int | float | bool | None), f"{event}: {name} must be a JSON scalar"
        assert not isinstance(value, str) or len(value) <= MAX_TEXT, f"{event}: {name} is too long"


def parse(line: bytes) -> Entry:
    """An entry of a whole line; DataError unless it is the very line that this module writes for it."""
    if len(line) > MAX_LINE:
        raise DataError("the line is too long")
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError("the line is not JSON") from None
    if not isinstance(values, dict) or values.keys() != _KEYS:
        raise DataError("the line does not have an entry's fields")
    texts = ("time", "by", "event", "previous", "signature")
    if not all(isinstance(values[name], str) for name in texts) or not isinstance(values["facts"], dict):
        raise DataError("a field of the line has another type")
    if not isinstance(values["number"], int) or values["number"] < 1:
        raise DataError("the line's number is not a positive integer")
    if not (_DIGEST.fullmatch(values["previous"]) and _TIME.fullmatch(values["time"])):
        raise DataError("a field of the line has another form")
    entry = Entry(**values)
    if entry.event == CLOSED and not _closes(entry.facts):
        raise DataError("the summary of closed entries is not one")
    if entry.line != line:
        raise DataError("the line is not written as an entry is")
    return entry


def _closes(facts: Mapping[str, Any]) -> bool:
    last, head = facts.get("last"), facts.get("head")
    return isinstance(last, int) and last > 0 and isinstance(head, str) and _DIGEST.fullmatch(head) is not None


def parse_head(content: bytes) -> Head | None:
    """None where it is not a head file."""
    try:
        head = Head(**json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return None
    whole = isinstance(head.number, int) and all(isinstance(part, str) for part in (head.signer, head.signature))
    return head if whole and isinstance(head.head, str) and _DIGEST.fullmatch(head.head) and head.number > 0 else None


def _canonical(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
