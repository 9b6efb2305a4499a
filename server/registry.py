"""Certificates of sites at the coordinator: issued, listed, revoked.

ca/issued.jsonl    one line per certificate: site, serial, ends
ca/revoked.jsonl   one line per certificate that no longer counts: site, serial, when
ca/ca.crl          the same for the gateway, signed by the authority
sites/gone/NAME-TIME/   key, identity and certificate of a site that was revoked or has left

Both .jsonl files only grow. A revocation is written before the keys are moved away: whatever stops in between, the
certificate is refused already.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.folder import GONE, Coordinator, authority_of
from shared.checkpoint import write_atomically
from shared.errors import ConfigError, DataError, RefusedError, WardroundError
from shared.locks import locked
from shared.trust import keystore
from shared.trust.site_certificates import SiteCertificate, issue_site, read_site_certificate, revocation_list

_ENDINGS = (".pub", ".json", ".crt")


@dataclass(frozen=True, slots=True)
class Gone:
    """What a revocation ended."""

    site: str
    certificates: int


@contextmanager
def registering(coordinator: Coordinator) -> Iterator[None]:
    """Only one process at a time writes who is in and who is out."""
    with locked(coordinator.folder / "ca" / ".registry.lock"):
        yield


def issue(coordinator: Coordinator, site: str, request: bytes, now: dt.datetime) -> bytes:
    """A certificate (PEM) for a request, written down before it is given out. Caller holds `registering`."""
    certificate = issue_site(authority_of(coordinator), site, request, now)
    said = read_site_certificate(certificate, coordinator.authority.read_bytes(), now)
    _append(coordinator, "issued", {"site": site, "serial": f"{said.serial:x}", "ends": said.ends.isoformat()})
    return certificate


def keep_certificate(coordinator: Coordinator, site: str, certificate: bytes) -> None:
    """The certificate that a site has now: sites/NAME.crt."""
    write_atomically(coordinator.folder / "sites" / f"{site}.crt", certificate)


def certificates_of(coordinator: Coordinator, now: dt.datetime) -> dict[str, SiteCertificate | str]:
    """Site -> its certificate, or the reason why it is none; sites that were added by hand have none."""
    authority = coordinator.authority.read_bytes()
    found: dict[str, SiteCertificate | str] = {}
    for site in coordinator.site_keys():
        path = coordinator.folder / "sites" / f"{site}.crt"
        try:
            if path.is_file():
                found[site] = read_site_certificate(path.read_bytes(), authority, now)
        except WardroundError as error:
            found[site] = str(error)
    return found


def known_site(coordinator: Coordinator, certificate: bytes, now: dt.datetime) -> SiteCertificate:
    """What a peer's certificate says, if (1) it is a site's, of this federation and in force, (2) it was not revoked,
    and (3) its site is still in.  Raises RefusedError."""
    # (1)
    try:
        said = read_site_certificate(certificate, coordinator.authority.read_bytes(), now)
    except DataError:
        raise RefusedError("a site's certificate is needed here") from None
    # (2)
    if any(int(entry["serial"], 16) == said.serial for entry in _entries(coordinator, "revoked")):
        raise RefusedError(f"this certificate of site {said.site} was revoked; join again with a new invitation")
    # (3)
    if said.site not in coordinator.site_keys():
        raise RefusedError(f"site {said.site} is not in this federation; join with an invitation")
    return said


def revoke(coordinator: Coordinator, site: str, now: dt.datetime) -> Gone:
    """End a site's part: certificates listed as revoked, key and identity put aside. Raises ConfigError for none such.

    Flower's registration of the key ends when `serve` next looks (server/processes.py `registrar`).
    """
    with registering(coordinator):
        if site not in coordinator.site_keys():
            raise ConfigError(f"site {site!r} is not in this federation; see: wardround-coordinator status")
        gone = {entry["serial"] for entry in _entries(coordinator, "revoked")}
        serials = [
            entry["serial"]
            for entry in _entries(coordinator, "issued")
            if entry["site"] == site and entry["serial"] not in gone
        ]
        for serial in serials:
            _append(coordinator, "revoked", {"site": site, "serial": serial, "when": now.isoformat()})
        write_revocation_list(coordinator, now)
        _put_aside(coordinator, site, now)
    return Gone(site, len(serials))


def write_revocation_list(coordinator: Coordinator, now: dt.datetime) -> None:
    """Sign ca/ca.crl anew. Certificates that ended by themselves stay on it: it is short."""
    revoked = [
        (int(entry["serial"], 16), dt.datetime.fromisoformat(entry["when"]))
        for entry in _entries(coordinator, "revoked")
    ]
    write_atomically(coordinator.revocation_list, revocation_list(authority_of(coordinator), revoked, now))


def _put_aside(coordinator: Coordinator, site: str, now: dt.datetime) -> None:
    sites = coordinator.folder / "sites"
    aside = keystore.private_folder(sites / GONE / f"{site}-{now:%Y%m%dT%H%M%S%f}")
    for ending in _ENDINGS:  # the key first: it is what admits
        if (sites / f"{site}{ending}").exists():
            (sites / f"{site}{ending}").replace(aside / f"{site}{ending}")


def _append(coordinator: Coordinator, name: str, entry: dict[str, str]) -> None:
    path = coordinator.folder / "ca" / f"{name}.jsonl"
    line = json.dumps(entry).encode() + b"\n"
    with path.open("ab", buffering=0) as file:
        whole = _whole(path.read_bytes())
        try:
            file.truncate(len(whole))
            if file.write(line) != len(line):
                raise OSError
            os.fsync(file.fileno())
        except OSError:
            file.truncate(len(whole))
            raise DataError(f"ca/{name}.jsonl cannot be written: the disk may be full; nothing was changed") from None


def _whole(content: bytes) -> bytes:
    """Without half a line, which a power cut or a full disk leaves: what it was to say was never given out."""
    return content[: content.rfind(b"\n") + 1]


def _entries(coordinator: Coordinator, name: str) -> list[dict[str, Any]]:
    path: Path = coordinator.folder / "ca" / f"{name}.jsonl"
    if not path.exists():
        return []
    try:
        entries = [json.loads(line) for line in _whole(path.read_bytes()).splitlines()]
        if any(int(entry["serial"], 16) < 1 or not isinstance(entry["site"], str) for entry in entries):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"ca/{name}.jsonl is damaged; restore it from a backup of the folder") from None
    return entries
