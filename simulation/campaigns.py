"""A simulation config in, a run folder with report.html and report.json out; one cell per seed, kept once done.

    run_dir/seed-0/hospitals/    DICOM as the simulated hospitals hold it
    run_dir/seed-0/sites/        each site's de-identified store
    run_dir/seed-0/federation/   campaign.json, checkpoints/, rounds.jsonl: what a coordinator has
    run_dir/seed-0/cell.json     what the folder was made from; another config or other code starts the cell over
    run_dir/seed-0/result.json   the finished cell: a later run with the same config takes it as it is

An interrupted run loses at most the round that it was in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console

from server.report import claims_table, summary_table, write_report
from shared.checkpoint import write_atomically
from shared.config import CampaignConfig, SimulationConfig, to_dict
from shared.errors import ConfigError, DataError
from shared.locks import free
from shared.networks import build_networks, resolved_device
from simulation.adversaries import run_poisoned
from simulation.compare import Comparison, check_elsewhere, compare, elsewhere_config, write_record
from simulation.pictures import write_pictures
from simulation.prepare import Prepared, prepare
from simulation.progress import Display

ROOT = Path(__file__).parents[1]


def simulate(config: SimulationConfig, console: Console) -> Path:
    """Run every seed, write the report, print the table; returns the path of report.html.

    Raises ConfigError, DataError, PeerError: see shared/errors.py.
    """
    resolved_device(config.machine)  # before anything is written: every site would decline
    check_elsewhere(config)
    if config.campaign.objective.kind == "vgg-wgan":
        from shared.enhance.perceptual import load_vgg19

        load_vgg19(str(config.campaign.objective.vgg_weights))
    if config.study is not None:
        from simulation.study.run import run_study

        return run_study(config, console)
    run_dir = Path(config.run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise ConfigError("run_dir is a file, lies in one, or may not be written; choose another folder") from None
    with _locked(run_dir):
        return _simulate(config, run_dir, console)


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """One run at a time in a folder."""
    with ExitStack() as held:
        try:
            mine = held.enter_context(free(run_dir / ".lock"))
        except OSError:
            raise ConfigError("run_dir may not be written; choose another folder") from None
        if not mine:
            raise ConfigError("another run is writing this run_dir; wait until it ends, or choose another folder")
        yield


def _simulate(config: SimulationConfig, run_dir: Path, console: Console) -> Path:
    cells = [_cell(config, seed, run_dir / f"seed-{seed}", console) for seed in config.seeds]
    timings: dict[str, float] = {}
    for cell in cells:
        for part, value in cell.timings.items():
            timings[part] = timings.get(part, 0.0) + value
    wall_s = sum(cell.wall_s for cell in cells)
    write_record(run_dir, config, [cell.comparison for cell in cells], wall_s=wall_s, timings=timings)
    report = write_report(run_dir)
    written = json.loads((run_dir / "report.json").read_text())
    console.print(summary_table(written))
    console.print(claims_table(written))
    return report


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """A finished seed, and the seconds that it took when it was run: of its parts, and in all."""

    comparison: Comparison
    timings: dict[str, float]
    wall_s: float


def _cell(config: SimulationConfig, seed: int, folder: Path, console: Console) -> Cell:
    """One seed from DICOM to comparison, or its kept result."""
    key = cell_key(config, seed)
    if config.fresh or _key_of(folder) != key:
        for stale in ("federation", "result.json", "result.npz"):
            _remove(folder / stale)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "cell.json", json.dumps({"key": key}).encode())
    elif kept := load_cell(folder):
        console.print(f"seed {seed}: kept from an earlier run (fresh=true runs it again)")
        return kept
    campaign = dataclasses.replace(config.campaign, seed=seed)
    if campaign.generate.on and not campaign.augment.generated:
        raise ConfigError(
            f"generate={campaign.generate.kind} alone trains a generator and nothing that could be compared; add "
            "augment=emit-diff, or look at generators with experiment=generation"
        )
    seconds: dict[str, float] = {}
    began = first = time.perf_counter()
    with Display(console) as display:
        display.stage(f"seed {seed}: {config.sites} hospitals")
        prepared = prepare(config, seed, folder, display.prepared)
        for line in ingest_lines(prepared):
            display.line(line)
        stores = {site: item.store for site, item in prepared.items()}
        for line in privacy_lines(campaign, stores):
            display.line(line)
        seconds["hospitals and ingest"] = time.perf_counter() - began

        display.stage(f"seed {seed}: federated {campaign.objective.kind}")
        began = time.perf_counter()
        place = folder / "federation"
        federated = run_poisoned(
            campaign, stores, place, config.adversaries or {}, config.transport, config.machine, display.event
        )
        seconds["federation"] = time.perf_counter() - began

        elsewhere = _prepared_elsewhere(config, seed, folder, display)
        display.stage(f"seed {seed}: comparators")
        comparison = compare(
            config, seed, stores, federated, machine=config.machine, on_event=display.model, elsewhere=elsewhere
        )
    cell = Cell(comparison, seconds, time.perf_counter() - first)
    save_cell(folder, cell)
    return cell


def _prepared_elsewhere(config: SimulationConfig, seed: int, folder: Path, display: Display) -> dict[str, Path]:
    """The stores of `data.test=`, made like the others; none without it."""
    if config.cross is None:
        return {}
    display.stage(f"seed {seed}: patients of {config.cross.data.kind}, to test on")
    there = elsewhere_config(config)
    return {site: item.store for site, item in prepare(there, seed, folder / "elsewhere", display.prepared).items()}


def cell_key(config: SimulationConfig, seed: int) -> str:
    """Digest of what a cell's result depends on: config, seed and code; not where it runs or how it is shown."""
    values = to_dict(config)
    for name in ("seeds", "run_dir", "fresh", "experiment", "budget", "study"):
        del values[name]
    values["campaign"] |= {"seed": seed}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for path in _sources():
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _sources() -> Iterator[Path]:
    for package in ("client", "server", "shared", "simulation"):
        yield from sorted((ROOT / package).rglob("*.py"))


def _key_of(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / "cell.json").read_text())["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_cell(folder: Path, cell: Cell) -> None:
    """Keep a finished cell; result.json is written last, so that it stands for a whole cell."""
    write_pictures(folder / "result.npz", cell.comparison.pictures)
    names = [field.name for field in dataclasses.fields(cell.comparison) if field.name != "pictures"]
    values = {name: getattr(cell.comparison, name) for name in names}
    kept = {"comparison": values, "timings": cell.timings, "wall_s": cell.wall_s}
    write_atomically(folder / "result.json", json.dumps(kept).encode())


def load_cell(folder: Path) -> Cell | None:
    """The kept cell of a folder, None where there is none; DataError where it cannot be read."""
    if not (folder / "result.json").is_file():
        return None
    try:
        kept = json.loads((folder / "result.json").read_text())
        values = kept["comparison"]
        with np.load(folder / "result.npz", allow_pickle=False) as arrays:
            pictures = {name: arrays[name] for name in arrays.files}
        lists = {name: tuple(values.get(name, ())) for name in ("rows", "rounds", "phases")}
        comparison = Comparison(**{**values, **lists, "pictures": pictures})
        return Cell(comparison, kept["timings"], kept["wall_s"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"the kept result in {folder.name} cannot be read; run again with fresh=true") from None


def ingest_lines(prepared: dict[str, Prepared]) -> Iterator[str]:
    """What became of each site's files, a line per site: `north: 288 image stored, 17 segmentation used as label`."""
    for site, item in prepared.items():
        if item.table:
            yield f"  {site}: " + ", ".join(f"{count} {reason} ({outcome})" for outcome, reason, count in item.table)


def privacy_lines(campaign: CampaignConfig, stores: Mapping[str, Path]) -> list[str]:
    """How an update will stand out of its noise; nothing without privacy."""
    if not campaign.privacy.on:
        return []
    from client.dataset import open_site
    from shared.privacy.parts import trained_counts
    from shared.privacy.words import expected

    patients = [open_site(store, site, campaign).counts["train_patients"] for site, store in stores.items()]
    return expected(campaign, trained_counts(build_networks(campaign), campaign), patients).splitlines()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
