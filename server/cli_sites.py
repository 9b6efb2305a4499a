"""Commands of `wardround-coordinator` for sites: admit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from server import folder
from server.audit import record
from server.terminal import OUT, command


def add(commands: Any) -> None:
    """Register the parsers of these commands."""
    add_site = command(commands, "add-site", _add_site, "admit a site by its public key")
    add_site.add_argument("site", metavar="SITE")
    add_site.add_argument("public_key", type=Path, metavar="KEY.PUB")


def _add_site(arguments: argparse.Namespace) -> int:
    coordinator = folder.read(arguments.folder)
    fingerprint = folder.admit(coordinator, arguments.site, arguments.public_key)
    record(coordinator, "admin.site_admitted", site=arguments.site, key=fingerprint)
    OUT.print(f"Site {arguments.site} is admitted with key {fingerprint}")
    OUT.print("Compare that with what the site reads out by telephone.")
    OUT.print(f"The site needs: {coordinator.authority}")
    return 0
