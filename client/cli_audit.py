"""Commands of `wardround-site` for its audit log: shown, verified, exported."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from client import folder
from client.audit import log_path, record
from client.terminal import OUT, command
from shared.audit import read, signers_in, verify
from shared.audit_show import add_filters, anchors_of, export, print_entries, print_verified, shown
from shared.trust import keystore
from shared.trust.line_signatures import line_of

COORDINATOR = "coordinator"
"""What anchors of the coordinator's log are kept under."""


def add(commands: Any) -> None:
    """Register the parsers of these commands."""
    text = "what was done here, by whom, and what left: the site's audit log"
    actions = commands.add_parser("audit", help=text, description=text).add_subparsers(required=True, metavar="ACTION")
    add_filters(command(actions, "show", _show, "entries, for a person"))
    check = command(actions, "verify", _verify, "follow the chain; exit code 3 with the first wrong entry")
    check.add_argument("--coordinator", type=Path, metavar="FILE", help="verify the coordinator's exported log instead")
    out = command(actions, "export", _export, "a copy as JSON lines that verifies like the log itself")
    out.add_argument("--out", required=True, type=Path, metavar="FILE")


def _show(arguments: argparse.Namespace) -> int:
    site = folder.read(arguments.folder)
    entries = shown(read(log_path(site)), arguments)
    print_entries(OUT, entries, as_json=arguments.json, title=f"Audit log of site {site.name}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    site = folder.read(arguments.folder)
    own = line_of(keystore.read_private(site.key))
    found = verify(log_path(site), own)
    if arguments.coordinator is not None:
        keys = signers_in(arguments.coordinator, site.authority.read_bytes())
        found = verify(arguments.coordinator, keys, anchors_of(log_path(site), COORDINATOR))
    print_verified(OUT, found)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    site = folder.read(arguments.folder)
    count = export(log_path(site), arguments.out)
    record(site, "admin.audit_exported", entries=count)
    OUT.print(f"Written: {arguments.out}, {count} entries, and {arguments.out.name}.head beside it")
    return 0
