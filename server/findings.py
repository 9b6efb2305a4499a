"""A run folder in, one checked value out: what report.json and report.html are made from.

    record.json    what `wardround-simulate` measured: rows, claims, round records, config, data sheet, timings
    pictures/      npz files beside it: one example per site, scores per image, intensity histograms (simulation only)
    rounds.jsonl   a deployed campaign instead: one record per finished round, by the coordinator
    campaign.json  the campaign that was agreed on
    about.json     its digest, the versions that ran, the sites' counts (optional)

A deployed run has no pictures, whatever lies in its folder: the coordinator must never hold one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.closing import closing_record
from shared.errors import DataError

SETTINGS = ("clean", "degraded", "local", "pooled", "federated", "personalised")
ROW_KEYS = ("method", "setting", "seed", "data", "degradation", "split", "site", "test_site", "n")
_REQUIRED: Mapping[str, type | tuple[type, ...]] = {
    "experiment": str,
    "seeds": list,
    "config_digest": str,
    "versions": dict,
    "wall_s": (int, float),
    "rows": list,
    "claims": list,
}
STUDY_KEYS = {"budget", "planned", "tables", "cells"}
"""Of `study`, which the report of a grid of cells has beside the contract's keys (simulation/study/run.py)."""
_OPTIONAL: Mapping[str, type] = {"runs": list, "config": dict, "sites": dict, "timings": dict}


@dataclass(frozen=True, slots=True)
class Run:
    """One training run of a report: a method and a seed, with its round records."""

    method: str
    seed: int
    rounds: tuple[Mapping[str, Any], ...]
    pictures: Path | None = None


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything a report is made from. `report` is the contract's part; the rest is for the page only."""

    report: Mapping[str, Any]
    runs: tuple[Run, ...]
    config: Mapping[str, Any]
    deployed: bool
    sites: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)


def read_findings(run_dir: Path) -> Findings:
    """Read a run folder of either kind; DataError names the first thing that cannot be used."""
    if (run_dir / "record.json").is_file():
        return _simulated(run_dir)
    if (run_dir / "rounds.jsonl").is_file():
        record = _checked(closing_record(run_dir), "rounds.jsonl")
        run = Run(record["method"], record["seeds"][0], tuple(record["rounds"]))
        return Findings(_contract(record), (run,), record["config"], deployed=True, sites=record["sites"])
    raise DataError(
        "run folder holds neither record.json (simulation) nor rounds.jsonl (coordinator); "
        "give the folder of a run that finished at least one round"
    )


def _simulated(run_dir: Path) -> Findings:
    try:
        record = json.loads((run_dir / "record.json").read_text(), parse_constant=lambda _: None)
    except (OSError, ValueError):
        raise DataError("record.json is not readable JSON; run the simulation again, or restore the file") from None
    record = _checked(record, "record.json")
    runs = tuple(
        Run(run["method"], run["seed"], tuple(run["rounds"]), _pictures(run_dir, run["method"], run["seed"]))
        for run in record["runs"]
    )
    return Findings(
        _contract(record), runs, record["config"], deployed=False, sites=record["sites"], timings=record["timings"]
    )


def _pictures(run_dir: Path, method: str, seed: int) -> Path | None:
    path = run_dir / "pictures" / f"{Path(method).name}-seed{seed}.npz"
    return path if path.is_file() else None


def _checked(record: Any, name: str) -> dict[str, Any]:
    """The record with every key a report needs, each of its type; the rest of the page may then rely on it."""
    if not isinstance(record, dict):
        raise DataError(f"{name} must hold a JSON object, got {type(record).__name__}; restore the file")
    for key, kind in {**_REQUIRED, **_OPTIONAL}.items():
        value = record.setdefault(key, _OPTIONAL[key]()) if key in _OPTIONAL else record.get(key)
        if not isinstance(value, kind):
            raise DataError(f"{name} has no usable {key!r}; run the campaign again, or restore the file")
    for row in record["rows"]:
        missing = [key for key in ROW_KEYS if not isinstance(row, dict) or key not in row]
        if missing or row["setting"] not in SETTINGS:
            raise DataError(f"{name} has a row without {', '.join(missing) or 'a known setting'}; restore the file")
    for claim in record["claims"]:
        if not isinstance(claim, dict) or not {"claim", "value", "target", "holds"} <= claim.keys():
            raise DataError(f"{name} has a claim without claim, value, target or holds; restore the file")
    study = record.get("study")
    if study is not None and not (isinstance(study, dict) and study.keys() >= STUDY_KEYS):
        raise DataError(f"{name} has a study without {', '.join(sorted(STUDY_KEYS))}; run the study again")
    for run in record["runs"]:
        if not isinstance(run, dict) or not {"method", "seed", "rounds"} <= run.keys():
            raise DataError(f"{name} has a run without method, seed or rounds; restore the file")
    return record


def _contract(record: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of report.json, with what is not a finite number left out of the rows: JSON has no NaN."""
    report = {key: record[key] for key in _REQUIRED}
    report["rows"] = [{key: value for key, value in row.items() if _finite(value)} for row in record["rows"]]
    if record.get("study") is not None:
        report["study"] = record["study"]
    return report


def _finite(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))
