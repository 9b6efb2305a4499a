"""The report of a personalisation study in, what the template personal.html shows out; the same for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.personal.pictures import KINDS, looks_of, picture_of
from server.personal.promises import PROMISES
from server.personal.rows import RELEASE, Model, Place, Row, Sheet, enriched, sheet_of
from server.personal.tables import blocks_of, details_of, gains
from server.personal.wording import label, ordered, whole_label
from server.recognition.pictures import Look
from server.study.context import base_context
from server.study.sections import Headline, Report, Section, Study, cells_of, questions, section_of, whole_of
from server.study.statistics import mean, of_differences
from server.study.tables import Block, Line, Score
from server.study.wording import signed

MAIN = ("main", "hippocampus")
"""The first letters of tables that hold the methods against each other."""
CORNER = "adapted by"
COMPARED = "the release as it is"


@dataclass(frozen=True, slots=True)
class Personalisation:
    """A study, and what only this one has: by section, the blocks that stand folded, before and after."""

    study: Study
    details: Mapping[str, tuple[Block, ...]]
    looks: Mapping[str, tuple[Look, ...]]


def personalisation_of(report: Report) -> Personalisation:
    """Everything that is shown, from report.json alone."""
    plan = report["study"]
    rows = enriched(report["rows"], plan["cells"])
    sections, details, looks = list[Section](), dict[str, tuple[Block, ...]](), dict[str, tuple[Look, ...]]()
    seen: set[str] = set()
    for name, parts in questions(plan, {}):
        cells = cells_of(report, parts)
        sheet = sheet_of(rows, [part["name"] for part in parts])
        sections.append(_section(name, report, parts, sheet))
        details[name] = tuple(details_of(sheet))
        looks[name] = tuple(looks_of(sheet, cells, seen))
        seen |= {cell.get("key", "") for cell in cells}
    return Personalisation(whole_of(report, tuple(headlines_of(rows)), tuple(sections), PROMISES), details, looks)


def _section(name: str, report: Report, parts: Sequence[Mapping[str, Any]], sheet: Sheet) -> Section:
    return section_of(
        name,
        report,
        parts,
        conditions=tuple(map(whole_label, sheet.places)),
        blocks=tuple(blocks_of(sheet)),
        picture=picture_of(sheet, name),
        sentences=(),
    )


def headlines_of(rows: Sequence[Row]) -> Iterator[Headline]:
    """What every method gains on the new scanner and on the old ones; TGD's gain as a share of fine-tuning's."""
    tables = dict.fromkeys(str(row.get("table", "")) for row in rows if str(row.get("table", "")).startswith(MAIN))
    sheet = sheet_of(rows, list(tables))
    for place in sheet.places:
        models = [each for each in ordered(sheet.models) if gains(sheet, each, place, "new")]
        lines = tuple(_line(sheet, each, models, place) for each in models if each.method != RELEASE)
        if lines:
            columns = ("new scanner: PSNR gained, dB", "old scanners: PSNR gained, dB")
            yield Headline(whole_label(place), Block("", columns, lines), _tally(sheet, models, place))


def _line(sheet: Sheet, model: Model, among: Sequence[Model], place: Place) -> Line:
    scores = []
    for domain in ("new", "old"):
        values = gains(sheet, model, place, domain)
        found = of_differences(values) if values else None
        scores.append(Score("psnr_db", found.mean, len(values), found) if found else None)
    return Line(label(model, among), tuple(scores))


def share_of_gain(sheet: Sheet, ours: Model, other: Model, place: Place) -> float | None:
    """Of the means, over the seeds that both have; None where the other gains nothing."""
    mine, theirs = (gains(sheet, each, place, "new") for each in (ours, other))
    seeds = [seed for seed in mine if seed in theirs]
    base = mean({seed: theirs[seed] for seed in seeds}) if seeds else 0.0
    return mean({seed: mine[seed] for seed in seeds}) / base if base > 0 else None


def _tally(sheet: Sheet, models: Sequence[Model], place: Place) -> str:
    """`TGD gains +1.20 dB on the new scanner, 0.93 of full fine-tuning's, and changes the old ones by -0.05 dB.`"""
    finetune = next((each for each in models if each.method == "finetune"), None)
    words = []
    for model in models:
        if model.method != "tgd":
            continue
        new, old = (gains(sheet, model, place, domain) for domain in ("new", "old"))
        if not new or not old:
            continue
        share = share_of_gain(sheet, model, finetune, place) if finetune else None
        of = "" if share is None else f", {share:.2f} of full fine-tuning's"
        forgot = gains(sheet, finetune, place, "old") if finetune else {}
        other = f" (full fine-tuning: {signed('psnr_db', mean(forgot))} dB)" if forgot else ""
        words.append(
            f"{label(model, models)} gains {signed('psnr_db', mean(new))} dB on the new scanner{of}, and changes the "
            f"old ones by {signed('psnr_db', mean(old))} dB{other}."
        )
    return " ".join(words) or "TGD was not run here yet."


def context(report: Report, config: Mapping[str, Any]) -> dict[str, Any]:
    """What personal.html needs."""
    whole = personalisation_of(report)
    return {
        **base_context(report, config, whole.study, PROMISES, corner=CORNER),
        "details": whole.details,
        "looks": whole.looks,
        "kinds": KINDS,
        "compared_with": COMPARED,
    }
