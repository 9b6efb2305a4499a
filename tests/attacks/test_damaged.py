"""Files of a folder that were damaged or made to hurt, disks that are full, and kills between two writes.

Each ends in one line that says what to do, or in a state that the next command goes on from; never in a traceback, and
never in something that is in force and not written down.
"""

from __future__ import annotations

import datetime as dt
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client import approvals, cli, cli_approve, pins
from client import folder as site_folder
from client.folder import SiteFolder
from server import folder, invitations, registry
from server.folder import Coordinator
from shared.config import CampaignConfig
from shared.errors import DataError, RefusedError
from shared.privacy import ledger
from shared.trust import certificates, vault
from tests.client.manifest_files import Federation

NOW = dt.datetime.now(dt.UTC)
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return folder.found(tmp_path / "fed", "test", ("127.0.0.1",), 8443, NOW)


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    return Federation().site(tmp_path / "north")


def damaged(path: Path, content: bytes, read: Callable[[], Any], reason: str) -> None:
    path.write_bytes(content)
    with pytest.raises((DataError, RefusedError), match=reason) as caught:
        read()
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [DEEP, b"", b"\xff\x00", b"[1]", b'{"number": Infinity, "digest": ""}'])
def test_json_that_is_deep_or_none_is_refused_in_a_line(
    site: SiteFolder, coordinator: Coordinator, content: bytes
) -> None:
    home, fed = site.folder, coordinator.folder
    vault_file = home / vault.FILE
    damaged(vault_file, content, lambda: vault.unlock(home), "sealed.json cannot be read|not of format 1")
    damaged(home / ledger.HEAD, content, lambda: ledger.read_ledger(home), "ledger.head|ledger.jsonl is gone")
    damaged(home / "site.json", content, lambda: site_folder.read(home), r"site.json")
    approvals_of = site.approvals
    approvals_of.mkdir(exist_ok=True)
    dated = approvals_of / f"{'a' * 64}.approved"
    damaged(dated, content, lambda: approvals.approvals(approvals_of), "was changed after it was given")
    one = invitations.invite(coordinator, "north", 7, NOW)
    path = next((fed / "invitations").glob("*.json"))
    assert one.token.startswith(path.stem)
    damaged(path, content, lambda: invitations.invitations(coordinator), "is damaged; remove it and invite")
    damaged(fed / "coordinator.json", content, lambda: folder.read(fed), "coordinator.json cannot be read")


@pytest.mark.parametrize("port", ["228444", "0", "-1", "Infinity", "1e99"])
def test_a_port_that_cannot_be_is_refused_when_the_folder_is_read(coordinator: Coordinator, port: str) -> None:
    path = coordinator.folder / "coordinator.json"
    text = path.read_text().replace('"join_port": 8444', f'"join_port": {port}').encode()
    damaged(path, text, lambda: folder.read(coordinator.folder), "coordinator.json cannot be read")


@pytest.mark.parametrize("name", ["issued", "revoked"])
def test_half_a_line_of_the_registry_says_nothing_and_the_next_entry_takes_its_place(
    coordinator: Coordinator, name: str
) -> None:
    entry = {"site": "north", "serial": "ab", "when": NOW.isoformat()}
    registry._append(coordinator, name, entry)
    path = coordinator.folder / "ca" / f"{name}.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"site": "hi')
    assert registry._entries(coordinator, name) == [entry]
    registry._append(coordinator, name, entry)
    assert path.read_bytes() == whole + whole


def test_a_registry_that_cannot_be_synced_is_as_it_was(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"site": "north", "serial": "ab", "when": NOW.isoformat()}
    registry._append(coordinator, "issued", entry)
    before = (coordinator.folder / "ca" / "issued.jsonl").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry.os, "fsync", full)
    with pytest.raises(DataError, match="ca/issued.jsonl cannot be written: the disk may be full"):
        registry._append(coordinator, "issued", entry)
    assert (coordinator.folder / "ca" / "issued.jsonl").read_bytes() == before


def test_an_approval_that_cannot_be_written_down_is_not_in_force(
    tmp_path: Path, campaign: CampaignConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    federation = Federation()
    site = federation.site(tmp_path / "north")
    (tmp_path / "c.json").write_bytes(federation.signed(campaign).to_json())

    def full(*_: object, **__: object) -> None:
        raise DataError("the audit log cannot be written")

    monkeypatch.setattr(cli_approve, "record", full)
    words = ["approve", str(site.folder), str(tmp_path / "c.json"), "--yes", "--allow-visible-updates"]
    assert cli.main(words) == DataError.exit_code
    assert "the audit log cannot be written" in capsys.readouterr().err
    assert approvals.approvals(site.approvals) == ()
    assert pins.read_pins(site.folder) == {}


@pytest.mark.parametrize("killed", ["write_private", "write_atomically"])
def test_a_renewal_of_the_servers_certificate_that_was_killed_is_made_again(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    """The key is never away: without it no command of the coordinator would run."""
    late = certificates.load(coordinator.server_certificate.read_bytes()).not_valid_after_utc - dt.timedelta(days=1)
    before = coordinator.server_certificate.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(folder.keystore if killed == "write_private" else folder, killed, lambda *_: sys.exit(137))
        with pytest.raises(SystemExit):
            folder.renew_if_due(coordinator, late)
    assert coordinator.server_certificate.read_bytes() == before
    assert folder.renew_if_due(folder.read(coordinator.folder), late)
    ssl.create_default_context().load_cert_chain(coordinator.server_certificate, coordinator.server_key)
