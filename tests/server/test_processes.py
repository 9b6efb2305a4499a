"""What the coordinator starts, and how it reads Flower's command line. Flower itself is a script of this test here."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from server import folder, processes, registry
from shared.errors import DataError, PeerError
from shared.reach import free_port
from shared.trust import keystore

NOW = dt.datetime.now(dt.UTC)
Flwr = Callable[..., dict[str, object]]


@pytest.fixture
def coordinator(tmp_path: Path) -> folder.Coordinator:
    return folder.found(tmp_path / "c", "test", (), 8443, NOW)


def after(command: tuple[str, ...], option: str) -> str:
    return command[command.index(option) + 1]


def test_the_link_demands_tls_keys_and_a_database(coordinator: folder.Coordinator) -> None:
    superlink, superexec = processes.programs(coordinator, "127.0.0.1", 8443)
    for program in (superlink, superexec):
        assert "--insecure" not in program.command
        assert after(program.command, "--superexec-auth-secret-file") == str(coordinator.superexec_secret)
        assert program.environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert "--enable-supernode-auth" in superlink.command
    assert "--disable-runtime-dependency-installation" in superlink.command
    assert after(superlink.command, "--isolation") == "process"
    assert after(superlink.command, "--host") == "127.0.0.1"
    assert after(superlink.command, "--database") == str(coordinator.flower / "state.db")
    assert after(superlink.command, "--ssl-keyfile") == str(coordinator.server_key)
    assert after(superexec.command, "--runtime-api-address") == "127.0.0.1:8443"
    assert after(superexec.command, "--root-certificates") == str(coordinator.authority)


@pytest.mark.parametrize(
    ("printed", "read"),
    [
        ('{"a": 1}', {"a": 1}),
        ('words\n{\n "success": true,\n "run-id": "7"\n}\n', {"success": True, "run-id": "7"}),
        ('{"a": 1}\nmore words\n{"b": {"c": [1, 2]}}\ntail', {"b": {"c": [1, 2]}}),
        ("no json {here}", None),
        ("", None),
        ('{"a": ', None),
        ('{"a": 1}\n{broken', None),
    ],
)
def test_the_last_json_object_is_read(printed: str, read: object) -> None:
    assert processes.last_json(printed) == read


def test_a_coordinator_that_never_served_and_one_that_stopped(coordinator: folder.Coordinator) -> None:
    with pytest.raises(PeerError, match="wardround-coordinator serve"):
        processes.reach(coordinator)
    processes.write_link(coordinator, "127.0.0.1", free_port())
    with pytest.raises(PeerError, match="does not answer on port"):
        processes.reach(coordinator)


def flwr(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> None:
    program = tmp_path / "flwr"
    program.write_text(f"#!/usr/bin/env python3\nimport json, os, sys\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setattr(processes, "script", lambda name: str(program))


def test_arguments_reach_flower_as_a_list(
    coordinator: folder.Coordinator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No shell stands between: a name with a quote and a semicolon stays one argument."""
    flwr(
        monkeypatch, tmp_path, 'print(json.dumps({"node-id": 7, "got": sys.argv[1:], "home": os.environ["FLWR_HOME"]}))'
    )
    odd = tmp_path / "a'; touch hacked; '.pub"
    assert processes.register_site(coordinator, "north", odd) == "7"
    assert not (coordinator.folder / "hacked").exists()


def test_an_error_of_flower_is_one_line_and_kept_in_the_log(
    coordinator: folder.Coordinator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flwr(monkeypatch, tmp_path, 'print("a long story"); sys.exit(1)')
    with pytest.raises(PeerError, match="see logs/command.log"):
        processes.run_status(coordinator, "1")
    assert "a long story" in (coordinator.folder / "logs" / "command.log").read_text()
    flwr(monkeypatch, tmp_path, 'print(json.dumps({"success": False, "error-message": "no"}))')
    with pytest.raises(PeerError, match="refused or missed `flwr run`"):
        processes.start_run(coordinator, tmp_path, tmp_path)
    flwr(monkeypatch, tmp_path, "import time; time.sleep(60)")
    monkeypatch.setattr(processes, "COMMAND_S", 0.5)
    with pytest.raises(PeerError, match="did not answer within"):
        processes.stop_run(coordinator, "1")


def test_keys_are_registered_once_and_again_only_when_the_link_forgot_them(
    coordinator: folder.Coordinator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder.admit(coordinator, "north", keystore.create_site_key(tmp_path / "n"))
    known: dict[str, str] = {}
    calls: list[str] = []

    def register(_: object, site: str, path: Path) -> str:
        calls.append(site)
        known[f"node-{len(calls)}"] = "registered"
        return f"node-{len(calls)}"

    monkeypatch.setattr(processes, "sites_known", lambda _: dict(known))
    monkeypatch.setattr(processes, "register_site", register)
    register_new = processes.registrar(coordinator)
    assert register_new() == ["north"]
    folder.admit(coordinator, "south", keystore.create_site_key(tmp_path / "s"))
    assert register_new() == ["south"]
    assert register_new() == []
    assert processes.registrar(coordinator)() == []  # served again: the link remembers
    assert processes.registered(coordinator) == {"north": "node-1", "south": "node-2"}
    known.clear()  # its database was lost
    assert processes.registrar(coordinator)() == ["north", "south"]
    (coordinator.flower / "sites.json").write_text("{")
    with pytest.raises(DataError, match="remove it"):
        processes.registrar(coordinator)()


def test_a_key_that_is_gone_or_another_is_unregistered(
    coordinator: folder.Coordinator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A site that was revoked, and one that came back with new keys in between."""
    for name in ("north", "south"):
        folder.admit(coordinator, name, keystore.create_site_key(tmp_path / name))
    known: list[str] = []
    ended: list[str] = []

    def register(_: object, site: str, path: Path) -> str:
        known.append(f"{site}-{len(known)}")
        return known[-1]

    monkeypatch.setattr(processes, "sites_known", lambda _: dict.fromkeys(known, "online"))
    monkeypatch.setattr(processes, "register_site", register)
    monkeypatch.setattr(processes, "unregister_site", lambda _, node: ended.append(node))
    register_new = processes.registrar(coordinator)
    assert register_new() == ["north", "south"]
    registry.revoke(coordinator, "south", NOW)
    assert (register_new(), ended) == ([], ["south-1"])
    assert processes.registered(coordinator) == {"north": "north-0"}
    registry.revoke(coordinator, "north", NOW)
    folder.admit(coordinator, "north", keystore.create_site_key(tmp_path / "new"))
    assert processes.registrar(coordinator)() == ["north"]  # the coordinator was away meanwhile
    assert ended == ["south-1", "north-0"]
    assert processes.registered(coordinator) == {"north": "north-2"}


def test_enrolment_is_a_program_of_its_own_that_takes_no_module_from_the_folder(
    coordinator: folder.Coordinator,
) -> None:
    program = processes.enrol_program(coordinator, "127.0.0.1")
    assert program.command[1:4] == ("-I", "-m", "server.enrol")
    assert program.command[4:] == (str(coordinator.folder), "127.0.0.1")


def test_flowers_view_of_a_run(
    coordinator: folder.Coordinator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer = json.dumps({"success": True, "runs": [{"status": "finished:failed"}]})
    flwr(monkeypatch, tmp_path, f"print('Listing'); print({answer!r})")
    assert processes.run_status(coordinator, "1") == processes.RunStatus("1", "finished:failed")
    assert processes.RunStatus("1", "finished:failed").finished
    assert not processes.RunStatus("1", "running").finished
