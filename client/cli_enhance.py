"""Commands of `wardround-site` for studies enhanced and given back as DICOM."""

from __future__ import annotations

import argparse
import datetime as dt
import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from client import folder
from client.audit import record
from client.terminal import OUT, command, json_option, progress
from shared.errors import ConfigError

if TYPE_CHECKING:
    from client.enhance.study import Summary
    from client.folder import SiteFolder

MOST_DRAWS = 256


def add(commands: Any) -> None:
    """Register the parsers of these commands."""
    enhance = command(commands, "enhance", _enhance, "enhance a study by the installed release into derived DICOM")
    enhance.add_argument("study", metavar="STUDY", help="a DICOM file, a folder, or with --pacs a Study Instance UID")
    enhance.add_argument("out", type=Path, metavar="OUT", help="a new folder for images, masks, scores and a report")
    enhance.add_argument("--pacs", action="store_true", help="fetch the study from the PACS of DIR/pacs.json")
    enhance.add_argument("--send", action="store_true", help="send images and masks to that PACS afterwards")
    second = "another acquisition of the same study: the enhancer adapts to the two first, for this study alone"
    enhance.add_argument("--second", type=Path, metavar="FOLDER", help=second)
    draws = "noise draws behind the map of uncertainty in the report; 0 for none (default 8)"
    enhance.add_argument("--draws", type=int, default=8, metavar="N", help=draws)
    json_option(enhance)


def _enhance(arguments: argparse.Namespace) -> int:
    from client.enhance import pacs

    if arguments.draws == 1 or not 0 <= arguments.draws <= MOST_DRAWS:
        raise ConfigError(f"--draws takes 0 or 2 to {MOST_DRAWS}, got {arguments.draws}")
    site = folder.read(arguments.folder)
    study = pacs.fetched(site, arguments.study) if arguments.pacs else nullcontext(Path(arguments.study))
    with study as source:
        summary = _run(arguments, site, source)
    stored = pacs.sent(site, summary.files) if arguments.send else None
    record(site, "study.enhanced", release=summary.release, series=len(summary.series), slices=summary.slices,
           stored_in_pacs=stored)  # fmt: skip
    if arguments.json:
        print(json.dumps(_as_json(summary, stored), indent=1))
        return 0
    _print(summary, arguments.out, stored)
    return 0


def _run(arguments: argparse.Namespace, site: SiteFolder, source: Path) -> Summary:
    from client.enhance.series import Options
    from client.enhance.study import enhance_study
    from client.releases import installed

    options = Options(now=dt.datetime.now().astimezone(), draws=arguments.draws)
    with progress() as shown:
        bars: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = shown.add_task(stage, total=total)
            shown.update(bars[stage], completed=done, total=total)

        return enhance_study(
            source, arguments.out, installed(site), site.machine, options, advance, second=arguments.second
        )


def _as_json(summary: Summary, stored: int | None) -> dict[str, Any]:
    """Counts and names of folders that this program gave."""
    return {
        "release": summary.release,
        "series": [
            {
                "folder": one.folder,
                "modality": one.modality,
                "slices": one.planes,
                "files": [path.name for path in one.files],
                "unusual": None if one.unusual is None else bool(one.unusual.unusual),
                "most_probable": None if one.diagnosis is None else one.diagnosis["most_probable"],
            }
            for one in summary.series
        ],
        "not_enhanced": dict(summary.refused),
        "slices": summary.slices,
        "seconds": round(summary.seconds, 3),
        "stages": {name: round(value, 3) for name, value in summary.stages.items()},
        "stored_in_pacs": stored,
    }


def _print(summary: Summary, out: Path, stored: int | None) -> None:
    table = Table("series", "modality", "slices", "like the release's", "highest score", title="Enhanced")
    for one in summary.series:
        like = "not known" if one.unusual is None else "no" if one.unusual.unusual else "yes"
        top = "" if one.diagnosis is None else str(one.diagnosis["most_probable"])
        table.add_row(one.folder, one.modality, str(one.planes), like, escape(top))
    OUT.print(table)
    if summary.refused:
        left = Table("series", "reason", title="Not enhanced")
        for reason, count in summary.refused.most_common():
            left.add_row(str(count), reason)
        OUT.print(left)
    OUT.print(f"{summary.slices} slices in {summary.seconds:.1f} s by {escape(summary.release)}")
    OUT.print(f"Research only. Pictures for the person at the hospital: {escape(str(out / 'report.html'))}")
    if stored is not None:
        OUT.print(f"The PACS keeps {stored} derived files.")
