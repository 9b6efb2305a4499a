"""What a site starts: outbound only, TLS everywhere, one executable in reach."""

from __future__ import annotations

import datetime as dt
import inspect
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from client import daemon, folder
from shared.errors import ConfigError
from shared.trust import certificates

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture
def site(tmp_path: Path) -> folder.SiteFolder:
    (tmp_path / "ca.crt").write_bytes(certificates.create_authority("test", NOW).certificate)
    folder.create(tmp_path / "site", "north", "127.0.0.1:8443", tmp_path / "ca.crt")
    return folder.read(tmp_path / "site")


def after(command: tuple[str, ...], option: str) -> str:
    return command[command.index(option) + 1]


def test_no_process_is_insecure_or_listens_beyond_loopback(site: folder.SiteFolder) -> None:
    supernode, superexec = daemon.programs(site, NOW)
    for program in (supernode, superexec):
        assert "--insecure" not in program.command
        assert "--allow-runtime-dependency-installation" not in program.command
        assert program.environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert after(supernode.command, "--host") == "127.0.0.1"
    assert after(supernode.command, "--isolation") == "process"
    assert after(supernode.command, "--root-certificates") == str(site.authority)
    assert after(supernode.command, "--auth-supernode-private-key") == str(site.key)
    assert "--max-retries" not in supernode.command  # a site never gives up on its coordinator
    assert after(superexec.command, "--runtime-api-address") == f"127.0.0.1:{after(supernode.command, '--port')}"
    assert after(superexec.command, "--root-certificates") != str(site.authority)
    assert supernode.environment["FLWR_HOME"] != superexec.environment["FLWR_HOME"]


def test_the_executor_can_reach_one_program_and_it_is_ours(site: folder.SiteFolder) -> None:
    path = Path(daemon.programs(site, NOW)[1].environment["PATH"])
    assert os.listdir(path) == ["flwr-clientapp"]
    text = (path / "flwr-clientapp").read_text()
    assert text.startswith(f"#!{sys.executable} -I\n")
    assert "client.app" in text
    (path / "flwr-serverapp").write_text("left over")
    daemon.write_executable(path)
    assert os.listdir(path) == ["flwr-clientapp"]


def test_our_program_takes_flowers_arguments(site: folder.SiteFolder) -> None:
    """It runs in an empty folder with nothing but its own PATH, as the SuperExec starts it."""
    path = daemon.write_executable(site.flower / "bin")
    (site.flower / "exec").mkdir()
    environment = {
        "PATH": str(path),
        "WARDROUND_SITE": str(site.folder),
        "WARDROUND_PATH": "/usr/bin",
        "FLWR_HOME": "x",
    }
    done = subprocess.run(
        (str(path / "flwr-clientapp"), "--help"),
        env=environment,
        cwd=site.flower / "exec",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for option in ("--runtime-api-address", "--token", "--root-certificates", "--parent-pid"):
        assert option in done.stdout


def test_flower_still_calls_what_we_replace() -> None:
    """The fence of `run_message_process`: with flwr 1.41.0 the only ways from a bundle to code are these two names."""
    from flwr.supernode.runtime import run_clientapp

    source = inspect.getsource(run_clientapp.run_clientapp)
    assert source.count("install_from_fab(") == 1
    assert source.count("get_load_client_app_fn(") == 1
    assert source.count("load_client_app_fn(") == 2  # the replaced maker, and the call of what it made
    assert "fab.content" in source.split("install_from_fab(")[1][:20]


def test_loopback_certificate_is_for_loopback_and_its_authority_signs_no_more(site: folder.SiteFolder) -> None:
    daemon.programs(site, NOW)
    loopback = site.flower / "loopback"
    assert certificates.host_names((loopback / "server.crt").read_bytes()) == ("localhost", "127.0.0.1")
    assert sorted(os.listdir(loopback)) == ["ca.crt", "server.crt", "server.key"]  # no key of the authority
    ssl.create_default_context(cafile=str(loopback / "ca.crt"))
    first = (loopback / "server.crt").read_bytes()
    daemon.programs(site, NOW)
    assert (loopback / "server.crt").read_bytes() != first


def test_a_folder_that_cannot_be_quoted_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(certificates.create_authority("test", NOW).certificate)
    folder.create(tmp_path / 'a"b', "north", "127.0.0.1:8443", tmp_path / "ca.crt")
    with pytest.raises(ConfigError, match="quotes"):
        daemon.programs(folder.read(tmp_path / 'a"b'), NOW)
