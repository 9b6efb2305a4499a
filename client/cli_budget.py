"""Command of `wardround-site` for what campaigns have spent of the patients' privacy here."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.markup import escape
from rich.table import Table

from client import folder
from client.terminal import OUT, command, json_option


def add(commands: Any) -> None:
    """Register the parser of the command."""
    json_option(command(commands, "budget", _budget, "epsilon that campaigns have spent at this site, each and in all"))


def _budget(arguments: argparse.Namespace) -> int:
    from client.rules import read_rules
    from shared.privacy.ledger import read_ledger, summary

    site = folder.read(arguments.folder)
    spent = summary(read_ledger(site.folder), read_rules(site.folder).epsilon_total)
    if arguments.json:
        print(json.dumps(spent, indent=1))
        return 0
    if not spent["campaigns"]:
        OUT.print("Nothing was spent at this site: no campaign with differential privacy has trained here.")
        return 0
    table = Table("campaign", "hides", "attempts", "epsilon spent", "of", "delta", title=f"Privacy of site {site.name}")
    for row in spent["campaigns"]:
        named = f"{escape(row['name'])} ({row['campaign'][:12]})"
        figures = (f"{row['spent']:.3f}", f"{row['epsilon']:g}", f"{row['delta']:g}")
        table.add_row(named, f"a {row['unit']}", str(row["attempts"]), *figures)
    OUT.print(table)
    most = "" if spent["most"] is None else f" of {spent['most']:g} that rules.json allows"
    OUT.print(f"All together, of one patient: epsilon {spent['total']:.3f}{most}, delta {spent['delta']:g}.")
    return 0
