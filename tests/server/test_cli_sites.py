"""Sites as the coordinator's operator meets them: invited, joined, warned about, revoked; by the commands alone."""

from __future__ import annotations

import datetime as dt
import json
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import client.cli
from client import folder as site_folder
from server import check, cli, enrol, folder, registry
from shared.reach import free_port
from shared.trust import keystore
from shared.trust.invitations import read_invitation


@pytest.fixture
def home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    made = tmp_path / "coordinator"
    assert cli.main(["init", str(made), "--name", "test", "--port", str(free_port())]) == 0
    capsys.readouterr()
    return made


@pytest.fixture
def serving(home: Path) -> Iterator[Path]:
    ports = {"join_port": free_port(), "services_port": free_port()}
    coordinator = replace(folder.read(home), **ports)
    folder.save(coordinator)
    servers = enrol.start(coordinator, "127.0.0.1", lambda: dt.datetime.now(dt.UTC))
    yield home
    for server in servers:
        server.stop(0)


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, reason: str) -> None:
    assert cli.main(arguments) == code
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_an_invitation_is_a_private_file_that_names_everything(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "north.invite"
    assert cli.main(["invite", str(home), "north", "--days", "3", "--out", str(file)]) == 0
    said = capsys.readouterr().out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    invitation, coordinator = read_invitation(file.read_text()), folder.read(home)
    assert (invitation.federation, invitation.site, invitation.gateway) == ("test", "north", False)
    assert invitation.join == f"127.0.0.1:{coordinator.join_port}"
    assert invitation.authority_fingerprint in said
    assert invitation.token not in said
    assert 2.9 < (invitation.expires_at - dt.datetime.now(dt.UTC)) / dt.timedelta(days=1) <= 3
    kept = "".join(path.read_text() for path in (home / "invitations").iterdir())
    assert invitation.token.partition(".")[2] not in kept  # its hash alone
    fails(capsys, ["invite", str(home), "north", "--out", str(file)], 2, "exists already")
    fails(capsys, ["invite", str(home), "../x"], 2, "site name must be")
    fails(capsys, ["invite", str(home), "north", "--days", "0"], 2, "--days must lie in 1..90")
    assert cli.main(["invitations", str(home), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["site"], row["state"][:10], "secret_hash" in row) == ("north", "open until", False)


def test_with_a_gateway_the_invitation_names_the_gateway(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gateway", str(home), "--port", "20443"]) == 0
    capsys.readouterr()
    assert cli.main(["invite", str(home), "north"]) == 0
    invitation = read_invitation(capsys.readouterr().out)
    assert invitation.gateway
    addresses = (invitation.coordinator, invitation.join, invitation.services)
    assert addresses == ("127.0.0.1:20443", "127.0.0.1:20444", "127.0.0.1:20445")
    before = json.loads((home / "coordinator.json").read_text())
    (home / "coordinator.json").write_text(json.dumps(before | {"audit_days": 100}))
    assert cli.main(["gateway", str(home), "--port", "21443"]) == 0
    assert json.loads((home / "coordinator.json").read_text())["audit_days"] == 100  # a person's own line stays


def test_a_site_joins_renews_and_is_revoked_by_the_commands(
    serving: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, site, file = str(serving), str(tmp_path / "north"), tmp_path / "north.invite"
    assert cli.main(["invite", home, "north", "--out", str(file)]) == 0
    assert client.cli.main(["join", str(file), site]) == 0
    said = capsys.readouterr().out
    line = keystore.read_public_line(tmp_path / "north" / "key.pub")
    assert keystore.fingerprint(line) in said
    assert cli.main(["invitations", home]) == 0
    assert "used on" in capsys.readouterr().out
    assert sorted(path.name for path in (serving / "sites").iterdir()) == ["north.crt", "north.json", "north.pub"]
    before = (tmp_path / "north" / "tls.pem").read_bytes()
    assert client.cli.main(["renew", site]) == 0
    assert (tmp_path / "north" / "tls.pem").read_bytes() != before
    assert client.cli.main(["fetch", site]) == 0
    assert "Nothing waits" in capsys.readouterr().out
    assert client.cli.main(["status", site, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["certificate_days"] == 179
    fails(capsys, ["invite", home, "north"], 2, "is in this federation already; revoke it first")
    fails(capsys, ["revoke", home, "north"], 2, "give --yes")
    fails(capsys, ["revoke", home, "south", "--yes"], 2, "not in this federation")
    assert cli.main(["revoke", home, "north", "--yes"]) == 0
    assert "certificates that count no more: 2" in capsys.readouterr().out  # the renewed one and the one before
    assert client.cli.main(["renew", site]) == 3
    assert "was revoked; join again with a new invitation" in capsys.readouterr().err
    assert folder.read(serving).site_keys() == {}


def test_a_site_made_by_hand_is_told_that_it_has_no_certificate(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "north"
    authority = str(home / "ca" / "ca.crt")
    arguments = ["init", str(site), "--name", "north", "--coordinator", "127.0.0.1:8443", "--ca", authority]
    assert client.cli.main(arguments) == 0
    assert cli.main(["add-site", str(home), "north", str(site / "key.json")]) == 0
    assert json.loads((home / "sites" / "north.json").read_text())["name"] == "north"
    capsys.readouterr()
    fails(capsys, ["add-site", str(home), "south", str(site / "key.json")], 2, "is of site 'north', not of 'south'")
    for command in ("renew", "fetch"):
        assert client.cli.main([command, str(site)]) == 2
        assert "has no certificate; the coordinator invites it" in capsys.readouterr().err


def test_check_warns_before_a_certificate_ends_and_fails_after(
    serving: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, site = tmp_path / "north.invite", tmp_path / "north"
    assert cli.main(["invite", str(serving), "north", "--out", str(file)]) == 0
    assert client.cli.main(["join", str(file), str(site)]) == 0
    coordinator, now = folder.read(serving), dt.datetime.now(dt.UTC)

    def row(what: str, days: int) -> check.Row:
        return next(row for row in check.check(coordinator, now + dt.timedelta(days=days)) if row.what == what)

    assert not row("certificate of north", 100).warning
    assert row("certificate of north", 160).warning
    assert row("certificate of north", 181).exit_code == 3
    assert "revokes the site and invites it anew" in row("certificate of north", 181).answer
    assert row("server certificate", 380).warning
    assert row("server certificate", 400).exit_code == 3
    assert row("authority", 3400).warning
    assert registry.certificates_of(coordinator, now)["north"].site == "north"  # type: ignore[union-attr]
    capsys.readouterr()
    assert cli.main(["check", str(serving)]) == 4  # all is well, but nobody serves
    printed = capsys.readouterr()
    assert "wardround-coordinator: serving: the coordinator is not serving" in printed.err
    assert "179 days" in printed.out
    (serving / "ca" / "ca.key").chmod(0o644)
    fails(capsys, ["check", str(serving)], 3, "ca.key must have mode 0600")


def test_the_sites_check_warns_too(serving: Path, tmp_path: Path) -> None:
    from client.check import check_site

    file, home = tmp_path / "north.invite", tmp_path / "north"
    assert cli.main(["invite", str(serving), "north", "--out", str(file)]) == 0
    assert client.cli.main(["join", str(file), str(home)]) == 0
    site, now = site_folder.read(home), dt.datetime.now(dt.UTC)

    def row(days: int) -> tuple[str, int]:
        rows = check_site(site, now + dt.timedelta(days=days))
        return next((row.answer, row.exit_code) for row in rows if row.what == "certificate")

    assert row(10) == ("in force for 169 days more", 0)
    assert row(130)[0].endswith("due to be renewed, which `run` does, or: wardround-site renew")
    assert row(200)[1] == 3
