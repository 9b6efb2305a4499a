"""The site's folder: made once by `wardround-site init`, read by every other command.

site.json          name, coordinator address, machine; after a join the services' address; "proxy", written by hand
ca.crt             the federation's authority, from the coordinator
key key.pub        the site's key pair; key (0600) never leaves this folder
exchange.key       what other sites encrypt to (0600)          key.json   the public halves of both, for the coordinator
tls.pem            the site's certificate for mutual TLS with its key (0600), after a join; one file, so that they fit
fetched/           campaigns and releases that `wardround-site fetch` brought; nothing of it is in force
site.secret        keys the pseudonyms of de-identification (0600); lost, the next ingest gives every patient a new one
pacs.json          the hospital's PACS, written by hand (client/ingest/pacs/config.py); optional
store/             de-identified images          approvals/   campaigns that may run here
inbox/             what scanners sent to `wardround-site receive`
flower/            Flower's own state           logs/
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.checkpoint import write_atomically
from shared.config import MachineConfig, build
from shared.errors import ConfigError, DataError
from shared.trust import certificates, identity, keystore
from shared.trust.names import checked_address, checked_name


@dataclass(frozen=True, slots=True)
class SiteFolder:
    """What `site.json` says, and where it lies."""

    folder: Path
    name: str
    host: str
    port: int
    machine: MachineConfig
    services: tuple[str, int] | None = None
    """Where the coordinator's services answer under mutual TLS; None at a site that was made by hand."""
    gateway: bool = False
    """Whether `host`:`port` wants this site's certificate."""
    proxy: str = ""
    """What `site.json` says of an HTTPS proxy: http://HOST:PORT, `none`, or nothing (client/proxy.py)."""

    @property
    def certificate(self) -> Path:
        """Certificate and key in one file."""
        return self.folder / "tls.pem"

    @property
    def exchange_key(self) -> Path:
        return self.folder / "exchange.key"

    @property
    def public_identity(self) -> Path:
        return self.folder / "key.json"

    @property
    def fetched(self) -> Path:
        return self.folder / "fetched"

    @property
    def authority(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def key(self) -> Path:
        return self.folder / "key"

    @property
    def secret(self) -> Path:
        return self.folder / "site.secret"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def approvals(self) -> Path:
        return self.folder / "approvals"

    @property
    def pacs(self) -> Path:
        return self.folder / "pacs.json"

    @property
    def inbox(self) -> Path:
        return self.folder / "inbox"

    @property
    def flower(self) -> Path:
        return self.folder / "flower"

    @property
    def coordinator(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def create(folder: Path, name: str, coordinator: str, authority: Path) -> Path:
    """Make a site's folder with its keys and secret; returns the public key file to send to the coordinator."""
    checked_name("site name", name)
    checked_address(coordinator)
    check_new(folder)
    public = make_keys(folder, name, _authority(authority))
    finish(folder, {"name": name, "coordinator": coordinator})
    return public


def check_new(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"folder {folder.name!r} is not empty; a site is made in a new folder, never over one")


def make_keys(folder: Path, name: str, authority: bytes) -> Path:
    """Everything but site.json; returns key.pub."""
    for part in (folder, *(folder / part for part in ("approvals", "flower", "logs"))):
        keystore.private_folder(part)
    (folder / ".gitignore").write_text("*\n")  # keys and patients, should the folder lie in a repository
    (folder / "ca.crt").write_bytes(authority)
    keystore.create_secret(folder / "site.secret")
    public = keystore.create_site_key(folder / "key")
    identity.create_exchange_key(folder / "exchange.key")
    shown = identity.load_identity(name, folder / "key", folder / "exchange.key").public
    (folder / "key.json").write_text(json.dumps(shown.to_json(), indent=1) + "\n")
    return public


def finish(folder: Path, values: Mapping[str, Any]) -> None:
    """Write site.json, last: it marks the folder as whole."""
    whole = {**values, "machine": {"device": "auto", "threads": 2}}
    write_atomically(folder / "site.json", (json.dumps(whole, indent=1) + "\n").encode())


def _authority(path: Path) -> bytes:
    try:
        certificate = path.read_bytes()
    except OSError:
        raise ConfigError(f"no certificate file {path.name!r}; the coordinator hands out its ca/ca.crt") from None
    if not certificates.is_authority(certificate):
        raise ConfigError(f"{path.name!r} is not the certificate of an authority; ask the coordinator for ca/ca.crt")
    return certificate


def read(folder: Path) -> SiteFolder:
    """The site of a folder.

    Raises ConfigError when there is none, DataError when site.json is damaged, RefusedError when a key lies open.
    """
    try:
        values = json.loads((folder / "site.json").read_text())
    except FileNotFoundError:
        raise ConfigError(f"no site in {folder.name!r}; make one with: wardround-site init") from None
    except (OSError, ValueError, RecursionError):
        raise DataError("site.json is not readable JSON; restore it from a backup of the folder") from None
    site = _parse(folder.resolve(), values)
    for key in private_files(site):
        keystore.check_private(key)
    return site


def private_files(site: SiteFolder) -> tuple[Path, ...]:
    """Files that nobody else may read; a folder of an older version, and one that was not joined, lacks some."""
    later = (path for path in (site.exchange_key, site.certificate) if path.exists())
    return (site.key, site.secret, *later)


def _parse(folder: Path, values: Any) -> SiteFolder:
    if not isinstance(values, Mapping) or not {"name", "coordinator"} <= values.keys():
        raise DataError("site.json must name the site and its coordinator; restore it from a backup of the folder")
    host, port = checked_address(str(values["coordinator"]))
    machine = build(MachineConfig, values.get("machine", {}), "machine")
    services = checked_address(str(values["services"])) if "services" in values else None
    name = checked_name("site name", str(values["name"]))
    gateway, proxy = values.get("gateway", False) is True, str(values.get("proxy", ""))
    return SiteFolder(folder, name, host, port, machine, services, gateway, proxy)
