"""A run folder and Flower's Grid in, a trained campaign in the folder out: the coordinator's side of the transport.

The folder holds campaign.json before the run; it gets about.json, checkpoints/, rounds.jsonl and, last, outcome.json. A
run always goes on from the last complete checkpoint, so that `resume` is to start the same run again.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.about import add_site, write_about
from server.asking import Run, ignore
from server.audit import recording
from server.journal import append_event
from server.manifests import manifest_of
from server.outcome import write_outcome
from server.phases import run_phases
from server.rounds import CampaignResult, run_campaign
from shared.config import CampaignConfig, load_campaign
from shared.errors import ConfigError, WardroundError
from shared.events import Event, SiteJoined
from shared.types import Arrays
from shared.wire.flower import GridLink

MARGIN_S = 300.0
"""How long a reply that is too late stays with the SuperLink before it may be thrown away."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Time as deadlines see it; a simulation, where nothing happens while one waits, puts in its own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    poll_s: float = 0.5
    start_up_s: float = 0.0  # as in server.rounds.Run
    in_turns: bool = False


def serve(
    grid: Grid,
    run_dir: Path,
    *,
    allowed: frozenset[str] | None = None,
    on_event: Callable[[Event], None] = ignore,
    clock: Clock | None = None,
) -> CampaignResult:
    """Run the campaign of `run_dir` to its end over `grid`; leaves the outcome there, and raises what went wrong."""
    clock = clock or Clock()

    def noted(event: Event) -> None:
        if isinstance(event, SiteJoined):
            add_site(run_dir, event.site, event.counts)
        on_event(event)

    try:
        campaign = load_campaign(run_dir / "campaign.json")
        write_about(run_dir, campaign)
        ttl_s = max(campaign.rounds.round_deadline_s, campaign.rounds.join_deadline_s) + MARGIN_S
        signed = manifest_of(run_dir)
        only = frozenset(signed.manifest.sites) if signed else None  # nothing is sent to a site that it does not name
        link = GridLink(grid, ttl_s=ttl_s, poll_s=clock.poll_s, sleep=clock.sleep, only=only)
        run = Run(
            campaign,
            link,
            run_dir,
            allowed=allowed,
            on_event=noted,
            now=clock.now,
            start_up_s=clock.start_up_s,
            in_turns=clock.in_turns,
            manifest_digest=signed.digest if signed else "",
        )
        if campaign.phases:
            result = run_phases(run, initial_of_phase)
        else:
            result = run_campaign(run, lambda: initial_weights(campaign))
    except WardroundError as error:
        write_outcome(run_dir, error)
        raise
    except Exception as error:
        write_outcome(run_dir, WardroundError(f"coordinator error: {type(error).__name__}; see its log, then resume"))
        raise
    write_outcome(run_dir, None)
    return result


def initial_weights(campaign: CampaignConfig) -> Arrays:
    """The networks' first weights, from the campaign's seed. The only use of torch at the coordinator."""
    from shared.networks import build_networks
    from shared.weights import to_arrays

    return to_arrays(build_networks(campaign))


def initial_of_phase(campaign: CampaignConfig, left: Arrays) -> tuple[Arrays, Arrays]:
    """What a generator's phase starts with and what it does not train; `left` is what the phases before it have left.

    The ControlNet starts as a copy of the denoiser that was trained.
    """
    from shared.generate.networks import (
        TRAINED,
        build_generator,
        frozen_parts,
        load_parts,
        parts_arrays,
        start_controlnet,
    )

    phase, generator = campaign.generate.phase, build_generator(campaign)
    trained = tuple(dict.fromkeys(name.partition(".")[0] for name in left))
    load_parts(generator, left, trained)
    if "denoiser" in trained and "controlnet" not in trained:
        start_controlnet(generator)
    frozen = parts_arrays(generator, frozen_parts(generator, phase))
    if phase == "train":
        return initial_weights(campaign), frozen
    return parts_arrays(generator, TRAINED[phase]), frozen


app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """`run-dir`: the run's folder, relative to the coordinator's; `sites`: names of its sites, with commas."""
    run_dir = str(context.run_config.get("run-dir", ""))
    if not run_dir:
        raise ConfigError("the run has no run-dir; start it with: wardround-coordinator run")
    sites = frozenset(name for name in str(context.run_config.get("sites", "")).split(",") if name)
    folder = Path(run_dir)
    with alone(folder), recording(Path("."), folder.name) as note:

        def noted(event: Event) -> None:
            append_event(folder, event)
            note(event)

        serve(grid, folder, allowed=sites or None, on_event=noted)


@contextmanager
def alone(run_dir: Path, wait_s: float = 60.0) -> Iterator[None]:
    """One ServerApp per run folder: a stopped one takes seconds to end, and must not save a round after `resume` began.

    The lock goes with its process, however that ends. Raises ConfigError after `wait_s`.
    """
    deadline = time.monotonic() + wait_s
    with (run_dir / "lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    error = ConfigError(
                        f"runs/{run_dir.name} is still held by an earlier run; stop that one, then resume"
                    )
                    write_outcome(run_dir, error)
                    raise error from None
                time.sleep(0.2)
        yield
