"""A simulation config in, one de-identified store per site out: hospitals written as DICOM, then ingested.

Both steps keep what is already there: hospitals of the same recipe are not written again, and a store of the same
recipe is not ingested again. `data=store` skips both and takes the stores that lie under data.root.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from shared.config import SimulationConfig, to_dict
from shared.errors import ConfigError, DataError

OnProgress = Callable[[str, str, int, int], None]
"""(stage, site, done, total)"""


@dataclass(frozen=True, slots=True)
class Prepared:
    """One site's store and what ingest made of its folder: (outcome, reason, count) lines, empty for `data=store`."""

    store: Path
    table: tuple[tuple[str, str, int], ...] = ()


def prepare(config: SimulationConfig, seed: int, folder: Path, on_progress: OnProgress) -> dict[str, Prepared]:
    """Site name -> prepared store, in the order of the sites."""
    seeded = replace(config, campaign=replace(config.campaign, seed=seed))
    if config.campaign.data.kind == "store":
        return _existing_stores(seeded)
    from simulation.hospitals import write_hospitals

    hospitals = write_hospitals(
        seeded, folder / "hospitals", on_progress=lambda site, done, total: on_progress("write", site, done, total)
    )
    return {hospital.name: _ingested(seeded, hospital, folder / "sites", on_progress) for hospital in hospitals}


def _existing_stores(config: SimulationConfig) -> dict[str, Prepared]:
    from simulation.hospitals.cohort import check_labels

    root = config.campaign.data.root
    if root is None or not Path(root).is_dir():
        raise ConfigError("data=store needs data.root=FOLDER, a folder that holds one <site>/store per site")
    found = {path.parent.name: Prepared(path) for path in sorted(Path(root).glob("*/store"))}
    if len(found) < config.sites:
        raise ConfigError(
            f"data.root holds {len(found)} stores (<site>/store), got sites={config.sites}; ask for fewer"
        )
    taken = dict(list(found.items())[: config.sites])
    check_labels(config.campaign.data, list(taken))
    return taken


def _ingested(config: SimulationConfig, hospital: Path, sites: Path, on_progress: OnProgress) -> Prepared:
    from client.ingest.run import ingest
    from shared.trust import keystore

    site, store = hospital.name, sites / hospital.name / "store"
    marker = sites / site / "ingested.json"
    secret = _secret(config.campaign.seed, site)
    recipe = _recipe(config, hospital, secret)
    if kept := _kept(marker, recipe):
        return Prepared(store, kept)
    shutil.rmtree(sites / site, ignore_errors=True)
    (sites / site).mkdir(parents=True)
    keystore.write_private(sites / site / "secret", secret)
    labels = json.loads((hospital / "site.json").read_text())
    report = ingest(
        hospital,
        store,
        config.campaign.data,
        secret=secret,
        mask_codes=labels["mask_codes"],
        diagnosis_codes=labels["diagnosis_codes"],
        on_progress=lambda stage, done, total: on_progress(f"ingest: {stage}", site, done, total),
    )
    table = tuple((str(outcome), str(reason), int(count)) for outcome, reason, count in report.table())
    marker.write_text(json.dumps({"recipe": recipe, "table": table}))
    return Prepared(store, table)


def _secret(seed: int, site: str) -> bytes:
    """A simulated site's secret follows from the seed, unlike a real one's: pseudonyms decide the splits and the order
    of slices, so a random one would give every run folder other weights for the same seed."""
    return hashlib.sha256(f"secret of the simulated site\x1f{seed}\x1f{site}".encode()).digest()


def _recipe(config: SimulationConfig, hospital: Path, secret: bytes) -> str:
    """Digest of what a store is made from: the rule, the secret, the hospital as written, the code that reads it."""
    import client.ingest

    code = hashlib.sha256()
    for path in sorted(Path(client.ingest.__path__[0]).glob("*.py")):
        code.update(path.read_bytes())
    written = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in hospital.rglob("*.*"))
    data = {**to_dict(config.campaign.data), "root": None, "split": None}
    del data["labels"]  # which labels a training uses changes no store
    parts = [data, written, code.hexdigest(), hashlib.sha256(secret).hexdigest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _kept(marker: Path, recipe: str) -> tuple[tuple[str, str, int], ...] | None:
    try:
        kept = json.loads(marker.read_text())
        return tuple((str(a), str(b), int(c)) for a, b, c in kept["table"]) if kept["recipe"] == recipe else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{marker.name} of a simulated site is damaged; remove its folder and run again") from None
