"""The coordinator's folder: founded once, read by every command of `wardround-coordinator`.

coordinator.json   name, host names, ports; of the gateway too, where one was made
ca/ca.crt ca.key   the federation's authority (the key 0600); ca.crt is what a site gets
ca/issued.jsonl revoked.jsonl ca.crl   certificates of sites, and those that no longer count (server/registry.py)
invitations/       one file per invitation, without its secret          campaigns/   manifests that sites may fetch
gateway/           nginx.conf of `wardround-coordinator gateway`
ca/release.crt .key            what releases are signed with, from the first release on
releases/NAME/     every release that was made, as sites get it (server/release.py)
tls/server.crt .key            sites/NAME.pub .json .crt   key, public identity and certificate of admitted sites
superexec.secret               runs/NAME/       one campaign: campaign.json, checkpoints, rounds.jsonl, report
flower/            Flower's own state (SQLite, homes)          logs/
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.checkpoint import write_atomically
from shared.errors import ConfigError, DataError, RefusedError
from shared.trust import certificates, keystore, signing
from shared.trust.identity import PublicIdentity
from shared.trust.names import checked_name, is_name

DEFAULT_PORT = 8443
GONE = "gone"
"""Folder below sites/ of those that were revoked or left."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where sites come in: training messages, one join each, everything else."""

    fleet: int
    join: int
    services: int


@dataclass(frozen=True, slots=True)
class Gateway:
    """What stands between the sites and this machine's loopback, as sites dial it."""

    host: str
    ports: Ports


@dataclass(frozen=True, slots=True)
class Coordinator:
    """What `coordinator.json` says, and where it lies."""

    folder: Path
    name: str
    hosts: tuple[str, ...]
    port: int
    join_port: int
    """Enrolment, under the server's certificate alone."""
    services_port: int
    """What sites ask for after the join, under mutual TLS."""
    gateway: Gateway | None = None

    @property
    def authority(self) -> Path:
        return self.folder / "ca" / "ca.crt"

    @property
    def authority_key(self) -> Path:
        return self.folder / "ca" / "ca.key"

    @property
    def revocation_list(self) -> Path:
        return self.folder / "ca" / "ca.crl"

    @property
    def campaigns(self) -> Path:
        """Signed manifests, as sites fetch them."""
        return self.folder / "campaigns"

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
    def signer_key(self) -> Path:
        """Of releases and campaigns; made when it is first needed."""
        return self.folder / "ca" / "release.key"

    @property
    def keys(self) -> tuple[Path, ...]:
        """Every private key of the folder."""
        signer = (self.signer_key,) if self.signer_key.exists() else ()
        return (self.authority_key, self.server_key, *signer, self.superexec_secret)

    @property
    def flower(self) -> Path:
        return self.folder / "flower"

    def site_keys(self) -> dict[str, Path]:
        """Admitted sites by name."""
        return {path.stem: path for path in sorted((self.folder / "sites").glob("[!.]*.pub"))}  # `.`: half written

    def dialled(self) -> Gateway:
        """Host and ports that a site is told: the gateway's where there is one."""
        return self.gateway or Gateway(self.hosts[0], Ports(self.port, self.join_port, self.services_port))

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
    if port > 65533:
        raise ConfigError(f"port must leave two above it for enrolment, got {port}; choose a lower one")
    coordinator = Coordinator(folder, name, _with_loopback(hosts), port, port + 1, port + 2)
    for part in (folder, *(folder / part for part in ("ca", "tls", "sites", "runs", "flower", "logs"))):
        keystore.private_folder(part)
    (folder / ".gitignore").write_text("*\n")  # keys and runs, should the folder lie in a repository
    authority = certificates.create_authority(name, now)
    keystore.write_private(folder / "ca" / "ca.key", authority.key)
    coordinator.authority.write_bytes(authority.certificate)
    _issue(coordinator, now)
    keystore.create_secret(coordinator.superexec_secret)
    save(coordinator)  # last: marks the folder as whole
    return coordinator


def save(coordinator: Coordinator) -> None:
    """Write coordinator.json; what a person wrote into it beside these stays."""
    file = coordinator.folder / "coordinator.json"
    values: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    values |= {"name": coordinator.name, "hosts": list(coordinator.hosts), "port": coordinator.port}
    values |= {"join_port": coordinator.join_port, "services_port": coordinator.services_port}
    if coordinator.gateway is not None:
        values["gateway"] = asdict(coordinator.gateway)
    write_atomically(file, (json.dumps(values, indent=1) + "\n").encode())


def _with_loopback(hosts: tuple[str, ...]) -> tuple[str, ...]:
    """The coordinator's own processes talk to it over loopback, so its certificate is for that as well."""
    return tuple(dict.fromkeys((*hosts, "localhost", "127.0.0.1")))


def _issue(coordinator: Coordinator, now: dt.datetime) -> None:
    authority = authority_of(coordinator)
    server = certificates.issue_server(authority, coordinator.hosts, now)
    partial = coordinator.server_key.with_name(".new-server.key")
    partial.unlink(missing_ok=True)
    keystore.write_private(partial, server.key)
    partial.replace(coordinator.server_key)
    # Last: a renewal that was killed before it leaves the old certificate, which is renewed again.
    write_atomically(coordinator.server_certificate, server.certificate)


def read(folder: Path) -> Coordinator:
    """The coordinator of a folder.

    Raises ConfigError when there is none, DataError when its file is damaged, RefusedError when a key lies open.
    """
    try:
        values = json.loads((folder / "coordinator.json").read_text())
        port = int(values["port"])
        coordinator = Coordinator(
            *(folder.resolve(), values["name"], tuple(values["hosts"]), port),
            join_port=int(values.get("join_port", port + 1)),  # a folder of an older version has none
            services_port=int(values.get("services_port", port + 2)),
            gateway=_gateway(values.get("gateway")),
        )
        ports = (coordinator.port, coordinator.join_port, coordinator.services_port)
        if not is_name(coordinator.name) or not all(0 < one < 65536 for one in ports):
            raise ValueError
    except FileNotFoundError:
        raise ConfigError(f"no coordinator in {folder.name!r}; found one with: wardround-coordinator init") from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise DataError("coordinator.json cannot be read; restore it from a backup of the folder") from None
    for key in coordinator.keys:
        keystore.check_private(key)
    return coordinator


def _gateway(values: Any) -> Gateway | None:
    return None if values is None else Gateway(str(values["host"]), Ports(**values["ports"]))


def authority_of(coordinator: Coordinator) -> certificates.Pair:
    """The federation's certificate and key."""
    return certificates.Pair(coordinator.authority.read_bytes(), keystore.read_private(coordinator.authority_key))


def renew_if_due(coordinator: Coordinator, now: dt.datetime) -> bool:
    """Issue a new server certificate in the last 30 days of the old; sites notice nothing. Returns whether it did."""
    due = certificates.days_left(coordinator.server_certificate.read_bytes(), now) < certificates.RENEW_BEFORE_DAYS
    if due:
        _issue(coordinator, now)
    return due


def release_signer(coordinator: Coordinator, now: dt.datetime) -> certificates.Pair:
    """What releases are signed with: made when it is first asked for, and anew in its last year, so that a release can
    be installed for a year or more. Sites notice nothing. Not for two at once (server/release.py holds a lock)."""
    certificate, key = coordinator.folder / "ca" / "release.crt", coordinator.signer_key
    authority = authority_of(coordinator)
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
    """Take a site's key.pub, or its key.json (with its exchange key), into the federation; returns the fingerprint."""
    checked_name("site name", site)
    identity = _public_identity(public_key)
    if identity is None:
        line = keystore.read_public_line(public_key)
    elif identity.name != site:
        raise ConfigError(
            f"{public_key.name} is of site {identity.name!r}, not of {site!r}; give the site its own name"
        )
    else:
        line = identity.key
    return admit_key(coordinator, site, line, identity)


def admit_key(coordinator: Coordinator, site: str, line: str, identity: PublicIdentity | None) -> str:
    """Admit a key that passes `check_admissible`; returns its fingerprint."""
    check_admissible(coordinator, site, line)
    sites = coordinator.folder / "sites"
    (sites / f"{site}.json").unlink(missing_ok=True)  # of an earlier key, whose .pub was taken away by hand
    if identity is not None:
        write_atomically(sites / f"{site}.json", (json.dumps(identity.to_json(), indent=1) + "\n").encode())
    write_atomically(sites / f"{site}.pub", (line + "\n").encode())  # last: it is what admits
    return keystore.fingerprint(line)


def check_admissible(coordinator: Coordinator, site: str, line: str) -> None:
    """One name, one key; one key, one name; a key that was revoked stays out. Raises ConfigError or RefusedError."""
    for other, path in coordinator.site_keys().items():
        same_key = path.read_text().strip() == line
        if other == site:
            hint = "with this very key" if same_key else "with another key"
            raise ConfigError(f"site {site!r} is admitted already, {hint}; revoke it first if another is meant")
        if same_key:
            raise ConfigError(f"this key is admitted already, as site {other!r}; every site makes its own key")
    if any(path.read_text().strip() == line for path in (coordinator.folder / "sites" / GONE).glob("*/*.pub")):
        raise RefusedError("this key was revoked; the site makes a new one, in a new folder")


def _public_identity(path: Path) -> PublicIdentity | None:
    """What a key.json holds; None for another file."""
    if path.suffix != ".json":
        return None
    try:
        values = json.loads(path.read_bytes()[: keystore.MAX_KEY_FILE])
    except (OSError, ValueError, RecursionError):
        raise DataError(f"{path.name} cannot be read; expected the key.json that wardround-site init wrote") from None
    return PublicIdentity.from_json(values)
