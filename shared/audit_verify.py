"""An audit log in, what it holds or its first wrong entry out.

What is found: an edit of any byte (the line's signature, and the next line's `previous`), a line taken out, put in,
moved or doubled (`previous` and the number), a head that was cut off (the first line has number 1, or is a signed
summary), a tail that was cut off (the head file; the anchors that the other end keeps), another log put in its place
(the signer's key; the anchors).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shared.audit_entry import CLOSED, START, Entry, parse, parse_head, signature_of
from shared.errors import DataError, RefusedError


class Anchor(NamedTuple):
    """An entry of a log as the other end knows it."""

    number: int
    head: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What a log holds that verified."""

    entries: int
    """In the file, without what was closed."""
    last: int
    """Number of the last entry; 0 in an empty log."""
    head: str
    first_time: str
    last_time: str
    closed: int
    """Entries that a summary stands for, older than the log's retention."""
    anchors: int
    """Heads kept at the other end that this log leads to."""
    notes: tuple[str, ...] = ()
    """What is whole but should be read: repairs after a kill, a head file that was missing."""


def verify(path: Path, public_key_line: str | Sequence[str], anchors: Iterable[tuple[int, str]] = ()) -> Verified:
    """Follow the chain from the first line to the head file.

    `public_key_line`: the signer's key, or all it ever had, as OpenSSH lines; empty for a log that nobody signs.
    Raises RefusedError with the first entry that is wrong; DataError where the file cannot be read.
    """
    keys = (public_key_line,) if isinstance(public_key_line, str) else tuple(public_key_line)
    keys = tuple(key for key in keys if key)
    known = _read(_head_file(path))  # first: a program may be appending, and the head file is never ahead
    content = _read(path)
    wanted = {Anchor(*anchor) for anchor in anchors}
    if content is None and known is None and not wanted:
        return Verified(0, 0, START, "", "", 0, 0)
    entries, notes = _chain(content or b"", keys)
    last, head = (entries[-1].last, entries[-1].head) if entries else (0, START)
    notes += _check_head(known, entries, keys)
    met = _check_anchors(entries, wanted)
    closed = entries[0].last if entries and entries[0].event == CLOSED else 0
    if closed:
        notes.append(f"entries 1 to {closed} were closed by retention, on {entries[0].time[:10]}")
    times = (entries[0].time, entries[-1].time) if entries else ("", "")
    return Verified(len(entries) - bool(closed), last, head, *times, closed, met, tuple(notes))


def signers_in(path: Path, authority: bytes) -> tuple[str, ...]:
    """Keys that signed a log, as certificates in the log itself say that the authority issued; as OpenSSH lines.

    Raises RefusedError where there is none: a log that nobody could verify is not whole.
    """
    from shared.trust.line_signatures import lines_of

    certificates = []
    for line in (_read(path) or b"").split(b"\n"):
        try:
            entry = parse(line + b"\n")
        except DataError:
            continue  # `verify` names it
        if entry.event == "audit.signer":
            certificates.append(str(entry.facts.get("signer")))
    lines = lines_of(authority, certificates)
    if not lines and _read(path):
        raise RefusedError("entry 1 is wrong: the log is not signed by a signer of this federation's authority")
    return lines


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        raise DataError(f"{path.name} cannot be read; check its permissions") from None


def _head_file(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _chain(content: bytes, keys: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """Every whole line, checked in this order: (1) form (2) place in the chain (3) signature."""
    entries: list[Entry] = []
    notes: list[str] = []
    number, head = 0, START
    *lines, torn = content.split(b"\n")
    if torn:
        notes.append(f"the log ends in {len(torn)} bytes of half a line, as a kill leaves; the next entry says so")
    for place, line in enumerate(lines, 1):
        where = f"entry {number + 1} (line {place})"
        # (1)
        try:
            entry = parse(line + b"\n")
        except DataError as error:
            raise RefusedError(f"{where} is wrong: {error}") from None
        # (2)
        if not (entry.event == CLOSED and place == 1):
            _check_place(entry, where, number, head)
        # (3)
        if keys and not any(_signed_by(key, entry.content, entry.signature) for key in keys):
            raise RefusedError(f"{where} is wrong: its signature is not of this log's signer")
        if entry.event == "audit.repaired":
            notes.append(f"entry {entry.number} of {entry.time[:19]}: mended after {entry.facts.get('what')}")
        entries.append(entry)
        number, head = entry.last, entry.head
    return entries, notes


def _check_place(entry: Entry, where: str, number: int, head: str) -> None:
    if entry.event == CLOSED:
        raise RefusedError(f"{where} is wrong: a summary of closed entries stands on the first line alone")
    if entry.number <= number:
        raise RefusedError(f"{where} is wrong: number {entry.number} again; a line was doubled, moved or put in")
    if entry.number != number + 1:
        missing = f"{number + 1} to {entry.number - 1}" if entry.number > number + 2 else f"{number + 1}"
        raise RefusedError(f"{where} is wrong: it has number {entry.number}; entries {missing} are missing")
    if entry.previous != head:
        raise RefusedError(f"{where} is wrong: it does not follow the line before, which was changed or replaced")


def _check_head(content: bytes | None, entries: Sequence[Entry], keys: Sequence[str]) -> list[str]:
    """The head file may be one append behind, after a kill; never ahead."""
    if content is None:
        raise RefusedError(
            "the head file is missing, so that a cut tail could not be told; the next entry writes it anew and says so"
        )
    known = parse_head(content)
    if known is None or (keys and not any(_signed_by(key, known.content, known.signature) for key in keys)):
        raise RefusedError("the head file is wrong: it is not signed by this log's signer")
    last = entries[-1].last if entries else 0
    if known.number > last:
        raise RefusedError(f"entry {last + 1} is wrong: the log ends before it, the head file knows {known.number}")
    if _heads(entries).get(known.number, known.head) != known.head:
        raise RefusedError(f"entry {known.number} is wrong: it is not the one that the head file knows")
    behind = last - known.number
    return [f"the head file is {behind} behind, as a kill leaves it"] if behind else []


def _check_anchors(entries: Sequence[Entry], anchors: set[Anchor]) -> int:
    heads = _heads(entries)
    last = entries[-1].last if entries else 0
    met = 0
    for number, head in sorted(anchors):
        if number > last:
            raise RefusedError(f"entry {last + 1} is wrong: the log ends before it, the other end knows {number}")
        if number in heads and heads[number] != head:
            raise RefusedError(f"entry {number} is wrong: the other end knows another; the log was replaced")
        met += number in heads
    return met


def _heads(entries: Sequence[Entry]) -> dict[int, str]:
    return {entry.last: entry.head for entry in entries}


def _signed_by(line: str, content: bytes, signature: str) -> bool:
    from shared.trust.line_signatures import signed_by

    return signed_by(line, content, signature_of(signature))
