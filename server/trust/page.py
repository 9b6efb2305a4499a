"""The report of a trust study in, what the template trust.html shows out; the same for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.study.context import base_context
from server.study.sections import Headline, Report, Section, Study, cells_of, questions, section_of, whole_of
from server.study.statistics import mean, paired
from server.study.tables import Block, Line, Score
from server.study.wording import heading, signed
from server.trust.pictures import picture_of
from server.trust.promises import MOST_LOST_DICE, PROMISES
from server.trust.rows import PLAIN, Model, Place, Sheet, sheet_of
from server.trust.tables import blocks_of, is_attacked
from server.trust.wording import AGGREGATIONS, ATTACKS, label, ordered, place_label

CORNER = "protected by"
COMPARED = "FedAvg over visible updates of honest hospitals"


def trust_of(report: Report) -> Study:
    """Everything that is shown, from report.json alone."""
    sections = tuple(_section(name, report, parts) for name, parts in questions(report["study"], {}))
    return whole_of(report, tuple(headlines_of(report)), sections, PROMISES)


def _section(name: str, report: Report, parts: Sequence[Mapping[str, Any]]) -> Section:
    sheet = sheet_of(report["rows"], [part["name"] for part in parts])
    return section_of(
        name,
        report,
        parts,
        conditions=tuple(map(place_label, sheet.places)),
        blocks=tuple(blocks_of(sheet, name)),
        picture=picture_of(sheet, cells_of(report, parts), name),
        sentences=tuple(_reached(sheet)) if is_attacked(name) else (),
    )


def _reached(sheet: Sheet) -> Iterator[str]:
    for place in sheet.places:
        values = sheet.values(PLAIN, place, "dice")
        if values:
            yield f"Without an attack FedAvg reaches a Dice of {mean(values):.3f} ({place_label(place)})."


def headlines_of(report: Report) -> Iterator[Headline]:
    """What attacks cost by aggregation, and what privacy costs, in the first table of either kind."""
    tables = [str(table["name"]) for table in report["study"]["tables"]]
    attacked = next((name for name in tables if is_attacked(name)), "")
    sheet = sheet_of(report["rows"], [attacked])
    for place in sheet.places:
        yield from _attacks(sheet, place)
    for name in (name for name in tables if name.startswith("privacy")):
        found = sheet_of(report["rows"], [name])
        for place in found.places:
            yield from _privacy(found, place)


def _attacks(sheet: Sheet, place: Place) -> Iterator[Headline]:
    attacks = [name for name in ATTACKS if any(model.attack == name for model in sheet.models)]
    lines = []
    for robust in AGGREGATIONS:
        scores = tuple(_change(sheet, Model(attack, robust), place, "dice") for attack in attacks)
        if any(scores):
            lines.append(Line(AGGREGATIONS[robust], scores))
    if lines:
        columns = tuple(f"{ATTACKS[name]}: Dice" for name in attacks)
        yield Headline("Three hospitals of ten are malicious", Block("", columns, tuple(lines)), _tally(lines))


def _tally(lines: Sequence[Line]) -> str:
    """`FedAvg, the mean loses up to 0.61 Dice; trimmed mean up to 0.02; ...`"""
    words = []
    for line in lines:
        worst = min((score.mean for score in line.scores if score), default=0.0)
        words.append(f"{line.label} {signed('dice', min(worst, 0.0))}")
    return f"Dice at the worst attack, against {COMPARED}: {', '.join(words)} (at most {MOST_LOST_DICE:g} may be lost)."


def _privacy(sheet: Sheet, place: Place) -> Iterator[Headline]:
    metrics = ("psnr_db", "dice")
    lines = []
    for model in ordered(sheet.models):
        scores = tuple(_change(sheet, model, place, metric) for metric in metrics)
        if model.privacy != "none" and any(scores):
            lines.append(Line(label(model), scores))
    if lines:
        title = f"What privacy costs: {place_label(place)}"
        yield Headline(title, Block("", tuple(map(heading, metrics)), tuple(lines)), f"Against {COMPARED}.")


def _change(sheet: Sheet, model: Model, place: Place, metric: str) -> Score | None:
    if model == PLAIN:
        return None
    found = paired(sheet.values(model, place, metric), sheet.values(PLAIN, place, metric))
    return Score(metric, found.mean, len(found.by_seed), found) if found else None


def context(report: Report, config: Mapping[str, Any]) -> dict[str, Any]:
    """What trust.html needs."""
    study = trust_of(report)
    return {**base_context(report, config, study, PROMISES, corner=CORNER), "compared_with": COMPARED}
