"""Commands of `wardround-site` for a release adapted to this site's scanner."""

from __future__ import annotations

import argparse
import datetime as dt
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from client import folder
from client.audit import record
from client.terminal import OUT, command, json_option, progress, two_columns
from shared.errors import ConfigError, RefusedError

if TYPE_CHECKING:
    from rich.progress import TaskID


def add(commands: Any) -> None:
    """Register the parsers of these commands."""
    text = "adapt the release in force to this site's scanner; kept only if it is better here and forgets nothing"
    personal = command(commands, "personalise", _personalise, text)
    personal.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="see configs/personalise.yaml")
    personal.add_argument(
        "--without-reference", action="store_true", help="adapt a release that has no reference set all the same"
    )
    personal.add_argument("--drop", action="store_true", help="go back to the release as it came, instead")
    json_option(personal)


def _personalise(arguments: argparse.Namespace) -> int:
    site = folder.read(arguments.folder)
    if arguments.drop:
        if arguments.overrides:
            raise ConfigError("--drop takes no KEY=VALUE: it goes back to the release as it came")
        return _drop(site)
    from client.personalise import personalise
    from shared.config import PersonaliseConfig, load

    config = load("personalise", arguments.overrides, PersonaliseConfig)
    with progress() as shown:
        bars: dict[str, TaskID] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = shown.add_task(stage, total=total)
            shown.update(bars[stage], completed=done, total=total)

        outcome = personalise(
            site,
            config,
            dt.datetime.now(dt.UTC),
            without_reference=arguments.without_reference,
            on_progress=advance,
        )
    record(site, "release.personalised", kept=outcome.kept, method=str(outcome.record["method"]))
    if arguments.json:
        print(json.dumps({"kept": outcome.kept, "reasons": outcome.reasons, **outcome.record}, indent=1))
    else:
        _print(outcome.record, kept=outcome.kept)
    if not outcome.kept:
        raise RefusedError(f"not kept, and nothing was changed: {'; '.join(outcome.reasons)}")
    return 0


def _drop(site: folder.SiteFolder) -> int:
    from client.personalise import drop

    dropped = drop(site)
    record(site, "release.adaptation_dropped", dropped=dropped)
    OUT.print(
        "Back to the release as it came." if dropped else "Nothing was adapted; the release is in force as it came."
    )
    return 0


def _print(record: Mapping[str, Any], *, kept: bool) -> None:
    figures = record["figures"]
    table = two_columns(f"Adapted by {record['method']}")
    table.add_row("weights trained", f"{100 * record['trained_share']:.1f} %")
    if record.get("phi") is not None:
        table.add_row("phi", f"{record['phi']:g}")
    for row in record.get("dropping", ()):
        table.add_row(
            f"dropping test at phi {row['phi']:g}", f"{row['lost_db']:.2f} dB lost, {100 * row['share']:.0f} % dropped"
        )
    table.add_row("held-out patients", str(figures["patients"]))
    for name, words, unit in (
        ("psnr_db", "their PSNR", " dB"),
        ("dice", "their Dice", ""),
        ("reference.psnr_db", "reference set's PSNR", " dB"),
        ("reference.dice", "reference set's Dice", ""),
    ):
        if figures[name] is not None:
            table.add_row(words, f"{figures[name]['before']:.3f} -> {figures[name]['after']:.3f}{unit}")
    table.add_row("gain", f"{figures['gain_db']:.3f} dB, at least {figures['gain_bound_db']:.3f} dB (95 %)")
    table.add_row("kept", "yes: in force from now on" if kept else "no")
    OUT.print(table)
