"""Events from one process to another, and in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.journal import append_event, events_from, in_words, size
from shared.events import (
    CampaignResumed,
    Event,
    RoundFailed,
    RoundFinished,
    RoundStarted,
    SiteJoined,
    SiteRefused,
    SiteReplied,
)


def test_a_watcher_reads_on_from_where_it_was(tmp_path: Path) -> None:
    assert events_from(tmp_path, 0) == ([], 0)
    append_event(tmp_path, CampaignResumed(1))
    begin = size(tmp_path)
    append_event(tmp_path, SiteJoined("north", {"patients": 7}))
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "SiteRep')
    read, offset = events_from(tmp_path, begin)
    assert [event["event"] for event in read] == ["SiteJoined"]
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('lied", "site": "north", "round": 1, "reason": ""}\nnot json\n')
    append_event(tmp_path, CampaignResumed(2))
    after, offset = events_from(tmp_path, offset)
    assert [event["event"] for event in after] == ["SiteReplied", "CampaignResumed"]
    assert events_from(tmp_path, offset) == ([], size(tmp_path))


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (SiteJoined("north", {"patients": 7}), "north joined with 7 patients"),
        (
            SiteJoined("north", {"patients": 7, "masks": 2, "diagnoses.a": 0, "diagnoses.b": 3}),
            "north joined with 7 patients",
        ),
        (SiteJoined("north", {"patients": 7, "masks": 0}), "north joined with 7 patients, without masks"),
        (SiteJoined("north", {"patients": 7, "diagnoses.a": 0}), "north joined with 7 patients, without diagnoses"),
        (
            SiteJoined("north", {"patients": 7, "masks": 0, "diagnoses.a": 0, "diagnoses.b": 0}),
            "north joined with 7 patients, without masks and diagnoses",
        ),
        (SiteRefused("north", "no"), "north does not take part: no"),
        (SiteRefused("", "no"), "a site does not take part: no"),
        (RoundStarted(1, 2, 1, ("north", "south")), "round 1 sent to north, south"),
        (RoundStarted(3, 2, 2, ("north",)), "closing evaluation (try 2) sent to north"),
        (SiteReplied("north", 1, ""), "  north replied"),
        (SiteReplied("north", 1, "late"), "  north is out of round 1: late"),
        (RoundFailed(2, "one of two", 1), "round 2 failed: one of two; tries left: 1"),
        (CampaignResumed(4), "going on after round 4"),
        (RoundFinished(1, 2, {"evaluation": {"north": {}}}), None),
    ],
)
def test_events_in_words(tmp_path: Path, event: Event, words: str | None) -> None:
    append_event(tmp_path, event)
    ((read,), _) = events_from(tmp_path, 0)
    assert in_words(read) == words
    assert "evaluation" not in read
