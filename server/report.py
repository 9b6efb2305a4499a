"""A run folder in, report.json and report.html out; nothing else is read, so a report can be rebuilt years later.

Rebuild one with `python -m server.report RUN_DIR`. What is read from the folder stands in server/findings.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from server.findings import read_findings
from server.page import render
from server.summary import PATIENTS, summary_rows
from server.wording import METRICS, shown
from shared.checkpoint import write_atomically
from shared.errors import WardroundError

TERMINAL = ("psnr_db", "ssim", "dice", "judge_dice", "accuracy", "f1", "auc", "jaccard", "hd95_mm", "hd95_px")
"""The first seven that there are fit into 80 columns; the page has the rest."""


def write_report(run_dir: Path) -> Path:
    """Write report.json and report.html into `run_dir` and return the page's path; DataError on bad input."""
    findings = read_findings(run_dir)
    page = render(findings)
    write_atomically(run_dir / "report.json", (json.dumps(findings.report, indent=1, allow_nan=False) + "\n").encode())
    write_atomically(run_dir / "report.html", page.encode())
    return run_dir / "report.html"


def summary_table(report: Mapping[str, Any]) -> Table:
    """The rows over all sites, averaged over seeds, for the terminal."""
    summary = summary_rows(report["rows"])
    keys = [key for key in TERMINAL if any(key in metrics for _, metrics in summary)][:7]
    patients = {f"{metrics[PATIENTS]:.0f}" for _, metrics in summary if "accuracy" in metrics and PATIENTS in metrics}
    of = f"; accuracy of {' or '.join(sorted(patients))} patients" if patients and "accuracy" in keys else ""
    table = Table(title=f"{report['experiment']}: all sites' tests{of}", title_justify="left", header_style="bold")
    table.add_column("method", no_wrap=True)
    table.add_column("setting", no_wrap=True)
    for key in keys:
        table.add_column(METRICS[key].heading, justify="right")
    for (method, setting), metrics in summary:
        cells = [shown(key, metrics[key]) if key in metrics else "" for key in keys]
        table.add_row(method, setting, *cells, style="bold" if setting == "federated" else None)
    return table


def claims_table(report: Mapping[str, Any]) -> Table:
    """The claims with a plain yes or no, for the terminal."""
    table = Table(title="claims", title_justify="left", header_style="bold")
    for heading in ("claim", "value", "target", "holds"):
        table.add_column(heading, justify="right" if heading in ("value", "target") else "left")
    for claim in report["claims"]:
        holds = "[green]yes[/]" if claim["holds"] else "[red]no[/]"
        table.add_row(claim["claim"], f"{claim['value']:.3f}", f"{claim['target']:.3f}", holds)
    return table


if __name__ == "__main__":
    try:
        print(write_report(Path(sys.argv[1])))
    except WardroundError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
