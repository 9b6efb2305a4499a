"""An event and its facts in, an entry of an append-only log on the disk out.

    audit.jsonl        one entry a line (shared/audit_entry.py), each holding the SHA-256 of the line before
    audit.jsonl.head   number and SHA-256 of the last line, signed: what tells that a tail was cut off
    audit.jsonl.lock   held by whoever appends; several processes may

An entry is on the disk (fsync) when `append` returns. A program killed while it wrote leaves half a line, which the
next append takes away with an entry that says so. Where lines are missing that the head file knows of, the next append
says so too and goes on from what the head file says: the chain then has a gap that no later entry can close.

Why nothing that is found ever blocks an append: the log would be a switch with which to stop a site. What cannot be
written down at all is refused: a full disk ends the work that was to be recorded.

What it can and cannot prove: whoever holds the signing key and the folder can write another history, head file and all.
That is why each end keeps the other's last head (`anchors`): a history that was written anew does not lead to it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from shared.audit_entry import (
    MAX_LINE,
    START,
    Entry,
    Head,
    Scalar,
    check_event,
    parse,
    parse_head,
    signed,
)
from shared.audit_retention import DAYS, due, retired
from shared.audit_verify import Anchor, Verified, signers_in, verify
from shared.errors import ConfigError, DataError
from shared.files import sync
from shared.locks import locked

__all__ = [
    "ANCHOR",
    "DAYS",
    "START",
    "Anchor",
    "AuditLog",
    "Entry",
    "Scalar",
    "Verified",
    "days_of",
    "last_head",
    "read",
    "signers_in",
    "verify",
]

ANCHOR = "anchor.kept"
"""Event: the other end's head, as it arrived; facts `of`, `number`, `head`."""
_FULL = "the audit log cannot be written, and what is not recorded is not done; free disk space or check permissions"


@dataclass(frozen=True, slots=True)
class AuditLog:
    """Where entries go, and who signs them.

    `signer` is what the signer is known by (a certificate, PEM): an entry `audit.signer` holds it whenever it changes.
    """

    path: Path
    sign: Callable[[bytes], bytes] | None
    signer: str = ""
    days: int = DAYS
    """Entries are kept for at least so long; whole months that are older are closed with a summary."""

    def append(self, event: str, /, **facts: Scalar) -> Entry:
        """Write an entry and return it; DataError where it cannot be written."""
        check_event(event, facts)
        try:
            with locked(self.path.with_name(self.path.name + ".lock")):
                return self._append(event, facts, dt.datetime.now(dt.UTC))
        except OSError:
            raise DataError(_FULL) from None

    def _append(self, event: str, facts: dict[str, Scalar], now: dt.datetime) -> Entry:
        if due(self.path, now, self.days):
            self._retire(now)
        state, known = _state(self.path), _head(self.path)
        number, previous = state.number, state.head
        before = _found(state, known)
        if any(name == "audit.gap" for name, _ in before):
            assert known is not None
            number, previous = known.number, known.head
        if self.signer and (known is None or known.signer != self._signer_id):
            before.append(("audit.signer", {"signer": self.signer}))
        entries: list[Entry] = []
        for name, values in (*before, (event, facts)):
            entry = self._signed(Entry(number + 1, _time(now), _user(), name, values, previous))
            entries.append(entry)
            number, previous = entry.number, entry.head
        assert all(len(entry.line) <= MAX_LINE for entry in entries), event
        _write(self.path, state.whole_bytes, state.size, b"".join(entry.line for entry in entries))
        self._write_head(entries[-1])
        return entries[-1]

    def _retire(self, now: dt.datetime) -> None:
        """Replace the log by one whose old months are closed; kept as it is where it cannot be read whole."""
        new = retired(self.path, now, self.days, lambda entry: self._signed(replace(entry, by=_user())))
        if new is None:
            return
        partial = self.path.with_name(f".partial-{self.path.name}")
        partial.unlink(missing_ok=True)
        _write(partial, 0, 0, b"".join(entry.line for entry in new))
        os.replace(partial, self.path)
        sync(self.path.parent)
        self._write_head(new[-1])

    def _signed(self, entry: Entry) -> Entry:
        return entry if self.sign is None else signed(entry, self.sign(entry.content))

    def _write_head(self, entry: Entry) -> None:
        head = Head(entry.last, entry.head, self._signer_id)
        if self.sign is not None:
            head = replace(head, signature=signed(entry, self.sign(head.content)).signature)
        target = head_path(self.path)
        partial = target.with_name(f".partial-{target.name}")
        partial.unlink(missing_ok=True)
        _write(partial, 0, 0, head.line)
        os.replace(partial, target)
        sync(target.parent)

    @property
    def _signer_id(self) -> str:
        return hashlib.sha256(self.signer.encode()).hexdigest() if self.signer else ""


def read(path: Path) -> tuple[Entry, ...]:
    """All whole entries; empty where there is no log. DataError names the first line that is none."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # half a line, after a kill: `verify` and the next append say so
    except FileNotFoundError:
        return ()
    except OSError:
        raise DataError(f"{path.name} cannot be read; check its permissions") from None
    entries = []
    for place, line in enumerate(lines, 1):
        try:
            entries.append(parse(line + b"\n"))
        except DataError as error:
            raise DataError(f"line {place} of {path.name} is no entry: {error}; see: audit verify") from None
    return tuple(entries)


def last_head(path: Path) -> Anchor | None:
    """Number and SHA-256 of the last entry, as the other end keeps it; None where there is none."""
    state = _state(path)
    return Anchor(state.number, state.head) if state.number else None


def days_of(config: Path) -> int:
    """`audit_days` of site.json or coordinator.json: for how long entries are kept."""
    try:
        days = json.loads(config.read_text()).get("audit_days", DAYS)
    except (OSError, ValueError, AttributeError):
        raise DataError(f"{config.name} cannot be read; restore it from a backup of the folder") from None
    if type(days) is not int or not 1 <= days <= 36_500:
        raise ConfigError(f"audit_days in {config.name} must be a whole number of days, 1 to 36500")
    return days


def head_path(path: Path) -> Path:
    return path.with_name(path.name + ".head")


@dataclass(frozen=True, slots=True)
class _State:
    """The end of the file as it is."""

    number: int
    head: str
    whole_bytes: int
    """Up to the last line feed."""
    size: int
    torn: bytes = b""


def _state(path: Path) -> _State:
    """The last whole line is looked at alone: an append takes as long in a log of ten years as in a new one."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 2 * MAX_LINE, 0))
            tail = file.read()
    except FileNotFoundError:
        return _State(0, START, 0, 0)
    whole, _, torn = tail.rpartition(b"\n")
    whole_bytes = size - len(torn)
    if not whole_bytes:
        return _State(0, START, 0, size, torn)
    try:
        entry = parse(whole.rpartition(b"\n")[2] + b"\n")
    except DataError:
        return _State(0, START, whole_bytes, size, torn)
    return _State(entry.last, entry.head, whole_bytes, size, torn)


def _head(path: Path) -> Head | None:
    try:
        return parse_head(head_path(path).read_bytes())
    except FileNotFoundError:
        return None


def _found(state: _State, known: Head | None) -> list[tuple[str, dict[str, Scalar]]]:
    """What is not as the last append left it, as entries that say so."""
    found: list[tuple[str, dict[str, Scalar]]] = []
    if state.torn:
        digest = hashlib.sha256(state.torn).hexdigest()
        found.append(("audit.repaired", {"what": "half a line", "bytes": len(state.torn), "sha256": digest}))
    if known is None:
        if state.whole_bytes:
            found.append(("audit.repaired", {"what": "no head file", "after": state.number}))
    elif state.number < known.number or (state.number == known.number and state.head != known.head):
        found.append(("audit.gap", {"expected": known.number, "head": known.head, "found": state.number}))
    return found


def _write(path: Path, offset: int, size: int, content: bytes) -> None:
    """Put `content` at `offset`, the end of the whole lines, and let the file end there.

    Half a line is overwritten and never cut off first, so that a kill cannot make it vanish without a word.
    """
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        try:
            written = os.pwrite(descriptor, content, offset)
            if written != len(content):
                raise OSError("the disk is full")
        except OSError:
            os.ftruncate(descriptor, max(offset, size))
            raise
        os.ftruncate(descriptor, offset + len(content))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if not offset:
        sync(path.parent)


def _time(now: dt.datetime) -> str:
    return now.strftime("%Y-%m-%dT%H:%M:%S.") + f"{now.microsecond // 1000:03d}Z"


def _user() -> str:
    """The login name, not the environment's USER, which anybody may set."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"
