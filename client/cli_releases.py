"""Commands of `wardround-site` for releases of the federation: install, list, roll back, validate."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from client import folder
from client.audit import record
from client.terminal import OUT, command, json_option, two_columns
from shared.errors import ConfigError, DataError, RefusedError

if TYPE_CHECKING:
    from client.validate import Validation


def add(commands: Any) -> None:
    """Register the parsers of these commands."""
    install = command(commands, "install", _install, "verify a release of the federation and put it in force here")
    install.add_argument("file", type=Path, metavar="FILE", help="the .release file, as the coordinator made it")
    json_option(command(commands, "releases", _releases, "releases that are installed here"))
    rollback = command(commands, "rollback", _rollback, "put the release in force that was before")
    rollback.add_argument("--yes", action="store_true", help="roll back without a question")
    validate = command(commands, "validate", _validate, "judge a release on this site's labelled patients; exit code 3 "
                       "where one of its gates does not hold here")  # fmt: skip
    validate.add_argument("file", metavar="FILE|installed", help="a .release file, or what is in force")
    validate.add_argument("--out", type=Path, metavar="FILE.json", help="write the figures, for the coordinator")
    json_option(validate)


def _install(arguments: argparse.Namespace) -> int:
    from client.releases import in_force, install, releases

    site = folder.read(arguments.folder)
    try:
        before = [row.digest for row in releases(site) if row.current]
    except DataError:  # what is damaged is mended by installing it
        before = []
    one = install(site, arguments.file, dt.datetime.now(dt.UTC))
    named = f"{one.manifest.name} v{one.manifest.version}, digest {one.digest}"
    record(site, "release.installed", **one.facts, in_force=in_force(site, one), new=before != [one.digest])
    if before == [one.digest]:
        OUT.print(f"Installed already and in force: {named}. Nothing was changed.")
        return 0
    if not in_force(site, one):
        OUT.print(f"Mended on this disk: {named}. What is in force is as before.")
        return 0
    OUT.print(f"In force at site {site.name}: {named}")
    OUT.print(escape(one.manifest.intended_use))
    if one.personal is not None:
        OUT.print("With the weights that this site adapted of it before.")
    return 0


def _releases(arguments: argparse.Namespace) -> int:
    from client.releases import releases

    rows = releases(folder.read(arguments.folder))
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return 0
    if not rows:
        OUT.print("No release is installed at this site.")
    for row in rows:  # lines, not a table: digests are there to be compared whole
        flags = [word for word, said in (("in force", row.current), ("adapted here", row.personal)) if said]
        state = f" ({', '.join(flags)})" if flags else ""
        OUT.print(f"{row.name} v{row.version}{state}, installed {row.installed_at}; digest {row.digest}")
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    from client.releases import former, installed, rollback

    site = folder.read(arguments.folder)
    now, before = installed(site), former(site)
    named = f"{before.manifest.name} v{before.manifest.version}"
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"nobody there to ask; give --yes to go back to {named}")
        if input(f"Back from {now.manifest.name} v{now.manifest.version} to {named}? Type yes: ").strip() != "yes":
            raise RefusedError("the answer was not yes, so the release in force is as before")
    one = rollback(site, dt.datetime.now(dt.UTC))
    record(site, "release.rolled_back", **one.facts)
    adapted = ", with the weights that this site adapted of it" if one.personal is not None else ""
    OUT.print(f"In force at site {site.name}: {named}, digest {one.digest}{adapted}")
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from client.validate import to_json, validate, write

    found = validate(folder.read(arguments.folder), arguments.file)
    if arguments.json:
        print(json.dumps(to_json(found), indent=1))
    else:
        _print_validation(found)
    if arguments.out is not None:
        write(arguments.out, to_json(found))
        record(
            folder.read(arguments.folder), "release.judged", release=found.name, version=found.version,
            digest=found.digest, patients=found.patients, written=len(found.metrics),
        )  # fmt: skip
        if not arguments.json:
            OUT.print(f"These figures and no others were written to {escape(arguments.out.name)}.")
    if found.failed:
        worst = found.failed[0]
        raise RefusedError(
            f"the gate {worst.gate} of {found.name} v{found.version} does not hold here: got {_figure(worst.value)}, "
            f"limit {_figure(worst.limit)}, of {worst.n}; do not use this release at this site before its makers answer"
        )
    return 0


def _print_validation(found: Validation) -> None:
    from shared.gate_table import LEGEND, terminal_tables

    table = two_columns(f"{found.name} v{found.version} at site {found.site}")
    table.add_row("digest", found.digest)
    table.add_row("weights", "as this site adapted them" if found.adapted else "as released")
    table.add_row("patients judged", str(found.patients))
    if found.took_part:
        table.add_row(
            "left out",
            f"{found.left_out} patients: this site took part, and they may have trained. The split follows from the "
            "store as it is now; patients ingested since may have trained, too",
        )
    OUT.print(table)
    figures = Table("figure", "mean", "spread", "of", title="What --out writes: aggregates alone")
    for key, moments in found.metrics.items():
        figures.add_row(escape(key), _figure(moments.mean), _figure(moments.std), str(moments.count))
    OUT.print(figures)
    for gates in terminal_tables(found.gates, OUT.width):
        OUT.print(gates)
    OUT.print(LEGEND)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
