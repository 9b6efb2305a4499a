"""The report of a recognition study in, what the template recognition.html shows out; the same for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.recognition.pictures import KINDS, Look, accept_picture, ladder_picture, looks_of, rank_picture
from server.recognition.promises import MARKS, PROMISES
from server.recognition.rows import Model, Place, Row, Sheet, enriched, sheet_of
from server.recognition.tables import BORROWED, MERGED, baseline, blocks_of, details_of, rows_for
from server.recognition.wording import method_shown, ordered, whole_label
from server.study.context import base_context
from server.study.drawing import Picture
from server.study.sections import Headline, Report, Section, Study, cells_of, questions, section_of, whole_of
from server.study.statistics import mean, paired
from server.study.tables import Block, Line, Score
from server.study.wording import SHOWN, signed

FEW = "few"
_HEADLINE = ("dice", "accuracy")
UNTRAINED = (
    "Masks are not judged where the site's training had none, nor diagnoses: that part of its network learnt nothing."
)
MARKED = (
    f"MultiMix's paper, on chest X-ray: Dice {MARKS['dice']:+.3f} over U-Net-10, accuracy {MARKS['accuracy']:+.3f} "
    "over Enc-100."
)


@dataclass(frozen=True, slots=True)
class Recognition:
    """A study, and what only this one has: by section, the blocks that stand folded and what cells look like."""

    study: Study
    details: Mapping[str, tuple[Block, ...]]
    looks: Mapping[str, tuple[Look, ...]]


def recognition_of(report: Report) -> Recognition:
    """Everything that is shown, from report.json alone."""
    plan = report["study"]
    rows = enriched(report["rows"], plan["cells"])
    sections, details, looks = list[Section](), dict[str, tuple[Block, ...]](), dict[str, tuple[Look, ...]]()
    seen: set[str] = set()
    for name, parts in questions(plan, MERGED):
        cells, tables = cells_of(report, parts), [part["name"] for part in parts]
        sheet = sheet_of(rows_for(rows, tables), tables)
        sections.append(_section(name, report, parts, sheet, cells))
        details[name] = tuple(details_of(sheet, name))
        looks[name] = tuple(looks_of(sheet, cells, name, seen))
        seen |= {cell.get("key", "") for cell in cells}
    return Recognition(whole_of(report, tuple(headlines_of(rows)), tuple(sections), PROMISES), details, looks)


def _section(
    name: str, report: Report, parts: Sequence[Mapping[str, Any]], sheet: Sheet, cells: Sequence[Mapping[str, Any]]
) -> Section:
    return section_of(
        name,
        report,
        parts,
        conditions=tuple(map(whole_label, sheet.conditions)),
        blocks=tuple(blocks_of(sheet, name, cells)),
        picture=_picture(name, sheet, cells),
        sentences=(),
    )


def _picture(name: str, sheet: Sheet, cells: Sequence[Mapping[str, Any]]) -> Picture | None:
    if name.startswith("ladder"):
        return ladder_picture(sheet, name)
    if name.startswith("selfreg") or name in BORROWED:
        return rank_picture(sheet, cells, name)
    return accept_picture(sheet, cells, name) if name.startswith(FEW) else None


def headlines_of(rows: Sequence[Row]) -> Iterator[Headline]:
    """MultiMix against the supervised network for each task, on every data set with few labels."""
    tables = dict.fromkeys(row.get("table", "") for row in rows if str(row.get("table", "")).startswith(FEW))
    sheet = sheet_of(rows, list(tables))
    lines, words = [], []
    for place in sheet.conditions:
        ours = next((m for m in ordered(sheet.models) if (m.method, m.selfreg) == ("multimix", "none")
                     and any(sheet.values(m, place, key) for key in _HEADLINE)), None)  # fmt: skip
        if ours is None:
            continue
        scores: list[Score | None] = []
        for metric in _HEADLINE:
            scores += _beside(sheet, ours, place, metric)
        if any(score and score.difference for score in scores):
            lines.append(Line(whole_label(place), tuple(scores)))
            words.append(_sentence(sheet, ours, place))
    if lines:
        columns = tuple(
            f"{SHOWN[metric].heading}: {name}" for metric, other in (("dice", "U-Net"), ("accuracy", "Enc"))
            for name in (f"supervised ({other})", "MultiMix")
        )  # fmt: skip
        yield Headline("MultiMix against supervised learning of the same labels", Block("", columns, tuple(lines)),
                       " ".join(words))  # fmt: skip


def _beside(sheet: Sheet, ours: Model, place: Place, metric: str) -> list[Score | None]:
    other = baseline(sheet, ours, place, metric)
    values, base = sheet.values(ours, place, metric), sheet.values(other, place, metric) if other else {}
    return [
        Score(metric, mean(base), len(base)) if base else None,
        Score(metric, mean(values), len(values), paired(values, base)) if values else None,
    ]


def _sentence(sheet: Sheet, ours: Model, place: Place) -> str:
    """`mni, 10 masks, 10 % diagnoses: Dice +0.112 over U-Net (better), ...`"""
    words = []
    for metric in _HEADLINE:
        other = baseline(sheet, ours, place, metric)
        difference = paired(sheet.values(ours, place, metric), sheet.values(other, place, metric)) if other else None
        if difference is not None and other is not None:
            said = {"above": "better", "below": "worse", "open": "not settled", "one seed": "one seed, not settled"}
            change = signed(metric, difference.mean)
            words.append(f"{SHOWN[metric].heading} {change} over {method_shown(other)} ({said[difference.verdict]})")
    return f"{whole_label(place)}: {', '.join(words)}."


def context(report: Report, config: Mapping[str, Any]) -> dict[str, Any]:
    """What recognition.html needs."""
    whole = recognition_of(report)
    return {
        **base_context(report, config, whole.study, PROMISES, corner="method"),
        "details": whole.details,
        "looks": whole.looks,
        "kinds": KINDS,
        "marked": MARKED,
        "untrained": UNTRAINED,
        "compared_with": compared_with,
    }


COMPARED: Mapping[str, str] = {
    "selfreg": "the same network without SelfReg",
    "ablation": "the same method without SelfReg",
    "mask-ssl": "the same without a divergence of masks",
    "thirds": "the federation",
    "unseen": "the mean of the local models (a drop that is less is better)",
    "whole": "the supervised recogniser of both tasks (UMTL)",
}
"""By the first words of a table's name: the shaded row, which the others are compared with."""


def compared_with(name: str) -> str:
    return next((words for start, words in COMPARED.items() if name.startswith(start)),
                "the supervised network for the task (U-Net for masks, Enc for diagnoses, else UMTL)")  # fmt: skip
