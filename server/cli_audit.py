"""Commands of `wardround-coordinator` for its audit log: shown, verified, exported."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from server import folder
from server.audit import log_path, record
from server.terminal import OUT, command
from shared.audit import read, signers_in, verify
from shared.audit_show import add_filters, anchors_of, export, print_entries, print_verified, shown
from shared.errors import ConfigError
from shared.trust import keystore


def add(commands: Any) -> None:
    """Register the parsers of these commands."""
    text = "what was done here, by whom, with which campaign: the coordinator's audit log"
    actions = commands.add_parser("audit", help=text, description=text).add_subparsers(required=True, metavar="ACTION")
    add_filters(command(actions, "show", _show, "entries, for a person"))
    check = command(actions, "verify", _verify, "follow the chain; exit code 3 with the first wrong entry")
    check.add_argument("--log", type=Path, metavar="FILE", help="verify a site's exported log instead, with --site")
    check.add_argument("--site", metavar="NAME", help="whose key and whose kept heads --log is verified against")
    out = command(actions, "export", _export, "a copy as JSON lines that verifies like the log itself")
    out.add_argument("--out", required=True, type=Path, metavar="FILE")


def _show(arguments: argparse.Namespace) -> int:
    coordinator = folder.read(arguments.folder)
    entries = shown(read(log_path(coordinator)), arguments)
    print_entries(OUT, entries, as_json=arguments.json, title=f"Audit log of federation {coordinator.name}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    coordinator = folder.read(arguments.folder)
    if (arguments.log is None) != (arguments.site is None):
        raise ConfigError("--log and --site belong together: a site's exported log, and whose it is")
    own = log_path(coordinator)
    found = verify(own, signers_in(own, coordinator.authority.read_bytes()))
    if arguments.log is not None:
        key = coordinator.site_keys().get(arguments.site)
        if key is None:
            raise ConfigError(f"site {arguments.site!r} is not admitted here; see: wardround-coordinator status")
        found = verify(arguments.log, keystore.read_public_line(key), anchors_of(own, arguments.site))
    print_verified(OUT, found)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    coordinator = folder.read(arguments.folder)
    count = export(log_path(coordinator), arguments.out)
    record(coordinator, "admin.audit_exported", entries=count)
    OUT.print(f"Written: {arguments.out}, {count} entries, and {arguments.out.name}.head beside it")
    return 0
