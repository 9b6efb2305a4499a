"""The display tells what happened, in lines that survive without a terminal, and takes no text as markup."""

from __future__ import annotations

import io

from rich.console import Console

from shared.events import RoundFailed, RoundFinished, RoundStarted, SiteRefused, SiteReplied, SiteStep
from simulation.progress import Display, ModelStep, round_line

RECORD = {
    "seconds": 4.12,
    "participants": ["a", "b"],
    "training": {"a": {"gate_open_rate": 0.4}, "b": {"gate_open_rate": 0.6}},
    "evaluation": {
        "a": {"enhanced.psnr_db": {"count": 1, "total": 20.0, "total_sq": 400.0}},
        "b": {"enhanced.psnr_db": {"count": 3, "total": 72.0, "total_sq": 1728.0}},
    },
}


def show(*, terminal: bool) -> tuple[str, Display]:
    out = io.StringIO()
    display = Display(Console(file=out, width=120, force_terminal=terminal))
    with display:
        display.stage("federation")
        display.prepared("ingest", "a", 3, 9)
        display.event(RoundStarted(1, 8, 1, ("a", "b")))
        for step in range(1, 5):
            display.event(SiteStep("a", 1, step, 4))
        display.event(SiteReplied("b", 1, "[red]late[/red]"))
        display.event(RoundFinished(1, 8, RECORD))
        display.event(RoundFailed(2, "quorum", 1))
        display.event(SiteRefused("", "other digest"))
        display.model(ModelStep("pooled", 5, 10))
    return out.getvalue(), display


def test_round_line_pools_over_images_and_averages_gates_over_sites() -> None:
    line = round_line(RoundFinished(3, 8, RECORD))
    assert line == "round 3/8    PSNR 23.00 dB  gate open 0.50  2 sites  4.1 s"
    promoted = {**RECORD, "promotion": {"open": 0.5, "cosine": 0.1, "added_share": 0.2}}
    assert "gate open 0.50  promoted 0.50  2 sites" in round_line(RoundFinished(3, 8, promoted))
    closing = RoundFinished(9, 8, {"participants": ["a"], "seconds": 0.5})
    assert round_line(closing).split() == ["closing", "1", "site", "0.5", "s"]


def test_log_without_a_terminal_has_lines_and_no_bars() -> None:
    text, _ = show(terminal=False)
    lines = text.splitlines()
    assert lines[0] == "federation"
    assert "round 1: b does not count: [red]late[/red]" in lines
    assert "round 2 failed: quorum; 1 attempts left" in lines
    assert "refused: a peer without a name: other digest" in lines
    assert "\x1b" not in text
    assert len(lines) == 5


def test_terminal_shows_bars_with_steps_of_all_rounds() -> None:
    text, display = show(terminal=True)
    assert "\x1b" in text
    tasks = {task.description.strip(): (task.completed, task.total) for task in display._bars.tasks}
    assert tasks == {"ingest a": (3, 9), "all rounds": (4, 64), "a": (4, 4), "pooled": (5, 10)}
