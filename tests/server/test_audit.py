"""What a run and the commands leave in the audit logs of both ends, and that each end's log binds the other's."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest

from client import cli as site_cli
from client.audit import site_audit
from client.folder import read as read_site
from server import cli as coordinator_cli
from server.audit import recording
from server.folder import read
from shared.audit import last_head
from shared.audit import read as entries_of
from shared.errors import PeerError
from shared.events import RoundFinished, SiteJoined, SiteRefused


@pytest.fixture
def ends(tmp_path: Path) -> tuple[Path, Path]:
    """A coordinator and an admitted site, made by their commands."""
    home, site = tmp_path / "co", tmp_path / "north"
    assert coordinator_cli.main(["init", str(home), "--name", "fed"]) == 0
    arguments = ["--name", "north", "--coordinator", "127.0.0.1:8443", "--ca", str(home / "ca" / "ca.crt")]
    assert site_cli.main(["init", str(site), *arguments]) == 0
    assert coordinator_cli.main(["add-site", str(home), "north", str(site / "key.json")]) == 0
    return home, site


def joined(home: Path, site: Path) -> None:
    head = last_head(site / "audit.jsonl")
    assert head is not None
    with recording(home, "tiny") as note:
        note(SiteJoined("north", {}, tuple(head)))
        note(SiteRefused("south", "expected architecture a, got b"))
        note(RoundFinished(1, 2, {"participants": ["north"], "dropped": {"south": "late"}, "update_norm": 0.5}))


def test_a_run_is_recorded_round_by_round_with_its_sites(ends: tuple[Path, Path]) -> None:
    joined(*ends)
    entries = [entry for entry in entries_of(ends[0] / "audit.jsonl") if entry.facts.get("campaign") == "tiny"]
    assert [entry.event for entry in entries] == ["site.joined", "refused", "round.finished", "campaign.completed"]
    assert dict(entries[2].facts) == {
        "campaign": "tiny", "round": 1, "sites": "north", "dropped": "south", "update_norm": 0.5,
    }  # fmt: skip


def test_a_run_that_fails_is_recorded_with_its_reason(ends: tuple[Path, Path]) -> None:
    with pytest.raises(PeerError, match="too few"), recording(ends[0], "tiny"):
        raise PeerError("too few sites answered")
    assert entries_of(ends[0] / "audit.jsonl")[-1].facts["reason"] == "too few sites answered"


def test_the_coordinator_finds_a_site_log_that_lost_what_its_card_told(
    ends: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, site = ends
    before = {path: path.read_bytes() for path in site.glob("audit.jsonl*")}
    site_audit(read_site(site)).append("round.left", campaign="tiny", round=1)
    joined(home, site)
    for path, content in before.items():
        path.write_bytes(content)
    out = tmp_path / "north.jsonl"
    assert site_cli.main(["audit", "verify", str(site)]) == 0
    assert site_cli.main(["audit", "export", str(site), "--out", str(out)]) == 0
    assert coordinator_cli.main(["audit", "verify", str(home), "--log", str(out), "--site", "north"]) == 3
    assert "entry 2 is wrong: the log ends before it, the other end knows 2" in capsys.readouterr().err


def test_a_site_verifies_the_coordinators_export_by_the_authority_alone(
    ends: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, site = ends
    out = tmp_path / "co.jsonl"
    assert coordinator_cli.main(["audit", "export", str(home), "--out", str(out)]) == 0
    assert site_cli.main(["audit", "verify", str(site), "--coordinator", str(out)]) == 0
    out.write_bytes(out.read_bytes().replace(b'"north"', b'"south"'))
    assert site_cli.main(["audit", "verify", str(site), "--coordinator", str(out)]) == 3
    assert "signature is not of this log's signer" in capsys.readouterr().err


def test_show_filters_by_event_day_and_number(ends: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    home, _ = ends
    today = dt.datetime.now(dt.UTC).date().isoformat()
    capsys.readouterr()
    for options, events in (
        (["--event", "admin"], ["admin.init", "admin.site_admitted"]),
        (["--event", "admin.init", "--since", today], ["admin.init"]),
        (["--until", "2020-01-01"], []),
        (["--last", "1"], ["admin.site_admitted"]),
    ):
        assert coordinator_cli.main(["audit", "show", str(home), "--json", *options]) == 0
        assert [entry["event"] for entry in json.loads(capsys.readouterr().out)] == events
    assert coordinator_cli.main(["audit", "show", str(home), "--since", "yesterday"]) == 2
    assert "--since must be a date as 2026-01-31" in capsys.readouterr().err


def test_a_refusal_of_a_command_is_recorded(ends: tuple[Path, Path]) -> None:
    home, _ = ends
    assert coordinator_cli.main(["serve", str(home), "--bind", "0.0.0.0"]) == 3
    entry = entries_of(home / "audit.jsonl")[-1]
    assert (entry.event, entry.facts["command"]) == ("refused", "serve")


def test_a_retention_that_is_none_is_refused(ends: tuple[Path, Path]) -> None:
    home, _ = ends
    path = home / "coordinator.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"audit_days": 0}))
    assert coordinator_cli.main(["audit", "export", str(home), "--out", str(home / "x")]) == 2
    assert read(home).name == "fed"


def test_a_lost_authority_is_told_in_a_line(ends: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    home, _ = ends
    (home / "ca" / "ca.crt").write_bytes(b"")
    assert coordinator_cli.main(["audit", "verify", str(home)]) == 5
    assert "ca.crt is not a PEM certificate; restore it" in capsys.readouterr().err


def test_what_is_empty_is_not_shown(ends: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    home, _ = ends
    with recording(home, "tiny") as note:
        note(RoundFinished(1, 2, {"participants": ["north"], "dropped": {}, "update_norm": 0.5}))
    capsys.readouterr()
    assert coordinator_cli.main(["audit", "show", str(home), "--event", "round"]) == 0
    assert "dropped" not in capsys.readouterr().out
