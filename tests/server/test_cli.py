"""`wardround-coordinator`: exit codes, one-line reasons, and no door open that was not asked for."""

from __future__ import annotations

import datetime as dt
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import cli
from shared.config import CampaignConfig, campaign_digest, load_campaign, save_campaign
from shared.manifest import read_manifest, verified
from shared.reach import free_port
from shared.trust import keystore
from shared.trust.identity import create_exchange_key, load_identity


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


def admit(folder: Path, *sites: str) -> None:
    """Sites that were made by hand, by their key.json."""
    for name in sites:
        home = folder.parent / name
        home.mkdir()
        keystore.create_site_key(home / "key")
        create_exchange_key(home / "exchange.key")
        shown = load_identity(name, home / "key", home / "exchange.key").public
        (home / "key.json").write_text(json.dumps(shown.to_json()))
        assert cli.main(["add-site", str(folder), name, str(home / "key.json")]) == 0


def test_campaign_new_signs_a_masked_campaign_of_the_admitted_sites(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "campaign.json"
    new = ["campaign", "new", str(folder), "--out", str(file), "experiment=phantom", "rounds=2"]
    fails(capsys, new, 2, "no site is admitted yet")
    admit(folder, "north", "south", "west")
    capsys.readouterr()
    assert cli.main(new) == 0
    printed = capsys.readouterr().out
    signed = read_manifest(file)
    verified(signed, (folder / "ca" / "ca.crt").read_bytes(), dt.datetime.now(dt.UTC))
    campaign = load_campaign(file)
    assert (campaign.rounds.rounds, campaign.rounds.quorum, campaign.secagg.kind) == (2, 3, "masked")
    assert campaign_digest(campaign) == signed.manifest.config_digest
    assert campaign_digest(campaign) in printed
    assert tuple(signed.manifest.sites) == ("north", "south", "west")
    assert (folder / "campaigns" / f"{campaign.name}.json").read_bytes() == file.read_bytes()
    fails(capsys, new, 2, "never changes")
    other = ["campaign", "new", str(folder), "--out", str(tmp_path / "x.json")]
    fails(capsys, [*other, "experiment=phantom", "rundes=2"], 2, "rundes")
    fails(capsys, [*other, "experiment=phantom"], 2, "published already, with another content; choose another name=")
    assert not (tmp_path / "x.json").exists()


def test_campaign_new_says_the_ways_out_where_too_few_sites_cannot_mask(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    admit(folder, "north", "south", "west")
    capsys.readouterr()
    new = ["campaign", "new", str(folder), "--out", str(tmp_path / "x.json"), "experiment=phantom"]
    two = [*new, "--sites", "north,south"]
    for way in ("admit more sites", "secagg=visible_updates", "secagg.minimum_cohort=2 round.quorum=2"):
        fails(capsys, two, 2, way)
    fails(capsys, [*new, "round.quorum=2"], 2, "raise round.quorum, or choose secagg=visible_updates")
    fails(capsys, [*new, "--sites", "north,east"], 2, "site 'east' is not admitted")
    assert cli.main([*two, "secagg=visible_updates"]) == 0
    assert "VISIBLE UPDATES" in capsys.readouterr().out
    (tmp_path / "x.json").unlink()
    assert cli.main([*two, "secagg.minimum_cohort=2", "round.quorum=2", "name=two"]) == 0
    assert "each learns the other's update" in capsys.readouterr().out


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
    fails(capsys, ["run", str(folder), str(tmp_path / "campaign.json")], 3, "is not signed")
    admit(folder, "north", "south", "west")
    capsys.readouterr()
    file = tmp_path / "signed.json"
    assert cli.main(["campaign", "new", str(folder), "--out", str(file), "experiment=phantom"]) == 0
    capsys.readouterr()
    fails(capsys, ["run", str(folder), str(file)], 4, "wardround-coordinator serve")
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
