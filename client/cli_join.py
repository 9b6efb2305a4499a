"""Commands of `wardround-site` for its place in the federation: join, renew, fetch."""

from __future__ import annotations

import argparse
import datetime as dt
import sys
from pathlib import Path
from typing import Any

from client import folder
from client.audit import record
from client.terminal import OUT, command, progress
from shared.errors import ConfigError
from shared.trust import keystore
from shared.trust.invitations import MAX_INVITATION, Invitation, read_invitation


def add(commands: Any) -> None:
    """Register the parsers of these commands."""
    text = "make this site's folder and keys and join a federation by its invitation"
    join = commands.add_parser("join", help=text, description=text)
    join.add_argument("invitation", type=Path, metavar="INVITE", help="the file that the coordinator sent; - for stdin")
    join.add_argument("folder", type=Path, metavar="DIR", help="the site's new folder")
    join.add_argument("--proxy", default="", metavar="http://HOST:PORT", help="HTTPS proxy; default: the environment's")
    join.set_defaults(command=_join)
    command(commands, "renew", _renew, "a new certificate now; `run` renews in the last third of its life")
    fetch = command(commands, "fetch", _fetch, "campaigns and releases that wait at the coordinator; approves nothing")
    fetch.add_argument("--list", action="store_true", help="only show what waits")


def _join(arguments: argparse.Namespace) -> int:
    from client.join import certificate_of, join

    invitation = _read(arguments.invitation)
    OUT.print(f"Federation {invitation.federation} invites site {invitation.site}; {invitation.join}")
    OUT.print(f"Compare by telephone: authority SHA-256 {invitation.authority_fingerprint}")
    site = join(invitation, arguments.folder, _now(), arguments.proxy)
    said = certificate_of(site, _now())
    assert said is not None
    line = keystore.read_public_line(site.folder / "key.pub")
    record(site, "admin.joined", federation=invitation.federation, authority=invitation.authority_fingerprint)
    OUT.print(f"Site {site.name} has joined; its certificate is in force until {said.ends:%Y-%m-%d}.")
    OUT.print(f"Read this out to the coordinator and to the other sites: {keystore.fingerprint(line)}")
    OUT.print("The private keys in the folder never leave it. The invitation is used up; delete it.")
    return 0


def _read(path: Path) -> Invitation:
    try:
        if str(path) == "-":
            return read_invitation(sys.stdin.read(MAX_INVITATION + 1))
        with path.open() as file:
            return read_invitation(file.read(MAX_INVITATION + 1))
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"no invitation {path.name!r} that can be read; the coordinator sends one") from None


def _renew(arguments: argparse.Namespace) -> int:
    from client.join import renew

    site = folder.read(arguments.folder)
    said = renew(site, _now())
    record(site, "admin.certificate_renewed", until=said.ends.isoformat())
    OUT.print(f"The certificate of site {site.name} is renewed; it is in force until {said.ends:%Y-%m-%d}.")
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    from client.join import fetch, waiting

    site = folder.read(arguments.folder)
    offered = waiting(site)
    if not offered:
        OUT.print("Nothing waits at the coordinator for this site.")
    for one in offered:
        if arguments.list:
            OUT.print(f"{one.kind} {one.name}, {one.size / 1e6:.1f} MB")
            continue
        with progress() as shown:
            bar = shown.add_task(one.name, total=one.size)
            path = fetch(site, one, lambda done, bar=bar: shown.update(bar, completed=done))  # type: ignore[misc]
        record(site, "admin.fetched", kind=one.kind, name=one.name, sha256=one.sha256.hex())
        word = "approve" if one.kind == "campaign" else "install"
        OUT.print(f"{one.kind} {one.name}: wardround-site {word} {arguments.folder} {path}")
    return 0


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
