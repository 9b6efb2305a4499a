"""Events of a run in, a live display out: rounds, sites, steps, time left; and one plain line per finished round.

On a terminal bars move; into a file or a CI log only the lines go. Nothing here changes a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from server.wording import METRICS, duration_shown, shown
from shared.events import (
    CampaignResumed,
    Event,
    PhaseStarted,
    RoundFailed,
    RoundFinished,
    RoundStarted,
    SiteRefused,
    SiteReplied,
    SiteStep,
)
from shared.metrics import pool
from shared.wire.messages import read_metrics


@dataclass(frozen=True, slots=True)
class ModelStep:
    """A comparator (`local: north`, `pooled`, `judge`) has done `done` of all its `total` steps."""

    model: str
    done: int
    total: int


class Display:
    """Give its methods to what runs: `prepared` to prepare, `event` to run_federation, `model` to compare."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._rounds, self._sites = 1, 1

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def line(self, text: str) -> None:
        """A line that stays above the bars; site names and reasons are shown as they are, not as markup."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stage(self, name: str) -> None:
        """A new part of the run begins: bars of the part before it go."""
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks.clear()
        self.line(name)

    def prepared(self, stage: str, site: str, done: int, total: int) -> None:
        """Progress of writing hospitals and of ingest, in files."""
        self._move(f"{stage} {site}", done, total)

    def model(self, step: ModelStep) -> None:
        """Progress of a comparator."""
        self._move(step.model, step.done, step.total)

    def event(self, event: Event) -> None:
        """Progress of a federation."""
        show = _SHOW.get(type(event))
        if show is not None:
            show(self, event)

    def _move(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(f"  {name}", total=total)
        self._bars.update(self._tasks[name], completed=done, total=total)

    def _started(self, event: RoundStarted) -> None:
        self._rounds, self._sites = event.rounds, len(event.sites)
        if event.attempt > 1:
            self.line(f"round {event.round}: attempt {event.attempt}")

    def _stepped(self, event: SiteStep) -> None:
        before = ((event.round - 1) * self._sites) * event.steps
        self._move("all rounds", max(self._done("all rounds"), before) + 1, self._rounds * self._sites * event.steps)
        self._move(event.site, event.step, event.steps)

    def _done(self, name: str) -> int:
        return (
            int(self._bars.tasks[self._bars.task_ids.index(self._tasks[name])].completed) if name in self._tasks else 0
        )

    def _finished(self, event: RoundFinished) -> None:
        self.line(round_line(event))


def round_line(event: RoundFinished) -> str:
    """`round 3/8  PSNR 25.31 dB  Dice 0.812  gate open 0.53  3 sites  4.1 s`; evaluation is of the round before."""
    record = event.record
    name = "closing" if event.round > event.rounds else f"round {event.round}/{event.rounds}"
    words = [f"{name:<11}"]
    evaluation = pool(read_metrics(metrics) for metrics in record.get("evaluation", {}).values())
    for key in ("psnr_db", "dice", "accuracy"):
        pooled = evaluation.get(f"enhanced.{key}")
        if pooled is not None and pooled.count:
            words.append(f"{METRICS[key].heading} {shown(key, pooled.mean, unit=True)}")
    words += [f"{key} {pooled.mean:.3g}" for key, pooled in evaluation.items() if key in _OF_GENERATORS]
    gates = [site["gate_open_rate"] for site in record.get("training", {}).values() if "gate_open_rate" in site]
    if gates:
        words.append(f"gate open {sum(gates) / len(gates):.2f}")
    if "promotion" in record:
        words.append(f"promoted {record['promotion']['open']:.2f}")
    count = len(record.get("participants", ()))
    return "  ".join([*words, f"{count} site{'' if count == 1 else 's'}", duration_shown(record["seconds"])])


_OF_GENERATORS = ("edges.loss", "autoencoder.psnr_db", "denoiser.loss", "controlnet.loss")


def _replied(display: Display, event: SiteReplied) -> None:
    if event.reason:
        display.line(f"round {event.round}: {event.site} does not count: {event.reason}")


_SHOW: Mapping[type, Callable[[Display, Any], None]] = {
    PhaseStarted: lambda display, event: display.stage(f"phase {event.number} of {event.phases}: {event.phase}"),
    RoundStarted: Display._started,
    SiteStep: Display._stepped,
    RoundFinished: Display._finished,
    SiteReplied: _replied,
    SiteRefused: lambda display, event: display.line(
        f"refused: {event.site or 'a peer without a name'}: {event.reason}"
    ),
    RoundFailed: lambda display, event: display.line(
        f"round {event.round} failed: {event.reason}; {event.attempts_left} attempts left"
    ),
    CampaignResumed: lambda display, event: display.line(f"resumed after round {event.round}"),
}
