"""`wardround-simulate experiment=enhancement`: every cell that is not there yet, then the report over all that are.

    run_dir/cells/<key>.json     a finished cell; it is never run again unless fresh=true
    run_dir/data, judges         what cells share

An interruption loses the cell that was running. Several processes may share a run folder: each takes the next cell that
nobody works at, so the same command started twice uses two cores. A cell names the code that it was run with; cells of
earlier code are kept and counted in the report, since a study takes days and code changes daily.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from server.about import versions
from server.report import write_report
from server.wording import duration_shown
from shared.checkpoint import write_atomically
from shared.config import MachineConfig, SimulationConfig, StudyConfig, campaign_digest, to_dict, without_places
from shared.errors import ConfigError, DataError, PeerError, RefusedError
from shared.locks import free, locked
from simulation.study.cell import Result, Say, conditions, run_cell
from simulation.study.claims import claims_of as enhancement_claims
from simulation.study.generation import claims_of as generation_claims
from simulation.study.generation_cells import generation_conditions, run_generation_cell
from simulation.study.grid import Cell, common_of, planned, tables_of, with_roots
from simulation.study.personal_cells import personal_conditions, run_personal_cell
from simulation.study.personal_claims import claims_of as personal_claims
from simulation.study.recognisers import recognition_conditions, run_recogniser_cell
from simulation.study.recognition import claims_of as recognition_claims
from simulation.study.trust_cells import run_trust_cell, trust_conditions
from simulation.study.trust_claims import claims_of as trust_claims

ROOT = Path(__file__).parents[2]
ROOMS = ("client", "server", "shared", "simulation")
PAGES = (
    *("server/study", "server/recognition", "server/generation/", "server/report", "simulation/study/document"),
    *("simulation/study/markdown", "simulation/study/claims", "simulation/study/recognition", "simulation/bench"),
    *("simulation/study/generation.py", "simulation/study/generation_document", "server/personal/"),
    *("simulation/study/personal_claims", "simulation/study/personal_document", "server/trust/"),
    *("simulation/study/trust_claims", "simulation/study/trust_document"),
)
"""Code that shows figures, or measures time; all other code may decide them."""

_CLAIMS = {
    "enhancement": enhancement_claims,
    "recognition": recognition_claims,
    "generation": generation_claims,
    "personalise": personal_claims,
    "trust": trust_claims,
}


def run_study(config: SimulationConfig, console: Console) -> Path:
    """Run what is missing, write the report; returns the path of report.html.

    Raises ConfigError, DataError for a kept cell that cannot be read, PeerError. A cell whose training fails is kept
    as failed, and the next one is run.
    """
    assert config.study is not None
    folder = Path(config.run_dir)
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
    except OSError:
        raise ConfigError("run_dir is a file, lies in one, or may not be written; choose another folder") from None
    cells = planned(with_roots(config.study, config.campaign.data.root), config.budget)
    wanted = [cell for cell in cells if not config.study.only or set(cell.tables) & set(config.study.only)]
    _announce(wanted, folder, console, fresh=config.fresh)
    done = 0
    for number, cell in enumerate(wanted, start=1):
        if config.study.limit is not None and done >= config.study.limit:
            break
        done += _one(cell, f"[{number}/{len(wanted)}]", folder, config, console)
    with locked(folder / "report.lock"):  # the last to write has seen the most cells
        report = write_study(folder, config, cells)
        console.print(f"{sum(_path(folder, cell).is_file() for cell in cells)} of {len(cells)} cells are there")
    return report


def _announce(cells: Sequence[Cell], folder: Path, console: Console, *, fresh: bool) -> None:
    kept = 0 if fresh else sum(_path(folder, cell).is_file() for cell in cells)
    console.print(f"{len(cells)} cells, {kept} of them kept from earlier runs")
    for kind in sorted({cell.missing for cell in cells if cell.missing}):
        number = sum(cell.missing == kind for cell in cells)
        console.print(
            f"{number} cells need the {kind} data and are left out; give study.roots.{kind}=FOLDER, "
            "or data.root=FOLDER with all data sets in it",
            markup=False,
        )


def _one(cell: Cell, place: str, folder: Path, config: SimulationConfig, console: Console) -> int:
    """Run the cell unless it is kept, lacks its data, or another process is at it; 1 if it was run."""
    path = _path(folder, cell)
    if cell.missing or (path.is_file() and not config.fresh):
        return 0
    with free(path.with_suffix(".lock")) as mine:
        if not mine or (path.is_file() and not config.fresh):
            return 0
        words = " ".join(cell.varied) or "one cell"
        console.print(f"{place} {cell.tables[0]}: {words} seed={cell.seed}", markup=False, soft_wrap=True)
        try:
            with console.status("") as status:
                result = _run_of(cell)(cell, folder, config.machine, lambda text: status.update(f"  {text}"))
            kept = {**asdict(result), "code": code_digest(), "overrides": cell.overrides, "seed": cell.seed}
            content = _finite_json(kept)
        except (DataError, PeerError, RefusedError) as error:
            # Training that diverges, a generator that a guard refuses: a result too, and no reason to stop at.
            console.print(f"{place} failed: {error}", markup=False, soft_wrap=True)
            failed = {"failed": str(error), "code": code_digest(), "overrides": cell.overrides, "seed": cell.seed}
            write_atomically(path, json.dumps(failed).encode())
            return 1
        write_atomically(path, content)
        console.print(f"{place} {_shown(result.rows)} in {duration_shown(result.seconds)}", markup=False)
    return 1


def _run_of(cell: Cell) -> Callable[[Cell, Path, MachineConfig, Say], Result]:
    runs = {
        "recognition": run_recogniser_cell,
        "generation": run_generation_cell,
        "personalise": run_personal_cell,
        "trust": run_trust_cell,
    }
    return runs.get(cell.kind, run_cell)


def _finite_json(values: Mapping[str, Any]) -> bytes:
    """Raises DataError for figures that are no numbers, which no page could show."""
    try:
        return json.dumps(values, allow_nan=False).encode()
    except ValueError:
        raise DataError("a figure of the trained model is not finite; lower training.learning_rate") from None


def _shown(rows: Sequence[Mapping[str, Any]]) -> str:
    of_model = [row for row in rows if row["split"] == "test" and row["setting"] not in ("degraded", "clean")]
    if any("domain" in row for row in of_model) and all(row.get("domain") in ("new", "old") for row in of_model):
        of_all = [row for row in of_model if row["test_site"] == "all"]
        return ", ".join(f"{row['domain']} psnr_db {row['psnr_db']:.2f}" for row in of_all)
    of_model.sort(key=lambda row: (row["site"] != "all", row["test_site"] != "all"))  # the row over everybody first
    keys = ("psnr_db", "dice", "accuracy", "judge_dice", "judge_accuracy", "mask_dice", "real_dice", "denoiser_loss")
    return ", ".join(f"{key} {of_model[0][key]:.3f}" for key in keys if key in of_model[0])


def _path(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.key}.json"


def code_digest() -> str:
    digest = hashlib.sha256()
    for room in ROOMS:
        for source in sorted((ROOT / room).rglob("*.py")):
            if not str(source.relative_to(ROOT)).startswith(PAGES):
                digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def _results(folder: Path, cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """The kept cells of the plan, by key; DataError where one cannot be read."""
    kept = {}
    for cell in cells:
        path = _path(folder, cell)
        if path.is_file():
            try:
                values = json.loads(path.read_text(), parse_constant=_refused)
            except (OSError, ValueError, RecursionError):
                values = None
            if not _is_whole(values):
                raise DataError(f"the kept cell {path.name} cannot be read; remove it and run again")
            kept[cell.key] = values
    return kept


def _refused(constant: str) -> None:
    """NaN and infinities, which this program writes into no cell."""
    raise ValueError(constant)


def _is_whole(values: Any) -> bool:
    """Whether a kept cell holds what the report takes from one."""
    if not isinstance(values, dict) or "code" not in values:
        return False
    if "failed" in values:
        return isinstance(values["failed"], str)
    rows, rounds, seconds = (values.get(name) for name in ("rows", "rounds", "seconds"))
    if not (isinstance(rows, list) and isinstance(rounds, list) and isinstance(seconds, int | float)):
        return False
    labelled = bool(rows) and all(isinstance(row, dict) and row.keys() >= _LABELS for row in rows)
    return labelled and all(isinstance(record, dict) for record in rounds) and math.isfinite(seconds)


_LABELS = {"method", "setting", "seed", "data", "degradation", "split", "site", "test_site", "n"}


def write_study(folder: Path, config: SimulationConfig, cells: Sequence[Cell]) -> Path:
    """record.json over all kept cells, then the report."""
    assert config.study is not None
    ended = _results(folder, cells)
    kept = {key: values for key, values in ended.items() if "failed" not in values}
    failed = {key: values["failed"] for key, values in ended.items() if "failed" in values}
    there = [cell for cell in cells if cell.key in kept]
    # Labels anew: the key vouches for the config, and a cell of earlier code may lack one that a page now sorts by.
    rows = [
        {**row, **labels_anew(cell), "table": table}
        for cell in there
        for table in cell.tables
        for row in kept[cell.key]["rows"]
    ]
    code = code_digest()
    record = {
        "experiment": config.experiment,
        "seeds": sorted({cell.seed for cell in there}),
        "config_digest": campaign_digest(config.campaign),
        "versions": versions(),
        "wall_s": sum(kept[cell.key]["seconds"] for cell in there),
        "rows": rows,
        "claims": _CLAIMS[config.study.kind](rows, [_sheet(cell, kept[cell.key]) for cell in there]),
        "runs": [],
        "config": without_places(to_dict(config)),
        "sites": {},
        "timings": {},
        "study": {
            "kind": config.study.kind,
            "budget": config.budget,
            "planned": len(cells),
            "tables": _tables(config.study, config.budget, cells, set(kept), failed),
            "earlier_code": sum(kept[cell.key]["code"] != code for cell in there),
            "cells": [_sheet(cell, kept[cell.key]) for cell in there],
        },
    }
    write_atomically(folder / "record.json", (json.dumps(record, allow_nan=False) + "\n").encode())
    return write_report(folder)


def labels_anew(cell: Cell) -> dict[str, Any]:
    words = {
        "recognition": recognition_conditions,
        "generation": generation_conditions,
        "personalise": personal_conditions,
        "trust": trust_conditions,
    }
    return {**conditions(cell), **(words[cell.kind](cell) if cell.kind in words else {})}


def _tables(
    study: StudyConfig, budget: str, cells: Sequence[Cell], kept: Set[str], failed: Mapping[str, str]
) -> list[dict[str, Any]]:
    tables = []
    for table in tables_of(study, budget):
        of_table = [cell for cell in cells if table.name in cell.tables]
        missing = [cell for cell in of_table if cell.key not in kept]
        tables.append(
            {
                "name": table.name,
                "title": table.title,
                "question": table.question,
                "common": common_of(table, study, budget),
                "planned": len(of_table),
                "done": len(of_table) - len(missing),
                "missing": [_named(cell, failed) for cell in missing],
            }
        )
    return tables


def _named(cell: Cell, failed: Mapping[str, str]) -> str:
    words = f"{' '.join(cell.varied)} seed={cell.seed}"
    return f"{words} (failed: {failed[cell.key]})" if cell.key in failed else words


def _sheet(cell: Cell, kept: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "key": cell.key,
        "tables": list(cell.tables),
        "setting": cell.setting,
        "seed": cell.seed,
        "overrides": list(cell.overrides),
        "seconds": kept["seconds"],
        "rounds": kept["rounds"],
        **({"pictures": kept["pictures"]} if kept.get("pictures") else {}),
    }
