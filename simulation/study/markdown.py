"""Parts of a study's page in Markdown: promises, sections, tables with paired differences, claims, commands."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from server.study.drawing import Picture, png
from server.study.promises import NOT_CONTRADICTED
from server.study.sections import Section, Study
from server.study.tables import Block, Line, Score
from server.study.verdicts import certain, counted, difference_shown, target_sign, verdict_of, verdict_shown
from server.study.wording import figure
from server.wording import duration_shown
from shared.checkpoint import write_atomically

_SIGNS = {"good": " ▲", "bad": " ▼", "": ""}
"""Beside a difference whose interval does not hold 0: ours is better, ours is worse."""


def escaped(text: str) -> str:
    """As Markdown shows it as it stands, also within a table."""
    return escape(text, quote=False).replace("|", "\\|")


def opening_lines(report: Mapping[str, Any], study: Study) -> Iterator[str]:
    """The study's name, and how much of it was run with what."""
    versions = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    yield f"## {report['experiment']}"
    yield ""
    yield (
        f"{study.done} of {study.planned} planned cells are there, seeds {', '.join(map(str, report['seeds']))}, "
        f"{duration_shown(study.seconds)} of training and judging in all; {versions}."
    )
    if study.earlier_code:
        yield f"{study.earlier_code} cells were run with earlier code than the rest of this report."


def promises_lines(study: Study, promises: Mapping[str, str]) -> Iterator[str]:
    yield "| promise | claims | hold | with the whole interval |"
    yield "|---|---:|---:|---:|"
    for promise, found in study.claims.items():
        holding, settled = sum(bool(claim["holds"]) for claim in found), sum(map(certain, found))
        words = " not contradicted" if promise == NOT_CONTRADICTED else ""
        yield f"| {escaped(promises[promise])} | {len(found)} | {holding}{words} | {settled} |"
    for words in study.unexamined:
        yield f"| {escaped(words)} | – | not examined | cells not yet run |"


def section_lines(
    section: Section, corner: str, stem: str, images: Path, out: Path, more: Sequence[str] = ()
) -> Iterator[str]:
    yield f"### {escape(section.title, quote=False)}"
    yield ""
    conditions = f" *{'; '.join(section.conditions)}.*" if section.conditions else ""
    yield escape(section.question + conditions, quote=False)
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
            yield f"**{escape(block.title, quote=False)}**"
            yield ""
        yield from table_lines(block, corner)
    yield from more
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
    link = written(images / f"{stem}-{picture.name}.png", png(picture), out)
    yield f"![{'; '.join(panel.title for panel in picture.panels)}]({link})"
    yield ""


def written(path: Path, data: bytes, out: Path) -> str:
    """Write a picture, for a page at `out`; returns what the page links to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)
    return Path(os.path.relpath(path, out.parent)).as_posix()


def table_lines(block: Block, corner: str, *, only_changes: bool = False) -> Iterator[str]:
    yield f"| {corner} | " + " | ".join(map(escaped, block.columns)) + " |"
    yield "|---|" + "---:|" * len(block.columns)
    for line in block.lines:
        cells = [_score(score, block.seeds, only_changes=only_changes) if score else "–" for score in line.scores]
        yield f"| {_label(line)} | " + " | ".join(cells) + " |"


def _label(line: Line) -> str:
    label = escaped(line.label)
    name = f"**{label}**" if line.ours else f"*{label}*" if line.state else label
    return f"{name}<br><sub>{escaped(line.note)}</sub>" if line.note else name


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
        target = f"{target_sign(claim)}{claim['target']:g}"
        words, reason = escaped(claim["claim"]), escaped(claim.get("reason", ""))
        yield f"| {words} | {claim['value']:+.3f} | {target} | {verdict} | {reason} |"


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
