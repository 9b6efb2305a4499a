"""Entries of an audit log in, those that a person asked for out: filtered, in words, or copied for another program."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shared.audit import ANCHOR, Anchor, Entry, Verified, head_path, read
from shared.errors import ConfigError, DataError


def add_filters(show: argparse.ArgumentParser) -> None:
    show.add_argument("--event", metavar="NAME", help="only events of this name or below: campaign, round.left ...")
    show.add_argument("--campaign", metavar="NAME|DIGEST", help="only what concerns it")
    show.add_argument("--since", metavar="YYYY-MM-DD", help="only from this day on (UTC)")
    show.add_argument("--until", metavar="YYYY-MM-DD", help="only up to and with this day (UTC)")
    show.add_argument("--last", type=int, metavar="N", help="only the last N of these")
    show.add_argument("--json", action="store_true", help="for programs")


def shown(entries: Iterable[Entry], arguments: argparse.Namespace) -> list[Entry]:
    """The entries that the filters leave; ConfigError for a date or a number that is none."""
    since, until = _day("--since", arguments.since), _day("--until", arguments.until)
    if arguments.last is not None and arguments.last < 1:
        raise ConfigError(f"--last must be 1 or more, got {arguments.last}")
    left = [
        entry
        for entry in entries
        if (since is None or entry.time[:10] >= since)
        and (until is None or entry.time[:10] <= until)
        and (arguments.event is None or f"{entry.event}.".startswith(f"{arguments.event}."))
        and (arguments.campaign is None or _concerns(entry, arguments.campaign))
    ]
    return left[-arguments.last :] if arguments.last is not None else left


def _day(option: str, text: str | None) -> str | None:
    try:
        return None if text is None else dt.date.fromisoformat(text).isoformat()
    except ValueError:
        raise ConfigError(f"{option} must be a date as 2026-01-31, got {text!r}") from None


def _concerns(entry: Entry, campaign: str) -> bool:
    digest = str(entry.facts.get("digest", ""))
    return entry.facts.get("campaign") == campaign or (len(campaign) >= 8 and digest.startswith(campaign))


def print_entries(out: Console, entries: Sequence[Entry], *, as_json: bool, title: str) -> None:
    if as_json:
        print(json.dumps([asdict(entry) for entry in entries], indent=1))
        return
    if not entries:
        out.print("Nothing of this kind stands in the audit log.")
        return
    table = Table(title=title)
    for column in ("no.", "time (UTC)", "by", "event", "facts"):
        table.add_column(column, overflow="fold")  # nothing is cut off: digests are there to be compared
    for entry in entries:
        facts = ", ".join(f"{name} {_short(value)}" for name, value in entry.facts.items() if value != "")
        table.add_row(str(entry.number), entry.time[:19].replace("T", " "), entry.by, entry.event, escape(facts))
    out.print(table)


def _short(value: object) -> str:
    """Certificates and keys are for programs; digests and names are there to be compared whole."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else f"({len(text)} characters, see --json)"


def print_verified(out: Console, found: Verified) -> None:
    if not found.last:
        out.print("The audit log is empty.")
        return
    out.print(
        f"Whole: entries up to {found.last}, from {found.first_time} to {found.last_time}; {found.entries} in file"
    )
    out.print(f"Head: {found.last} {found.head}")
    if found.anchors:
        out.print(f"It leads to all heads of it that were kept here: {found.anchors}")
    for note in found.notes:
        out.print(f"Note: {note}")


def anchors_of(log: Path, name: str) -> tuple[Anchor, ...]:
    """The heads of another's log that this log kept as they arrived."""
    kept = [entry.facts for entry in read(log) if entry.event == ANCHOR and entry.facts.get("of") == name]
    return tuple(Anchor(int(facts["number"] or 0), str(facts["head"])) for facts in kept)


def export(log: Path, out: Path) -> int:
    """A copy of the log, JSON lines, and of its head file beside it; returns how many entries.

    Lines are copied as they are, so that the copy verifies like the log itself. Never over a file that is there.
    """
    entries = read(log)
    if not entries:
        raise DataError("the audit log is empty; there is nothing to export")
    for source, target in ((log, out), (head_path(log), head_path(out))):
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise ConfigError(f"{target.name} exists already; choose another --out") from None
        except OSError:
            raise ConfigError(f"{target.name} cannot be written there; choose another --out") from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(source.read_bytes() if source.exists() else b"")
    return len(entries)
