"""A campaign into a run: prepared, submitted to the SuperLink, followed to its end.

In: a signed manifest. Out: a run folder with campaign.json, manifest.json, rounds.jsonl and checkpoints, and a return
that means "completed", or an error with the reason that the ServerApp left. Flower has no resume; ours is a new Flower
run on the same run folder, where the ServerApp goes on at the round that was lost.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from server import processes
from server.bundle import write_bundle, write_run_config
from server.folder import Coordinator
from server.journal import events_from, size
from server.manifests import MANIFEST, check_number
from server.outcome import Outcome, read_outcome, remove_outcome
from server.records import RoundRecord, all_records
from shared.checkpoint import write_atomically
from shared.config import campaign_digest, load_campaign, save_campaign
from shared.errors import ConfigError, PeerError, WardroundError
from shared.manifest import SignedManifest

POLL_S = 0.5
FLOWER_POLL_S = 20.0
"""How often Flower itself is asked: only for a ServerApp that died without a word."""


Turn: TypeAlias = tuple[str, int]
"""(phase or nothing, round)."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """One run under way."""

    run_dir: Path
    run_id: str
    turns: int
    """Rounds of all phases, closing evaluations included."""
    sites: tuple[str, ...]
    known: frozenset[Turn] = frozenset()
    """Rounds that an earlier run of the same folder has finished."""
    journal: int = 0
    """Where this run's events begin in events.jsonl, in bytes."""


def submit(coordinator: Coordinator, signed: SignedManifest, *, resume: bool = False) -> Submitted:
    """Prepare the run folder and start the run, at the sites that the manifest names and no others; with `resume`, on
    the checkpoints of an earlier one."""
    campaign, sites = signed.campaign, tuple(sorted(signed.manifest.sites))
    check_number(campaign, len(sites))
    run_dir = coordinator.run_folder(campaign.name)
    digest = campaign_digest(campaign)
    _check_folder(run_dir, digest, resume=resume)
    _stop_earlier(coordinator, run_dir, resume=resume)
    run_dir.mkdir(parents=True, exist_ok=True)
    save_campaign(campaign, run_dir / "campaign.json")
    write_atomically(run_dir / MANIFEST, signed.to_json())
    remove_outcome(run_dir)
    known = frozenset(map(_turn, all_records(run_dir))) if resume else frozenset()
    journal = size(run_dir)
    app = write_bundle(coordinator.flower / "bundles", digest, signed.digest)
    values = write_run_config(app.parent / "run.toml", str(run_dir.relative_to(coordinator.folder)), sites)
    run_id = processes.start_run(coordinator, app, values)
    _record(run_dir, [*_earlier(run_dir), run_id])
    return Submitted(run_dir, run_id, campaign.total_rounds + max(len(campaign.phases), 1), sites, known, journal)


def _check_folder(run_dir: Path, digest: str, *, resume: bool) -> None:
    agreement = run_dir / "campaign.json"
    if agreement.exists():
        if campaign_digest(load_campaign(agreement)) != digest:
            raise ConfigError(
                f"runs/{run_dir.name} belongs to another agreement of the same name; give this campaign another name"
            )
        if not resume and any((*run_dir.glob("checkpoints/*"), *run_dir.glob("phases/*/checkpoints/*"))):
            raise ConfigError(
                f"runs/{run_dir.name} has finished rounds: continue with resume, or move that folder away to start anew"
            )
    elif resume:
        raise ConfigError(f"nothing to resume: runs/{run_dir.name} does not exist; start it with run")


def _stop_earlier(coordinator: Coordinator, run_dir: Path, *, resume: bool) -> None:
    """Two ServerApps on one run folder would overwrite each other's rounds."""
    for run_id in _earlier(run_dir)[-1:]:
        if processes.run_status(coordinator, run_id).finished:
            continue
        if not resume:
            raise ConfigError(f"runs/{run_dir.name} is under way already; see status, or take it over with resume")
        processes.stop_run(coordinator, run_id)


def _earlier(run_dir: Path) -> list[str]:
    try:
        return [str(run_id) for run_id in json.loads((run_dir / "flower.json").read_text())["run_ids"]]
    except (OSError, ValueError, KeyError):
        return []


def _record(run_dir: Path, run_ids: list[str]) -> None:
    (run_dir / "flower.json").write_text(json.dumps({"run_ids": run_ids}) + "\n")


# ------------------------------------------------------------------------------------------- following


def follow(
    coordinator: Coordinator,
    submitted: Submitted,
    on_round: Callable[[RoundRecord], None],
    on_event: Callable[[Mapping[str, Any]], None],
) -> None:
    """Tell every event and every finished round until the run ends; raises the error that it ended with."""
    seen, journal = set(submitted.known), submitted.journal
    next_question = time.monotonic() + FLOWER_POLL_S
    while True:
        outcome = read_outcome(submitted.run_dir)  # read before the rounds, so that the last round is not missed
        events, journal = events_from(submitted.run_dir, journal)
        for event in events:
            if event.get("event") == "RoundFinished":
                _tell_new(submitted.run_dir, seen, on_round)
            on_event(event)
        _tell_new(submitted.run_dir, seen, on_round)
        if outcome is None and time.monotonic() > next_question:
            outcome = _asked(coordinator, submitted)
            next_question = time.monotonic() + FLOWER_POLL_S
        if outcome is not None:
            outcome.raise_if_failed()
            return
        time.sleep(POLL_S)


def _tell_new(run_dir: Path, seen: set[Turn], on_round: Callable[[RoundRecord], None]) -> None:
    for record in all_records(run_dir):
        if _turn(record) not in seen:
            seen.add(_turn(record))
            on_round(record)


def _turn(record: RoundRecord) -> Turn:
    return str(record.get("phase", "")), int(record["round"])


def _asked(coordinator: Coordinator, submitted: Submitted) -> Outcome | None:
    try:
        status = processes.run_status(coordinator, submitted.run_id)
    except WardroundError:
        return None  # a SuperLink that is just coming back; the next question will tell
    if not status.finished:
        return None
    left = read_outcome(submitted.run_dir)  # it may have come while we asked
    if left is not None:
        return left
    reason = f"the run ended as {status.status} without a word; go on at the lost round with resume"
    return Outcome(completed=False, exit_code=PeerError.exit_code, reason=reason)
