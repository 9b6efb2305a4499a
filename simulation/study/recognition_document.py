"""report.json of a recognition study in, its page in Markdown and the pictures beside it out:
docs/results/recognition.md."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from server.recognition.page import MARKED, UNTRAINED, compared_with, recognition_of
from server.recognition.pictures import KINDS, Look
from server.recognition.promises import PROMISES
from server.study.tables import Block
from simulation.study.grid import REAL
from simulation.study.markdown import escaped, opening_lines, promises_lines, section_lines, table_lines, written


def recognition_document(report: Mapping[str, Any], stem: str, images: Path, out: Path) -> Iterator[str]:
    """The lines on a whole study; pictures go to `images`/<stem>-<table>.png and are linked from `out`."""
    whole = recognition_of(report)
    study = whole.study
    yield from opening_lines(report, study)
    yield ""
    for headline in study.headlines:
        yield f"- **{headline.title}:** {escaped(headline.tally)}"
        yield ""
        yield from table_lines(headline.block, "data and labels")
        yield ""
        yield (
            "Below MultiMix's figure: MultiMix minus the supervised network, paired by seed, [95 % interval]; "
            f"▲ better and ▼ worse where the interval does not hold 0. {MARKED}"
        )
    if not study.headlines:
        yield "No comparison of MultiMix with supervised learning can be made yet."
    yield ""
    yield from promises_lines(study, PROMISES)
    simulated = on_simulated_patients(report["rows"])
    for section in study.sections:
        yield ""
        looks = whole.looks[section.name] if section.name in simulated else ()
        more = list(_more(section.name, whole.details[section.name], looks, stem, images, out))
        yield from section_lines(section, "method", stem, images, out, more)


def on_simulated_patients(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Tables whose images may stand in a document that is handed on: those of real patients stay with their data."""
    real = {str(row.get("table", "")) for row in rows if row["data"] in REAL}
    return {str(row.get("table", "")) for row in rows} - real


def _more(
    name: str, details: Sequence[Block], looks: Sequence[Look], stem: str, images: Path, out: Path
) -> Iterator[str]:
    """What the others are compared with; folded: each class, pseudo-labels, and what cells look like."""
    yield ""
    yield f"Compared with {compared_with(name)}, in bold." + (f" {UNTRAINED}" if name == "thirds" else "")
    if details:
        yield ""
        words = "Other metrics" if name.startswith("ladder") else "Each class, other distances, pseudo-labels"
        yield f"<details><summary>{words}</summary>"
        for block in details:
            yield ""
            yield f"**{escaped(block.title)}**"
            yield ""
            yield from table_lines(block, "method")
        yield ""
        yield "</details>"
    if looks:
        yield ""
        yield "<details><summary>What it looks like</summary>"
        for kind, look in {each.kind: each for each in looks}.items():  # the last model's; report.html has them all
            png = base64.b64decode(look.uri.partition(",")[2])
            link = written(images / f"{stem}-{name}-look-{kind}.png", png, out)
            yield ""
            yield f"![{KINDS[kind]}]({link})"
            yield f"*{escaped(look.of)}.* {escaped(look.caption)}"
        yield ""
        yield "</details>"


READING = (
    "How to read the tables: means over seeds on test patients (seeds differ by more than methods do, so a mean over "
    "fewer seeds is to be read by its difference only); ↑ more is better, ↓ less is better. Below a figure stands this "
    "row minus the row in bold that it is compared with, paired by seed, with its 95 % interval of Student's t; ▲ "
    "better and ▼ worse only where that interval does not hold 0. Intervals speak of the spread between seeds; many "
    "comparisons are made, and of twenty that mean nothing one interval is expected to leave out 0."
)
