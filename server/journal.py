"""What happens in a run, line by line, from the ServerApp's process to whoever watches: `run_dir/events.jsonl`.

In: events. Out: one JSON line per event ({"at", "event", ...}), appended; and the same in words. A line says which leg
a run is waiting on: a site that declined, a round that is tried again, a reply that does not come.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared.events import Event, RoundFinished

FILE = "events.jsonl"


def append_event(run_dir: Path, event: Event) -> None:
    """A finished round's figures are in rounds.jsonl and not written twice."""
    values = {
        key: value for key, value in asdict(event).items() if not isinstance(event, RoundFinished) or key != "record"
    }
    line = {"at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "event": type(event).__name__, **values}
    with (run_dir / FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")


def size(run_dir: Path) -> int:
    """Where the events of a run that starts now will begin."""
    path = run_dir / FILE
    return path.stat().st_size if path.exists() else 0


def events_from(run_dir: Path, offset: int) -> tuple[list[Mapping[str, Any]], int]:
    """The whole lines from a byte offset on, and the offset behind them; half a line waits for the next look."""
    try:
        with (run_dir / FILE).open("rb") as file:
            file.seek(offset)
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return [], offset
    whole = [line for line in lines if line.endswith(b"\n")]
    events = (_event(line) for line in whole)
    return [event for event in events if event is not None], offset + sum(map(len, whole))


def _event(line: bytes) -> Mapping[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def in_words(event: Mapping[str, Any]) -> str | None:
    """One line for a person; None for what the line of a finished round says better."""
    match event:
        case {"event": "SiteJoined", "site": site, "counts": counts}:
            return f"{site} joined with {counts.get('patients', '?')} patients{_without(counts)}"
        case {"event": "SiteRefused", "site": site, "reason": reason}:
            return f"{site or 'a site'} does not take part: {reason}"
        case {"event": "PhaseStarted", "phase": phase, "number": number, "phases": phases}:
            return f"phase {number} of {phases}: {phase}"
        case {"event": "RoundStarted", "round": number, "rounds": rounds, "attempt": attempt, "sites": sites}:
            name = f"round {number}" if number <= rounds else "closing evaluation"
            again = f" (try {attempt})" if attempt > 1 else ""
            return f"{name}{again} sent to {', '.join(sites)}"
        case {"event": "SiteReplied", "site": site, "round": number, "reason": reason}:
            return f"  {site} is out of round {number}: {reason}" if reason else f"  {site} replied"
        case {"event": "RoundFailed", "round": number, "reason": reason, "attempts_left": left}:
            return f"round {number} failed: {reason}; tries left: {left}"
        case {"event": "CampaignResumed", "round": number}:
            return f"going on after round {number}"
    return None


def _without(counts: Mapping[str, Any]) -> str:
    """Which labels a site has none of: it takes part all the same, and an operator should know that it is no error."""
    diagnosed = [count for key, count in counts.items() if key.startswith("diagnoses.")]
    kinds = [("masks", [counts["masks"]] if "masks" in counts else []), ("diagnoses", diagnosed)]
    lacking = [kind for kind, found in kinds if found and not any(found)]
    return f", without {' and '.join(lacking)}" if lacking else ""
