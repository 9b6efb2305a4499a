"""The coordinator's folder: founded once, read by every command of `wardround-coordinator`.

coordinator.json   name, host names, port
ca/ca.crt ca.key   the federation's authority (the key 0600); ca.crt is what a site gets
ca/release.crt .key            what releases are signed with, from the first release on
releases/NAME/     every release that was made, as sites get it (server/release.py)
tls/server.crt .key            sites/NAME.pub   the keys of admitted sites
superexec.secret               runs/NAME/       one campaign: campaign.json, checkpoints, rounds.jsonl, report
flower/            Flower's own state (SQLite, homes)          logs/
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path

from shared.checkpoint import write_atomically
from shared.errors import ConfigError, DataError
from shared.trust import certificates, keystore, signing
from shared.trust.names import checked_name

DEFAULT_PORT = 8443


@dataclass(frozen=True, slots=True)
class Coordinator:
    """What `coordinator.json` says, and where it lies."""

    folder: Path
    name: str
    hosts: tuple[str, ...]
    port: int

    @property
    def authority(self) -> Path:
        return self.folder / "ca" / "ca.crt"

    @property
    def server_certificate(self) -> Path:
        return self.folder / "tls" / "server.crt"

    @property
    def server_key(self) -> Path:
        return self.folder / "tls" / "server.key"

    @property
    def superexec_secret(self) -> Path:
        return self.folder / "superexec.secret"

    @property
    def flower(self) -> Path:
        return self.folder / "flower"

    def site_keys(self) -> dict[str, Path]:
        """Admitted sites by name."""
        return {path.stem: path for path in sorted((self.folder / "sites").glob("*.pub"))}

    def run_folder(self, campaign: str) -> Path:
        return self.folder / "runs" / checked_name("campaign name", campaign)


def found(folder: Path, name: str, hosts: tuple[str, ...], port: int, now: dt.datetime) -> Coordinator:
    """Make a new federation: authority, server certificate, secret, layout. Never touches a folder that has one."""
    checked_name("federation name", name)
    for host in hosts:
        certificates.general_name(host)
    if not 0 < port < 65536:
        raise ConfigError(f"port must lie in 1..65535, got {port}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"folder {folder.name!r} is not empty; a federation is founded in a new folder, never over one"
        )
    coordinator = Coordinator(folder, name, _with_loopback(hosts), port)
    for part in (folder, *(folder / part for part in ("ca", "tls", "sites", "runs", "flower", "logs"))):
        keystore.private_folder(part)
    (folder / ".gitignore").write_text("*\n")  # keys and runs, should the folder lie in a repository
    authority = certificates.create_authority(name, now)
    keystore.write_private(folder / "ca" / "ca.key", authority.key)
    coordinator.authority.write_bytes(authority.certificate)
    _issue(coordinator, now)
    keystore.create_secret(coordinator.superexec_secret)
    values = {"name": name, "hosts": list(coordinator.hosts), "port": port}
    (folder / "coordinator.json").write_text(json.dumps(values, indent=1) + "\n")  # last: marks the folder as whole
    return coordinator


def _with_loopback(hosts: tuple[str, ...]) -> tuple[str, ...]:
    """The coordinator's own processes talk to it over loopback, so its certificate is for that as well."""
    return tuple(dict.fromkeys((*hosts, "localhost", "127.0.0.1")))


def _issue(coordinator: Coordinator, now: dt.datetime) -> None:
    authority = certificates.Pair(
        coordinator.authority.read_bytes(), keystore.read_private(coordinator.folder / "ca" / "ca.key")
    )
    server = certificates.issue_server(authority, coordinator.hosts, now)
    coordinator.server_key.unlink(missing_ok=True)
    keystore.write_private(coordinator.server_key, server.key)
    coordinator.server_certificate.write_bytes(server.certificate)


def read(folder: Path) -> Coordinator:
    """The coordinator of a folder.

    Raises ConfigError when there is none, DataError when its file is damaged, RefusedError when a key lies open.
    """
    try:
        values = json.loads((folder / "coordinator.json").read_text())
        coordinator = Coordinator(folder.resolve(), values["name"], tuple(values["hosts"]), int(values["port"]))
    except FileNotFoundError:
        raise ConfigError(f"no coordinator in {folder.name!r}; found one with: wardround-coordinator init") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError("coordinator.json cannot be read; restore it from a backup of the folder") from None
    for key in (folder / "ca" / "ca.key", coordinator.server_key, coordinator.superexec_secret):
        keystore.check_private(key)
    return coordinator


def renew_if_due(coordinator: Coordinator, now: dt.datetime) -> bool:
    """Issue a new server certificate in the last 30 days of the old; sites notice nothing. Returns whether it did."""
    due = certificates.days_left(coordinator.server_certificate.read_bytes(), now) < certificates.RENEW_BEFORE_DAYS
    if due:
        _issue(coordinator, now)
    return due


def release_signer(coordinator: Coordinator, now: dt.datetime) -> certificates.Pair:
    """What releases are signed with: made when it is first asked for, and anew in its last year, so that a release can
    be installed for a year or more. Sites notice nothing. Not for two at once (server/release.py holds a lock)."""
    certificate, key = coordinator.folder / "ca" / "release.crt", coordinator.folder / "ca" / "release.key"
    authority = certificates.Pair(
        coordinator.authority.read_bytes(), keystore.read_private(coordinator.folder / "ca" / "ca.key")
    )
    if certificate.is_file():  # written last
        pair = certificates.Pair(certificate.read_bytes(), keystore.read_private(key))
        if signing.still_signs(authority.certificate, pair, now):
            return pair
    certificate.unlink(missing_ok=True)
    key.unlink(missing_ok=True)
    pair = signing.create_signer(authority, now)
    keystore.write_private(key, pair.key)
    write_atomically(certificate, pair.certificate)
    return pair


def admit(coordinator: Coordinator, site: str, public_key: Path) -> str:
    """Take a site's public key into the federation; returns its fingerprint. One name, one key; one key, one name."""
    checked_name("site name", site)
    line = keystore.read_public_line(public_key)
    for other, path in coordinator.site_keys().items():
        same_key = path.read_text().strip() == line
        if other == site:
            hint = "with this very key" if same_key else "with another key"
            raise ConfigError(
                f"site {site!r} is admitted already, {hint}; remove sites/{site}.pub first if that is meant"
            )
        if same_key:
            raise ConfigError(f"this key is admitted already, as site {other!r}; every site makes its own key")
    write_atomically(coordinator.folder / "sites" / f"{site}.pub", (line + "\n").encode())
    return keystore.fingerprint(line)
