"""report.json of a study in, its page in Markdown and the pictures beside it out: docs/results/enhancement.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from server.study.page import study_of
from server.study.promises import PROMISES
from simulation.study.markdown import opening_lines, promises_lines, section_lines, table_lines


def document(report: Mapping[str, Any], stem: str, images: Path, out: Path) -> Iterator[str]:
    """The lines on a whole study; pictures go to `images`/<stem>-<table>.png and are linked from `out`."""
    study = study_of(report)
    yield from opening_lines(report, study)
    yield ""
    for headline in study.headlines:
        yield f"- **{headline.title}:** {headline.tally}"
    if study.headlines:
        yield ""
        yield (
            "GradProm minus each rival on test patients. The best lambda is the one that did best in PSNR on "
            "validation patients, by the same search for every objective on a data set (ESTR has the weight of its "
            "authors, plain has none). Above 0 is better in every column. Mean over the seeds that both have, [95 % "
            "interval of the paired differences]; ▲ better and ▼ worse where the interval does not hold 0, no sign "
            "where no difference could be shown. The judge is a recogniser that took no part in any training."
        )
    else:
        yield "No comparison of GradProm with a rival can be made yet."
    for headline in study.headlines:
        yield ""
        yield f"**{headline.title}**"
        yield ""
        yield from table_lines(headline.block, "gradprom", only_changes=True)
    yield ""
    yield from promises_lines(study, PROMISES)
    for section in study.sections:
        yield ""
        yield from section_lines(section, "objective", stem, images, out)


READING = (
    "How to read the tables: means over seeds on test patients (seeds differ by more than objectives do, so a mean "
    "over fewer seeds is to be read by its difference only); ↑ more is better, ↓ less is better. Below a rival's "
    "figure stands the row in bold minus that row (variants of it stand beside the nearest), paired by seed, with its "
    "95 % interval of Student's t; ▲ and ▼ only where that interval does not hold 0. For clean images that were "
    "enhanced it is the row minus the untouched clean images. Intervals speak of the spread between seeds; many "
    "comparisons are made, and of twenty that mean nothing one interval is expected to leave out 0."
)
