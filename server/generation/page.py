"""The report of a generation study in, what the template generation.html shows out; the same for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.generation.pictures import KINDS, looks_of, steps_picture
from server.generation.promises import PROMISES
from server.generation.rows import Model, Row, Sheet, enriched, sheet_of
from server.generation.tables import MERGED, TASKS, best_single, blocks_of, details_of, where_of
from server.generation.wording import method_shown, ordered
from server.recognition.pictures import Look
from server.recognition.rows import Place
from server.recognition.wording import whole_label
from server.study.context import base_context
from server.study.sections import Headline, Report, Section, Study, cells_of, questions, section_of, whole_of
from server.study.statistics import mean, paired
from server.study.tables import Block, Line, Score
from server.study.wording import SHOWN, signed

DOWNSTREAM = "downstream"
"""The first letters of tables that compare augmentations."""
GUARDED = (
    "Whatever is drawn comes from training images alone; what a guard finds too near to one of them is never used, and "
    "no test image is synthetic."
)


@dataclass(frozen=True, slots=True)
class Generation:
    """A study, and what only this one has: by section, the blocks that stand folded and what was drawn."""

    study: Study
    details: Mapping[str, tuple[Block, ...]]
    looks: Mapping[str, tuple[Look, ...]]


def generation_of(report: Report) -> Generation:
    """Everything that is shown, from report.json alone."""
    plan = report["study"]
    rows = enriched(report["rows"], plan["cells"])
    sections, details, looks = list[Section](), dict[str, tuple[Block, ...]](), dict[str, tuple[Look, ...]]()
    seen: set[str] = set()
    for name, parts in questions(plan, MERGED):
        cells = cells_of(report, parts)
        sheet = sheet_of(rows, [part["name"] for part in parts])
        sections.append(_section(name, report, parts, sheet))
        details[name] = tuple(details_of(sheet, name))
        looks[name] = tuple(looks_of(sheet, cells, seen))
        seen |= {cell.get("key", "") for cell in cells}
    return Generation(whole_of(report, tuple(headlines_of(rows)), tuple(sections), PROMISES), details, looks)


def _section(name: str, report: Report, parts: Sequence[Mapping[str, Any]], sheet: Sheet) -> Section:
    return section_of(
        name,
        report,
        parts,
        conditions=tuple(map(whole_label, sheet.conditions)),
        blocks=tuple(blocks_of(sheet, name)),
        picture=steps_picture(sheet, name) if name.startswith("steps") else None,
        sentences=(),
    )


def headlines_of(rows: Sequence[Row]) -> Iterator[Headline]:
    """EMIT-Diff against no augmentation and against the best of the classical ones, on every data set with few
    labels."""
    tables = dict.fromkeys(row.get("table", "") for row in rows if str(row.get("table", "")).startswith(DOWNSTREAM))
    sheet = sheet_of(rows, list(tables))
    lines, words = [], []
    for place in sheet.conditions:
        for ours in ordered(sheet.models):
            if ours.method != "emit-diff" or ours.site != "all":
                continue
            scores = [score for metric in TASKS for score in _beside(sheet, ours, place, metric)]
            if any(score and score.difference for score in scores):
                lines.append(Line(where_of(place, ours), tuple(scores)))
                words.append(_sentence(sheet, ours, place))
    if lines:
        columns = tuple(
            f"{SHOWN[metric].heading}: {name}" for metric in TASKS
            for name in ("no augmentation", "best classical", "EMIT-Diff")
        )  # fmt: skip
        yield Headline("EMIT-Diff against classical augmentation, with the same few labels",
                       Block("", columns, tuple(lines)), " ".join(words))  # fmt: skip


def rival_of(sheet: Sheet, ours: Model, place: Place, metric: str) -> Model | None:
    """The best single classical augmentation; DeepStack where none was run alone."""
    best = best_single(sheet, place, metric, ours.setting)
    return best or _like(sheet, ours, "deepstack", place, metric)


def _like(sheet: Sheet, ours: Model, method: str, place: Place, metric: str) -> Model | None:
    found = (each for each in sheet.models if (each.method, each.setting, each.site) == (method, ours.setting, "all"))
    return next((each for each in found if sheet.values(each, place, metric)), None)


def _beside(sheet: Sheet, ours: Model, place: Place, metric: str) -> list[Score | None]:
    none, rival = _like(sheet, ours, "none", place, metric), rival_of(sheet, ours, place, metric)
    values, base = sheet.values(ours, place, metric), sheet.values(rival, place, metric)
    without = sheet.values(none, place, metric)
    return [
        Score(metric, mean(without), len(without)) if without else None,
        Score(metric, mean(base), len(base)) if base else None,
        Score(metric, mean(values), len(values), paired(values, base)) if values else None,
    ]


def _sentence(sheet: Sheet, ours: Model, place: Place) -> str:
    """`mni, 10 masks, 10 % diagnoses, pooled: Dice +0.012 over DeepStack (not settled), ...`"""
    words = []
    for metric in TASKS:
        rival = rival_of(sheet, ours, place, metric)
        difference = paired(sheet.values(ours, place, metric), sheet.values(rival, place, metric))
        if difference is not None and rival is not None:
            said = {"above": "better", "below": "worse", "open": "not settled", "one seed": "one seed, not settled"}
            change = signed(metric, difference.mean)
            words.append(
                f"{SHOWN[metric].heading} {change} over {method_shown(rival.method)} ({said[difference.verdict]})"
            )
    return f"{where_of(place, ours)}: {', '.join(words)}."


def context(report: Report, config: Mapping[str, Any]) -> dict[str, Any]:
    """What generation.html needs."""
    whole = generation_of(report)
    return {
        **base_context(report, config, whole.study, PROMISES, corner="trained with"),
        "details": whole.details,
        "looks": whole.looks,
        "kinds": KINDS,
        "guarded": GUARDED,
        "compared_with": compared_with,
    }


COMPARED: Mapping[str, str] = {
    "generators": "the generator of pooled training",
    "steps": "DDIM with the most steps",
    "task": "the generator without a task",
    "conditions": "the generator with the first line's conditions",
    "memorisation": "",
}
"""By the first words of a table's name: the shaded row, which the others are compared with."""


def compared_with(name: str) -> str:
    return next((words for start, words in COMPARED.items() if name.startswith(start)), "no augmentation")
