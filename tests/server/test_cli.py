"""`wardround-coordinator`: exit codes, one-line reasons, and no door open that was not asked for."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import cli
from shared.config import CampaignConfig, campaign_digest, load_campaign, save_campaign
from shared.reach import free_port
from shared.trust import keystore


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    made = tmp_path / "coordinator"
    assert cli.main(["init", str(made), "--name", "test", "--port", str(free_port())]) == 0
    assert "ca.crt" in capsys.readouterr().out
    return made


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, reason: str) -> None:
    assert cli.main(arguments) == code
    error = capsys.readouterr().err
    assert reason in error
    assert error.startswith("wardround-coordinator: ")
    assert error.count("\n") == 1


def test_a_port_in_use_is_one_line_with_the_way_out(
    folder: Path, taken: int, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(
        capsys, ["serve", str(folder), "--port", str(taken)], 2, f"port {taken} on 127.0.0.1 is in use; choose another"
    )
    assert not (folder / "processes.json").exists()


def test_the_control_interface_is_not_exposed_without_saying_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for address in ("0.0.0.0", "::", "192.0.2.1"):
        fails(capsys, ["serve", str(folder), "--bind", address], 3, "--dangerously-expose-control")
    said = ["serve", str(folder), "--bind", "192.0.2.1", "--dangerously-expose-control"]
    fails(capsys, said, 2, "name it in init --host")


def test_campaign_new_prints_the_digest_that_sites_will_see(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "campaign.json"
    new = ["campaign", "new", str(folder), "--out", str(file), "experiment=phantom", "rounds=2"]
    assert cli.main(new) == 0
    campaign = load_campaign(file)
    assert campaign.rounds.rounds == 2
    assert campaign_digest(campaign) in capsys.readouterr().out
    fails(capsys, new, 2, "never changes")
    other = ["campaign", "new", str(folder), "--out", str(tmp_path / "x.json")]
    fails(capsys, [*other, "experiment=phantom", "rundes=2"], 2, "rundes")
    assert not (tmp_path / "x.json").exists()


def test_reasons_and_exit_codes(
    folder: Path, tmp_path: Path, campaign: CampaignConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    save_campaign(campaign, tmp_path / "campaign.json")
    key = keystore.create_site_key(tmp_path / "key")
    fails(capsys, ["status", str(tmp_path)], 2, "wardround-coordinator init")
    fails(capsys, ["init", str(folder), "--name", "test"], 2, "not empty")
    fails(capsys, ["add-site", str(folder), "../x", str(key)], 2, "site name must be")
    fails(capsys, ["add-site", str(folder), "x", str(tmp_path / "key")], 3, "must never leave its site")
    fails(capsys, ["add-site", str(folder), "x", str(tmp_path / "none.pub")], 5, "cannot be read")
    fails(capsys, ["run", str(folder), str(tmp_path / "none.json")], 2, "no campaign file")
    fails(capsys, ["run", str(folder), str(tmp_path / "campaign.json")], 4, "wardround-coordinator serve")
    fails(capsys, ["report", str(tmp_path)], 5, "give the folder of a run")


def test_status_for_programs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["add-site", str(folder), "north", str(keystore.create_site_key(tmp_path / "key"))]) == 0
    capsys.readouterr()
    assert cli.main(["status", str(folder), "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert (state["federation"], state["serving"], state["sites"]) == ("test", False, {"north": "not served"})
    assert state["certificate_days"] == 396
    assert cli.main(["status", str(folder)]) == 0
    assert "not served" in capsys.readouterr().out


def test_wrong_use_is_two(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["dance"], ["serve"], ["status", str(folder), "x=1"], ["serve", str(folder), "--insecure"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
    capsys.readouterr()
