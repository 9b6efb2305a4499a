"""report.json of a generation study in, its page in Markdown and pictures out: docs/results/generation.md."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from server.generation.page import GUARDED, compared_with, generation_of
from server.generation.pictures import KINDS
from server.generation.promises import PROMISES
from server.generation.tables import MERGED
from server.recognition.pictures import Look
from server.study.tables import Block
from simulation.study.markdown import escaped, opening_lines, promises_lines, section_lines, table_lines, written
from simulation.study.recognition_document import on_simulated_patients

MOST_LOOKS = {"drawn": 3, "sampled": 24}
"""Pictures of each kind that a question has in a document; report.html has them all."""


def generation_document(report: Mapping[str, Any], stem: str, images: Path, out: Path) -> Iterator[str]:
    """The lines on a whole study; pictures go to `images`/<stem>-<table>.png and are linked from `out`."""
    whole = generation_of(report)
    study = whole.study
    yield from opening_lines(report, study)
    yield ""
    for headline in study.headlines:
        yield f"- **{headline.title}:** {escaped(headline.tally)}"
        yield ""
        yield from table_lines(headline.block, "data, labels and setting")
        yield ""
        yield (
            "Below EMIT-Diff's figure: EMIT-Diff minus the best single classical augmentation (DeepStack where none "
            "was run alone), paired by seed, [95 % interval]; ▲ better and ▼ worse where the interval does not hold 0. "
            f"{GUARDED}"
        )
    if not study.headlines:
        yield "No comparison of EMIT-Diff with a classical augmentation can be made yet."
    yield ""
    yield from promises_lines(study, PROMISES)
    simulated = on_simulated_patients(report["rows"])
    names_of = {section.name: _tables_of(report, section.name) for section in study.sections}
    for section in study.sections:
        yield ""
        shown = names_of[section.name] <= simulated
        looks = whole.looks[section.name] if shown else ()
        more = list(_more(section.name, whole.details[section.name], looks, stem, images, out))
        yield from section_lines(section, "trained with", stem, images, out, more)


def _tables_of(report: Mapping[str, Any], name: str) -> set[str]:
    """The tables of the question that have rows."""
    there = {str(row.get("table", "")) for row in report["rows"]}
    return there & set(MERGED.get(name, (name,)))


def _more(
    name: str, details: Sequence[Block], looks: Sequence[Look], stem: str, images: Path, out: Path
) -> Iterator[str]:
    """What the others are compared with; what was drawn; folded: each class."""
    if compared_with(name):
        yield ""
        yield f"Compared with {compared_with(name)}, in bold."
    for kind, most in MOST_LOOKS.items():
        shown = [look for look in looks if look.kind == kind][:most]
        if shown:
            yield ""
            yield f"**{KINDS[kind]}**"
        for number, look in enumerate(shown, start=1):
            png = base64.b64decode(look.uri.partition(",")[2])
            link = written(images / f"{stem}-{name}-{kind}-{number}.png", png, out)
            yield ""
            yield f"![{KINDS[kind]}]({link})"
            yield f"*{escaped(look.of)}.* {escaped(look.caption)}"
    if details:
        yield ""
        yield "<details><summary>Each class</summary>"
        for block in details:
            yield ""
            yield f"**{escaped(block.title)}**"
            yield ""
            yield from table_lines(block, "trained with")
        yield ""
        yield "</details>"


READING = (
    "How to read the tables: means over seeds on test patients (seeds differ by more than augmentations do, so a mean "
    "over fewer seeds is to be read by its difference only); ↑ more is better, ↓ less is better. Below a figure stands "
    "this row minus the row in bold that it is compared with, paired by seed, with its 95 % interval of Student's t; ▲ "
    "better and ▼ worse only where that interval does not hold 0. Intervals speak of the spread between seeds; many "
    "comparisons are made, and of twenty that mean nothing one interval is expected to leave out 0."
)
