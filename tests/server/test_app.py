"""The ServerApp: what it reads from a run's folder, and the word that it leaves there."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

import server.app
from server.app import Clock, initial_weights, serve
from server.outcome import read_outcome
from shared.config import CampaignConfig, save_campaign
from shared.errors import ConfigError, PeerError
from shared.events import CampaignResumed, Event


class NobodyThere(Grid):
    """A Grid without a single site."""

    def set_run(self, run: object) -> None: ...
    @property
    def run(self) -> object: ...
    def create_message(self, *arguments: object, **more: object) -> object: ...
    def get_node_ids(self) -> list[int]:
        return []

    def push_messages(self, messages: object) -> list[str]:
        return []

    def pull_messages(self, message_ids: object) -> list[object]:
        return []

    def send_and_receive(self, messages: object, *, timeout: float | None = None) -> list[object]:
        return []


def no_time() -> Clock:
    passed = [0.0]

    def sleep(seconds: float) -> None:
        passed[0] += seconds

    return Clock(lambda: passed[0], sleep)


def test_a_run_nobody_joins_ends_with_its_reason_in_the_folder(campaign: CampaignConfig, tmp_path: Path) -> None:
    save_campaign(campaign, tmp_path / "campaign.json")
    with pytest.raises(PeerError, match="missing: north, valley"):
        serve(NobodyThere(), tmp_path, allowed=frozenset({"north", "valley"}), clock=no_time())
    outcome = read_outcome(tmp_path)
    assert outcome is not None
    assert (outcome.completed, outcome.exit_code) == (False, 4)
    assert "start the sites" in outcome.reason


def test_a_folder_without_a_campaign_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no campaign file named 'campaign.json'"):
        serve(NobodyThere(), tmp_path)
    assert json.loads((tmp_path / "outcome.json").read_text())["exit_code"] == 2


def test_a_failure_of_ours_leaves_its_class_and_no_text(
    campaign: CampaignConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise ValueError("/secret/path")

    save_campaign(campaign, tmp_path / "campaign.json")
    monkeypatch.setattr(server.app, "run_campaign", fails)
    with pytest.raises(ValueError, match="secret"):
        serve(NobodyThere(), tmp_path)
    outcome = read_outcome(tmp_path)
    assert outcome is not None
    assert outcome.reason == "coordinator error: ValueError; see its log, then resume"
    assert outcome.exit_code == 1


def test_main_takes_folder_and_sites_from_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)  # the run's folder is named relative to the coordinator's
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    monkeypatch.setattr(server.app, "serve", lambda grid, run_dir, **more: seen.update(run_dir=run_dir, **more))
    notes: list[Event] = []
    monkeypatch.setattr(server.app, "recording", lambda folder, campaign: nullcontext(notes.append))
    values = {"run-dir": "runs/demo", "sites": "north,valley"}
    server.app.main(NobodyThere(), Context(1, 1, {}, RecordDict(), values))
    assert (seen["run_dir"], seen["allowed"]) == (Path("runs/demo"), {"north", "valley"})
    seen["on_event"](CampaignResumed(1))  # goes to the journal and to the audit log
    assert notes == [CampaignResumed(1)]
    assert len((tmp_path / "runs" / "demo" / "events.jsonl").read_text().splitlines()) == 1
    with pytest.raises(ConfigError, match="start it with: wardround-coordinator run"):
        server.app.main(NobodyThere(), Context(1, 1, {}, RecordDict(), {"run-dir": ""}))


def test_first_weights_follow_from_the_seed_alone(campaign: CampaignConfig) -> None:
    first, again = initial_weights(campaign), initial_weights(campaign)
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)


def test_a_second_serverapp_waits_for_the_first_to_end_and_gives_up_with_word(tmp_path: Path) -> None:
    """flock belongs to an open file, so two in one process meet as two processes do."""
    with server.app.alone(tmp_path):
        with pytest.raises(ConfigError, match="still held by an earlier run"), server.app.alone(tmp_path, wait_s=0.1):
            pass
        outcome = read_outcome(tmp_path)
        assert outcome is not None
        assert outcome.exit_code == 2
    with server.app.alone(tmp_path, wait_s=0.1):
        pass
