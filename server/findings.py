"""A run folder in, one checked value out: what report.json and report.html are made from.

    record.json    what `wardround-simulate` measured: rows, claims, round records, config, data sheet, timings
    pictures/      npz files beside it: one example per site, scores per image, intensity histograms (simulation only)
    rounds.jsonl   a deployed campaign instead: one record per finished round, by the coordinator
    phases/        the same of each phase of a generator (server/phases.py)
    campaign.json  the campaign that was agreed on
    about.json     its digest, the versions that ran, the sites' counts (optional)

A deployed run has no pictures, whatever lies in its folder: the coordinator must never hold one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.closing import closing_record, phase_files
from server.contract import checked, contract_of, read_json
from shared.config import without_places
from shared.errors import DataError


@dataclass(frozen=True, slots=True)
class Run:
    """One training run of a report: a method and a seed, with its round records."""

    method: str
    seed: int
    rounds: tuple[Mapping[str, Any], ...]
    pictures: Path | None = None
    pseudo_labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Of the final model, by site: offered, accepted, known, right. Only a simulation knows the truth."""
    phases: tuple[Mapping[str, Any], ...] = ()
    """Round records of a generator's phases, which come before `rounds`; alone where nothing else was trained."""


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
    if (run_dir / "rounds.jsonl").is_file() or phase_files(run_dir):
        record = checked(closing_record(run_dir), "rounds.jsonl")
        run = Run(record["method"], record["seeds"][0], tuple(record["rounds"]), phases=tuple(record["phases"]))
        return Findings(
            contract_of(record), (run,), without_places(record["config"]), deployed=True, sites=record["sites"]
        )
    raise DataError(
        "run folder holds neither record.json (simulation) nor rounds.jsonl (coordinator); "
        "give the folder of a run that finished at least one round"
    )


def _simulated(run_dir: Path) -> Findings:
    record = checked(read_json(run_dir / "record.json"), "record.json")
    runs = tuple(
        Run(
            run["method"],
            run["seed"],
            tuple(run["rounds"]),
            _pictures(run_dir, run["method"], run["seed"]),
            run.get("pseudo_labels", {}),
            tuple(run.get("phases", ())),
        )
        for run in record["runs"]
    )
    return Findings(
        contract_of(record),
        runs,
        without_places(record["config"]),
        deployed=False,
        sites=record["sites"],
        timings=record["timings"],
    )


def _pictures(run_dir: Path, method: str, seed: int) -> Path | None:
    path = run_dir / "pictures" / f"{Path(method).name}-seed{seed}.npz"
    return path if path.is_file() else None
