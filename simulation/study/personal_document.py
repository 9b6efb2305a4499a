"""report.json of a personalisation study in, its page in Markdown and pictures out: docs/results/personalise.md."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from server.personal.page import COMPARED, CORNER, personalisation_of
from server.personal.pictures import KINDS
from server.personal.promises import PROMISES
from server.recognition.pictures import Look
from server.study.tables import Block
from simulation.study.markdown import escaped, opening_lines, promises_lines, section_lines, table_lines, written
from simulation.study.recognition_document import on_simulated_patients

MOST_LOOKS = 4
"""Pictures of each kind that a question has in a document; report.html has them all."""


def personal_document(report: Mapping[str, Any], stem: str, images: Path, out: Path) -> Iterator[str]:
    """The lines on a whole study; pictures go to `images`/<stem>-<table>.png and are linked from `out`."""
    whole = personalisation_of(report)
    study = whole.study
    yield from opening_lines(report, study)
    yield ""
    for headline in study.headlines:
        yield f"- **{escaped(headline.title)}:** {escaped(headline.tally)}"
        yield ""
        yield from table_lines(headline.block, CORNER, only_changes=True)
        yield ""
    if study.headlines:
        yield (
            "PSNR after the adaptation less that of the release as it is, on test patients; mean over seeds, [95 % "
            "interval of the paired differences]; ▲ better and ▼ worse where the interval does not hold 0."
        )
    else:
        yield "No adaptation can be held against the release yet."
    yield ""
    yield from promises_lines(study, PROMISES)
    simulated = on_simulated_patients(report["rows"])
    for section in study.sections:
        yield ""
        looks = whole.looks[section.name] if section.name in simulated else ()
        more = list(_more(section.name, whole.details[section.name], looks, stem, images, out))
        yield from section_lines(section, CORNER, stem, images, out, more)


def _more(
    name: str, details: Sequence[Block], looks: Sequence[Look], stem: str, images: Path, out: Path
) -> Iterator[str]:
    """What the others are compared with; folded: before and after, each old scanner."""
    yield ""
    yield f"Compared with {COMPARED}, in bold."
    if looks:
        yield ""
        yield "<details><summary>Before and after</summary>"
        for kind, title in KINDS.items():
            shown = [look for look in looks if look.kind == kind][:MOST_LOOKS]
            if shown:
                yield ""
                yield f"**{title}**"
            for number, look in enumerate(shown, start=1):
                png = base64.b64decode(look.uri.partition(",")[2])
                link = written(images / f"{stem}-{name}-{kind}-{number}.png", png, out)
                yield ""
                yield f"![{title}]({link})"
                yield f"*{escaped(look.of)}.* {escaped(look.caption)}"
        yield ""
        yield "</details>"
    if details:
        yield ""
        yield "<details><summary>Each old scanner</summary>"
        for block in details:
            yield ""
            if block.title:
                yield f"**{escaped(block.title)}**"
                yield ""
            yield from table_lines(block, CORNER)
        yield ""
        yield "</details>"


READING = (
    "How to read the tables: means over seeds on test patients (seeds differ by more than methods do, so a mean over "
    "fewer seeds is to be read by its difference only); ↑ more is better, ↓ less is better. Below a figure stands this "
    "row minus the release as it is, in bold, paired by seed, with its 95 % interval of Student's t; ▲ better and ▼ "
    "worse only where that interval does not hold 0. Intervals speak of the spread between seeds; many comparisons are "
    "made, and of twenty that mean nothing one interval is expected to leave out 0. Targeted gradient descent is "
    "covered by a patent application (US 2023/0026719): see NOTICE."
)
