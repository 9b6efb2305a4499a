"""Round records in, `rounds.jsonl` out, and back: one JSON line per finished round, readable while the run goes on.

The file is written whole and put in place by a rename: a killed run leaves no half line, a resumed one no second line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, get_args

from shared.checkpoint import write_atomically
from shared.config import Phase

RoundRecord: TypeAlias = Mapping[str, Any]
"""{"round", "seconds", "participants", "dropped": {site: reason}, "bytes_up", "bytes_down", "num_samples": {site: n},
"images": {site: {part: n}} (shared.weights.PARTS), "update_norm" (of what is learnt), "training": {site: {...}},
"evaluation": {site: {metric: {"count", "total", "total_sq", "quantiles"}}}}, and where the campaign promotes
"promotion": {"open", "cosine", "added_share"} (server/strategies/promotion.py); with a generator "phase".

`evaluation` of round r judges the weights that round r - 1 made; the closing record carries round = rounds + 1."""

FILE = "rounds.jsonl"
PHASES = "phases"
"""Folder of a run with a folder for each phase of a generator (server/phases.py)."""


def write_records(run_dir: Path, records: Sequence[RoundRecord]) -> None:
    lines = (json.dumps(record, allow_nan=False) + "\n" for record in records)
    write_atomically(run_dir / FILE, "".join(lines).encode())


def read_records(run_dir: Path) -> list[RoundRecord]:
    """The records of a run, oldest first; lines that are not records (a disk that filled up) are left out."""
    try:
        lines = (run_dir / FILE).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [record for line in lines if (record := _record(line)) is not None]


def all_records(run_dir: Path) -> list[RoundRecord]:
    """Those of a generator's phases, in their order, and then the run's own."""
    folders = [run_dir / PHASES / phase for phase in get_args(Phase)]
    return [record for folder in (*folders, run_dir) for record in read_records(folder)]


def is_closing(record: RoundRecord) -> bool:
    """The round that only evaluates."""
    return not record.get("training")


def _record(line: str) -> RoundRecord | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("round"), int) else None
