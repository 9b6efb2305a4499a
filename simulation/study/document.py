"""report.json of a study in, its page in Markdown and the pictures beside it out: docs/results/enhancement.md."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from server.study.drawing import Picture, png
from server.study.page import study_of
from server.study.promises import NOT_CONTRADICTED, PROMISES
from server.study.sections import Section, Study
from server.study.tables import Block, Line, Score
from server.study.verdicts import certain, counted, difference_shown, target_sign, verdict_of, verdict_shown
from server.study.wording import figure
from server.wording import duration_shown
from shared.checkpoint import write_atomically

_SIGNS = {"good": " ▲", "bad": " ▼", "": ""}
"""Beside a difference whose interval does not hold 0: ours is better, ours is worse."""


def document(report: Mapping[str, Any], stem: str, images: Path, out: Path) -> Iterator[str]:
    """The lines on a whole study; pictures go to `images`/<stem>-<table>.png and are linked from `out`."""
    study = study_of(report)
    versions = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    yield f"## {report['experiment']}"
    yield ""
    yield (
        f"{study.done} of {study.planned} planned cells are there, seeds {', '.join(map(str, report['seeds']))}, "
        f"{duration_shown(study.seconds)} of training and judging in all; {versions}."
    )
    if study.earlier_code:
        yield f"{study.earlier_code} cells were run with earlier code than the rest of this report."
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
        yield from _table(headline.block, "gradprom", only_changes=True)
    yield ""
    yield from _promises(study)
    for section in study.sections:
        yield ""
        yield from _section(section, stem, images, out)


def _promises(study: Study) -> Iterator[str]:
    yield "| promise | claims | hold | with the whole interval |"
    yield "|---|---:|---:|---:|"
    for promise, found in study.claims.items():
        holding, settled = sum(bool(claim["holds"]) for claim in found), sum(map(certain, found))
        words = " not contradicted" if promise == NOT_CONTRADICTED else ""
        yield f"| {escape(PROMISES[promise], quote=False)} | {len(found)} | {holding}{words} | {settled} |"
    for words in study.unexamined:
        yield f"| {escape(words, quote=False)} | – | not examined | cells not yet run |"


def _section(section: Section, stem: str, images: Path, out: Path) -> Iterator[str]:
    yield f"### {section.title}"
    yield ""
    conditions = f" *{'; '.join(section.conditions)}.*" if section.conditions else ""
    yield section.question + conditions
    yield ""
    if section.done:
        seeds = f"seed{'s' * (len(section.seeds) > 1)} {', '.join(map(str, section.seeds))}"
        yield f"{section.done} of {section.planned} cells, {seeds}, {duration_shown(section.seconds)}."
    else:
        yield f"None of {section.planned} cells was run yet."
    if section.picture:
        yield ""
        yield from _picture(section.picture, stem, images, out)
        yield section.picture.caption
    if section.sentences:
        yield ""
        yield " ".join(section.sentences)
    for block in section.blocks:
        yield ""
        if block.title:
            yield f"**{block.title}**"
            yield ""
        yield from _table(block, "objective")
    if section.claims:
        yield ""
        yield f"<details><summary>{counted(section.claims)}</summary>"
        yield ""
        yield from claims_table(section.claims)
        yield ""
        yield "</details>"
    yield ""
    yield from _commands(section)


def _picture(picture: Picture, stem: str, images: Path, out: Path) -> Iterator[str]:
    path = images / f"{stem}-{picture.name}.png"
    images.mkdir(parents=True, exist_ok=True)
    write_atomically(path, png(picture))
    link = Path(os.path.relpath(path, out.parent)).as_posix()
    yield f"![{'; '.join(panel.title for panel in picture.panels)}]({link})"
    yield ""


def _table(block: Block, corner: str, *, only_changes: bool = False) -> Iterator[str]:
    yield f"| {corner} | " + " | ".join(block.columns) + " |"
    yield "|---|" + "---:|" * len(block.columns)
    for line in block.lines:
        cells = [_score(score, block.seeds, only_changes=only_changes) if score else "–" for score in line.scores]
        yield f"| {_label(line)} | " + " | ".join(cells) + " |"


def _label(line: Line) -> str:
    name = f"**{line.label}**" if line.ours else f"*{line.label}*" if line.state else line.label
    return f"{name}<br><sub>{line.note}</sub>" if line.note else name


def _score(score: Score, most: int, *, only_changes: bool) -> str:
    value = figure(score.metric, score.mean)
    if score.seeds < most:
        value += f" ({score.seeds} of {most} seeds)"
    if score.difference is None:
        return value
    mean, interval = difference_shown(score)
    change = f"{mean}{_SIGNS[verdict_of(score)]}"
    beside = f" {interval or 'one seed'}"
    return f"{change}<br><sub>{beside.strip()}</sub>" if only_changes else f"{value}<br><sub>{change}{beside}</sub>"


def claims_table(claims: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Claims with what the interval says beside them."""
    yield "| claim | value | target | verdict | |"
    yield "|---|---:|---:|---|---|"
    for claim in claims:
        verdict = verdict_shown(claim) if claim["holds"] else f"**{verdict_shown(claim)}**"
        yield (
            f"| {claim['claim']} | {claim['value']:+.3f} | {target_sign(claim)}{claim['target']:g} | {verdict} | "
            f"{claim.get('reason', '')} |"
        )


def _commands(section: Section) -> Iterator[str]:
    missing = f"; {section.not_run} cells not yet run" if section.missing else ""
    yield f"<details><summary>Commands and cells{missing}</summary>"
    yield ""
    yield "```"
    yield from section.commands
    yield "```"
    if section.cells:
        yield ""
        yield "| run | seeds and time |"
        yield "|---|---|"
        for words, times in section.cells:
            yield f"| `{words.replace('|', '/')}` | {times} |"
    if section.missing:
        yield ""
        yield "Not yet run:"
        yield ""
        yield "```"
        yield from section.missing
        yield "```"
    yield ""
    yield "</details>"


READING = (
    "How to read the tables: means over seeds on test patients (seeds differ by more than objectives do, so a mean "
    "over fewer seeds is to be read by its difference only); ↑ more is better, ↓ less is better. Below a rival's "
    "figure stands the row in bold minus that row (variants of it stand beside the nearest), paired by seed, with its "
    "95 % interval of Student's t; ▲ and ▼ only where that interval does not hold 0. For clean images that were "
    "enhanced it is the row minus the untouched clean images. Intervals speak of the spread between seeds; many "
    "comparisons are made, and of twenty that mean nothing one interval is expected to leave out 0."
)
