"""report.json of a trust study in, its page in Markdown and pictures out: docs/results/trust.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from server.trust.page import COMPARED, CORNER, trust_of
from server.trust.promises import PROMISES
from simulation.study.markdown import escaped, opening_lines, promises_lines, section_lines, table_lines


def trust_document(report: Mapping[str, Any], stem: str, images: Path, out: Path) -> Iterator[str]:
    """The lines on a whole study; pictures go to `images`/<stem>-<table>.png and are linked from `out`."""
    study = trust_of(report)
    yield from opening_lines(report, study)
    yield ""
    for headline in study.headlines:
        yield f"- **{escaped(headline.title)}.** {escaped(headline.tally)}"
        yield ""
        yield from table_lines(headline.block, CORNER, only_changes=True)
        yield ""
    if not study.headlines:
        yield "Nothing can be held against an unprotected federation yet."
        yield ""
    yield from promises_lines(study, PROMISES)
    for section in study.sections:
        yield ""
        yield from section_lines(section, CORNER, stem, images, out)


READING = (
    "How to read the tables: means over seeds on test patients of all hospitals, with true labels (seeds differ by "
    "more than methods do, so a mean over fewer seeds is to be read by its difference only); ↑ more is better, ↓ less "
    f"is better. Below a figure stands that figure minus that of {COMPARED}, paired by seed, with its 95 % interval of "
    "Student's t; ▲ better and ▼ worse only where that interval does not hold 0. Intervals speak of the spread between "
    "seeds; many comparisons are made, and of twenty that mean nothing one interval is expected to leave out 0."
)
