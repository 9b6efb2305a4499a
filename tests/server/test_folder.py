"""The coordinator's folder: founded once, keys admitted with care, certificates renewed in time."""

from __future__ import annotations

import datetime as dt
import stat
from pathlib import Path

import pytest

from server import folder
from shared.errors import ConfigError, DataError, RefusedError
from shared.trust import certificates, keystore

NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


@pytest.fixture
def coordinator(tmp_path: Path) -> folder.Coordinator:
    return folder.found(tmp_path / "c", "test", ("fl.example.org",), 8443, NOW)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return keystore.create_site_key(tmp_path / "key")


def test_every_secret_is_private_and_every_folder_closed(coordinator: folder.Coordinator) -> None:
    secrets = [coordinator.folder / "ca" / "ca.key", coordinator.server_key, coordinator.superexec_secret]
    assert [stat.S_IMODE(path.stat().st_mode) for path in secrets] == [0o600] * 3
    folders = [coordinator.folder, *(path for path in coordinator.folder.rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


def test_read_gives_what_was_founded(coordinator: folder.Coordinator) -> None:
    assert folder.read(coordinator.folder) == coordinator
    assert coordinator.hosts == ("fl.example.org", "localhost", "127.0.0.1")  # its own processes use loopback
    names = certificates.host_names(coordinator.server_certificate.read_bytes())
    assert set(names) == set(coordinator.hosts)


def test_founding_never_overwrites(coordinator: folder.Coordinator) -> None:
    before = coordinator.authority.read_bytes()
    with pytest.raises(ConfigError, match="not empty"):
        folder.found(coordinator.folder, "test", (), 8443, NOW)
    assert coordinator.authority.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "host", "port", "reason"),
    [("../x", "h", 1, "federation name"), ("x", "a b", 1, "host must be"), ("x", "h", 0, "port must lie")],
)
def test_bad_values_leave_no_folder(tmp_path: Path, name: str, host: str, port: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        folder.found(tmp_path / "new", name, (host,), port, NOW)
    assert not (tmp_path / "new").exists()


def test_a_site_is_admitted_by_its_key_alone(coordinator: folder.Coordinator, key: Path) -> None:
    assert folder.admit(coordinator, "north", key) == keystore.fingerprint(keystore.read_public_line(key))
    assert list(coordinator.site_keys()) == ["north"]
    assert coordinator.site_keys()["north"].read_text() == key.read_text()


def test_one_name_one_key(coordinator: folder.Coordinator, key: Path, tmp_path: Path) -> None:
    folder.admit(coordinator, "north", key)
    with pytest.raises(ConfigError, match="with this very key"):
        folder.admit(coordinator, "north", key)
    with pytest.raises(ConfigError, match="as site 'north'"):
        folder.admit(coordinator, "south", key)
    with pytest.raises(ConfigError, match="with another key"):
        folder.admit(coordinator, "north", keystore.create_site_key(tmp_path / "other"))
    assert coordinator.site_keys()["north"].read_text() == key.read_text()


def test_a_file_that_is_half_written_is_no_site(coordinator: folder.Coordinator, key: Path) -> None:
    (coordinator.folder / "sites" / ".partial-1-north.pub").write_bytes(key.read_bytes())
    assert coordinator.site_keys() == {}


def test_bad_names_and_private_keys_are_refused(coordinator: folder.Coordinator, key: Path) -> None:
    for name in ("../north", "a.b", ""):
        with pytest.raises(ConfigError, match="site name must be"):
            folder.admit(coordinator, name, key)
    with pytest.raises(RefusedError, match="must never leave its site"):
        folder.admit(coordinator, "north", key.with_suffix(""))
    assert coordinator.site_keys() == {}


def test_the_server_certificate_is_renewed_in_its_last_month_and_the_authority_never(
    coordinator: folder.Coordinator,
) -> None:
    authority = coordinator.authority.read_bytes()
    first = coordinator.server_certificate.read_bytes()
    days = certificates.SERVER_DAYS - certificates.RENEW_BEFORE_DAYS
    assert not folder.renew_if_due(coordinator, NOW + dt.timedelta(days=days))
    assert coordinator.server_certificate.read_bytes() == first
    late = NOW + dt.timedelta(days=days + 1)
    assert folder.renew_if_due(coordinator, late)
    renewed = coordinator.server_certificate.read_bytes()
    assert certificates.days_left(renewed, late) == certificates.SERVER_DAYS
    assert coordinator.authority.read_bytes() == authority
    keystore.check_private(coordinator.server_key)


@pytest.mark.parametrize("key", ["ca.key", "release.key"])
def test_an_open_key_stops_every_command(coordinator: folder.Coordinator, key: str) -> None:
    folder.release_signer(coordinator, NOW)
    (coordinator.folder / "ca" / key).chmod(0o644)
    with pytest.raises(RefusedError, match=f"{key} must have mode 0600, got 0644"):
        folder.read(coordinator.folder)


def test_no_coordinator_and_a_damaged_one(coordinator: folder.Coordinator, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wardround-coordinator init"):
        folder.read(tmp_path)
    (coordinator.folder / "coordinator.json").write_text("{}")
    with pytest.raises(DataError, match="restore it"):
        folder.read(coordinator.folder)
