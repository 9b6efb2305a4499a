"""A site's folder: made once, private, read with one-line reasons."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from client import folder
from client.site import load_site
from shared.config import MachineConfig
from shared.errors import ConfigError, DataError, RefusedError
from shared.trust import certificates

NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.crt"
    path.write_bytes(certificates.create_authority("test", NOW).certificate)
    return path


@pytest.fixture
def site(tmp_path: Path, authority: Path) -> Path:
    folder.create(tmp_path / "site", "north", "127.0.0.1:8443", authority)
    return tmp_path / "site"


def test_keys_are_private_and_so_is_the_folder(site: Path) -> None:
    assert stat.S_IMODE(site.stat().st_mode) == 0o700
    for name in ("key", "site.secret"):
        assert stat.S_IMODE((site / name).stat().st_mode) == 0o600


def test_read_gives_what_was_made(site: Path) -> None:
    read = folder.read(site)
    assert (read.name, read.host, read.port, read.coordinator) == ("north", "127.0.0.1", 8443, "127.0.0.1:8443")
    setup = load_site(site / "site.json")
    assert (setup.name, setup.store, setup.machine) == ("north", site / "store", MachineConfig())
    assert setup.approved == {}


def test_a_folder_with_something_in_it_is_never_made_over(site: Path, authority: Path) -> None:
    before = (site / "key").read_bytes()
    with pytest.raises(ConfigError, match="not empty"):
        folder.create(site, "north", "127.0.0.1:8443", authority)
    assert (site / "key").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "address", "reason"),
    [("../up", "h:1", "site name must be"), ("a b", "h:1", "site name must be"), ("a", "h", "HOST:PORT")],
)
def test_bad_names_leave_no_folder(tmp_path: Path, authority: Path, name: str, address: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        folder.create(tmp_path / "new", name, address, authority)
    assert not (tmp_path / "new").exists()


def test_a_file_that_is_no_authority_is_refused(tmp_path: Path, authority: Path) -> None:
    pair = certificates.issue_server(certificates.create_authority("x", NOW), ("localhost",), NOW)
    (tmp_path / "server.crt").write_bytes(pair.certificate)
    for path, reason in (
        (tmp_path / "server.crt", "not the certificate of an authority"),
        (tmp_path / "no", "hands out"),
    ):
        with pytest.raises(ConfigError, match=reason):
            folder.create(tmp_path / "new", "a", "h:1", path)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["key", "site.secret"])
def test_an_open_key_is_refused(site: Path, name: str) -> None:
    (site / name).chmod(0o644)
    with pytest.raises(RefusedError, match="got 0644"):
        folder.read(site)


def test_no_site_and_a_damaged_one(tmp_path: Path, site: Path) -> None:
    with pytest.raises(ConfigError, match="wardround-site init"):
        folder.read(tmp_path)
    (site / "site.json").write_text("{")
    with pytest.raises(DataError, match="restore it"):
        folder.read(site)
    (site / "site.json").write_text("[]")
    with pytest.raises(DataError, match="restore it"):
        folder.read(site)
    (site / "site.json").write_text(json.dumps({"name": "a", "coordinator": "h:1", "machine": {"gpu": 1}}))
    with pytest.raises(ConfigError, match="machine.gpu"):
        folder.read(site)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_site_inside_a_repository_is_not_committed(tmp_path: Path, site: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    seen = subprocess.run(["git", "-C", str(tmp_path), "status", "--short", "site"], check=True, capture_output=True)
    assert seen.stdout == b""
