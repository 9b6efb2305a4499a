"""Run folders in, a page of results in Markdown out: tables and claims as report.json has them, never typed.

python -m simulation.results --title "Foundation" --out docs/results/foundation.md runs/demo runs/hippocampus

The report of a study (experiment=enhancement, recognition, generation, personalise, trust) also has pictures: they go
to the folder `images` beside that of the page, named after the page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from server.contract import SETTINGS, checked, contract_of, read_json
from server.summary import at_home
from server.wording import METRICS, duration_shown, shown
from shared.errors import DataError, WardroundError
from simulation.study.document import READING, document
from simulation.study.generation_document import READING as READING_GENERATION
from simulation.study.generation_document import generation_document
from simulation.study.personal_document import READING as READING_PERSONAL
from simulation.study.personal_document import personal_document
from simulation.study.recognition_document import READING as READING_RECOGNITION
from simulation.study.recognition_document import recognition_document
from simulation.study.trust_document import READING as READING_TRUST
from simulation.study.trust_document import trust_document

COLUMNS = ("psnr_db", "ssim", "psnr_db_region", "dice", "judge_dice", "accuracy", "auc", "samples_seen", "bytes_up")

_STUDIES = {
    "enhancement": (READING, document),
    "recognition": (READING_RECOGNITION, recognition_document),
    "generation": (READING_GENERATION, generation_document),
    "personalise": (READING_PERSONAL, personal_document),
    "trust": (READING_TRUST, trust_document),
}


def page(title: str, run_dirs: Sequence[Path], out: Path) -> str:
    """The whole page, to be written to `out`; raises DataError for a folder without a readable report.json."""
    parts = [f"# {title}", "", "Written by `python -m simulation.results` from each run's report.json."]
    for run_dir in run_dirs:
        report = _report(run_dir)
        if "study" in report:
            images = out.parent.parent / "images"
            reading, lines = _STUDIES[report["study"].get("kind", "enhancement")]
            parts += ["", reading, "", *lines(report, out.stem, images, out)]
        else:
            parts += ["", *section(report)]
    return "\n".join(parts) + "\n"


def section(report: Mapping[str, Any]) -> Iterator[str]:
    """One run: command, cost, mean over seeds of every setting on all sites' tests, claims."""
    versions = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    yield f"## {report['experiment']}"
    yield ""
    yield f"`wardround-simulate experiment={report['experiment']}`, seeds {', '.join(map(str, report['seeds']))}, "
    yield f"{duration_shown(report['wall_s'])} in all; {versions}; config {report['config_digest'][:12]}."
    yield ""
    rows = [row for row in report["rows"] if _over_all(row)]
    columns = [key for key in COLUMNS if any(key in row for row in rows)]
    yield "| method | setting | " + " | ".join(METRICS[key].heading for key in columns) + " |"
    yield "|---|---|" + "---:|" * len(columns)
    for method in dict.fromkeys(row["method"] for row in rows):
        for setting in SETTINGS:
            chosen = [row for row in rows if (row["method"], row["setting"]) == (method, setting)]
            if chosen:
                yield f"| {method} | {setting} | " + " | ".join(_mean(chosen, key) for key in columns) + " |"
    yield ""
    yield "| claim | value | target | holds |"
    yield "|---|---:|---:|---|"
    for claim in report["claims"]:
        verdict = "yes" if claim["holds"] else f"**no**: {claim.get('reason', 'reason not known')}"
        yield f"| {claim['claim']} | {claim['value']:+.3f} | {claim['target']:+.3f} | {verdict} |"


def _over_all(row: Mapping[str, Any]) -> bool:
    return row["site"] == row["test_site"] == "all" and at_home(row) and "domain" not in row


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [row[key] for row in rows if key in row]
    return shown(key, sum(values) / len(values)) if values else ""


def _report(run_dir: Path) -> Mapping[str, Any]:
    if not (run_dir / "report.json").is_file():
        raise DataError(f"{run_dir.name} holds no report.json; give the folder of a finished run")
    return contract_of(checked(read_json(run_dir / "report.json"), f"report.json of {run_dir.name}"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation.results", description=__doc__)
    parser.add_argument("--title", default="Results")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR")
    arguments = parser.parse_args(argv)
    try:
        text = page(arguments.title, arguments.run_dirs, arguments.out)
    except WardroundError as error:
        print(f"results: {error}", file=sys.stderr)
        return error.exit_code
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
