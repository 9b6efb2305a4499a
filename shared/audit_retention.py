"""A log whose oldest months are past their retention in, the same log with those months closed by a summary out.

The summary is the log's new first line, signed: which entries it stands for, from when to when, how many of each event,
and the SHA-256 of the last of them, which the first entry that is kept follows. The last line says that it was done.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from shared.audit_entry import CLOSED, MAX_LINE, START, Entry, Scalar, parse
from shared.errors import DataError

DAYS = 2190
"""Six years, as 45 CFR 164.316(b)(2)(i) asks of documentation."""


def due(path: Path, now: dt.datetime, days: int) -> bool:
    """Whether the first entry that is kept is of a month that is over for longer than `days`."""
    try:
        with path.open("rb") as file:
            entry = parse(file.readline(MAX_LINE + 1))
            if entry.event == CLOSED:
                entry = parse(file.readline(MAX_LINE + 1))
    except (FileNotFoundError, DataError):
        return False
    return entry.time < _limit(now, days)


def retired(path: Path, now: dt.datetime, days: int, sign: Callable[[Entry], Entry]) -> list[Entry] | None:
    """The log's new lines, or None where it is not whole: what is damaged is kept as it is."""
    lines = path.read_bytes().split(b"\n")
    if lines.pop():  # half a line: the next append mends it first
        return None
    try:
        entries = [parse(line + b"\n") for line in lines]
    except DataError:
        return None
    former = entries.pop(0) if entries[0].event == CLOSED else None
    old = next((place for place, entry in enumerate(entries) if entry.time >= _limit(now, days)), len(entries))
    if not old or not _whole(former, entries):
        return None
    summary = sign(_summary(former, entries[:old], now))
    tail = entries[-1]
    facts: dict[str, Scalar] = {"first": entries[0].number, "last": summary.last, "entries": old, "days": days}
    told = sign(Entry(tail.number + 1, summary.time, "", "audit.retired", facts, tail.head))
    return [summary, *entries[old:], told]


def _summary(former: Entry | None, old: list[Entry], now: dt.datetime) -> Entry:
    counts = Counter(entry.event for entry in old)
    facts: dict[str, Scalar] = {
        "first": 1,
        "last": old[-1].number,
        "head": old[-1].head,
        "from": str(former.facts["from"]) if former is not None else old[0].time,
        "to": old[-1].time,
        "events": ", ".join(f"{event} {count}" for event, count in sorted(counts.items()))[:4000],
        "before": former.head if former is not None else "",
    }
    time = now.strftime("%Y-%m-%dT%H:%M:%S.") + f"{now.microsecond // 1000:03d}Z"
    return Entry(old[-1].number, time, "", CLOSED, facts, former.head if former is not None else START)


def _whole(former: Entry | None, entries: list[Entry]) -> bool:
    number, head = (former.last, former.head) if former is not None else (0, START)
    for entry in entries:
        if entry.number != number + 1 or entry.previous != head:
            return False
        number, head = entry.number, entry.head
    return True


def _limit(now: dt.datetime, days: int) -> str:
    """The first moment of the month that `days` ago lies in: compares as text with an entry's time."""
    return (now - dt.timedelta(days=days)).strftime("%Y-%m-01T00:00:00.000Z")
