"""The report of a study in, what the template study.html shows out: does it help, tables, pictures, claims, costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.study.context import base_context
from server.study.drawing import Picture
from server.study.pictures import gate_picture, lambda_picture, severity_picture, stops_helping
from server.study.promises import LARGE_LAMBDA, PROMISES
from server.study.rows import Model, Row, Sheet, enriched, searched, sheet_of, undecided
from server.study.sections import Headline, Section, Study, cells_of, questions, section_of, whole_of
from server.study.statistics import mean, paired
from server.study.tables import MERGED, RIVALS, Block, Column, Line, Score, blocks_of, ordered, values_in
from server.study.wording import SHOWN, gathered, label, method_shown, whole_label

Report = Mapping[str, Any]
SEARCHES = ("tuning", "federated-tuning")
"""Tables of settings, which are chosen on validation patients and shown on them."""
_HEADLINE = ("psnr_db", "ssim", "judge_dice", "judge_accuracy")


def study_of(report: Report) -> Study:
    """Everything that is shown, from report.json alone."""
    plan = report["study"]
    rows = enriched(report["rows"], plan["cells"])
    sections = tuple(_section(name, parts, rows, report) for name, parts in questions(plan, MERGED))
    return whole_of(report, tuple(headlines_of(rows)), sections, PROMISES)


def _section(name: str, parts: Sequence[Mapping[str, Any]], rows: Sequence[Row], report: Report) -> Section:
    names = [part["name"] for part in parts]
    search = name in SEARCHES
    sheet = sheet_of(searched(rows, name), [name], split="validation") if search else sheet_of(rows, names)
    return section_of(
        name,
        report,
        parts,
        conditions=gathered(sheet.conditions),
        blocks=tuple(blocks_of(sheet, name)),
        picture=_picture(name, sheet, cells_of(report, parts)),
        sentences=_sentences(name, sheet),
    )


def _picture(name: str, sheet: Sheet, cells: Sequence[Mapping[str, Any]]) -> Picture | None:
    match name:
        case "lambda":
            return lambda_picture(sheet)
        case "severity":
            return severity_picture(sheet)
        case "gates":
            return gate_picture(sheet, cells, "gates")
    return None


def _sentences(name: str, sheet: Sheet) -> tuple[str, ...]:
    if name == "severity":
        return (*stops_helping(sheet), *_not_yet(sheet))
    return tuple(_best_settings(sheet) if name in SEARCHES else _not_yet(sheet))


def _not_yet(sheet: Sheet) -> Iterator[str]:
    """Models whose figures cannot be shown at their best lambda, since that cannot be told yet."""
    homes = dict.fromkeys(condition.home for condition in sheet.conditions)
    for model in ordered(sheet.models):
        where = [whole_label(home) for home in homes if undecided(sheet, model, home)]
        if where:
            yield (
                f"{label(model, sheet.models)}: lambda not yet chosen ({'; '.join(where)}), since no seed was run with "
                "all of its lambdas."
            )


def _best_settings(sheet: Sheet) -> Iterator[str]:
    for model in ordered(sheet.models):
        tried = {each: values_in(sheet, model, Column(each, None, "psnr_db")) for each in sheet.conditions}
        found = {each.tuning: mean(values) for each, values in tried.items() if values}
        if len(found) > 1:
            best = max(found, key=lambda words: found[words])
            yield f"{label(model, sheet.models)}: best with {best} ({found[best]:.2f} dB), of {len(found)} tried."


def headlines_of(rows: Sequence[Row]) -> Iterator[Headline]:
    """Each objective at the lambda that its validation patients chose; then all at a large one, where the objectives
    differ in what they can lose."""
    tables = [str(row.get("table", "")) for row in rows]
    sheet = sheet_of(rows, ["lambda", *dict.fromkeys(name for name in tables if name.startswith(f"{RIVALS}-"))])
    for title, task_weight in (("Each at its best lambda", None), (f"All at lambda {LARGE_LAMBDA:g}", LARGE_LAMBDA)):
        block = _headline(sheet, task_weight)
        if block is not None:
            open_ones = _not_yet(sheet) if task_weight is None else ()
            yield Headline(title, block, " ".join([tally(block), *open_ones]))


def _headline(sheet: Sheet, task_weight: float | None) -> Block | None:
    models = ordered(sheet.models)
    ours = next((model for model in models if model.method == "gradprom"), None)
    if ours is None:
        return None
    columns = [Column(each, task_weight, metric) for each in sheet.conditions for metric in _HEADLINE]
    lines = []
    for rival in (model for model in models if model.method != "gradprom"):
        scores = tuple(_difference(sheet, ours, rival, column) for column in columns)
        lines.append(Line(f"minus {method_shown(rival.method)}", scores))
    used = [place for place in range(len(columns)) if any(line.scores[place] for line in lines)]
    headings = [f"{columns[place].condition.data}: {SHOWN[columns[place].metric].heading}" for place in used]
    kept = tuple(Line(line.label, tuple(line.scores[place] for place in used)) for line in lines)
    return Block("", tuple(headings), tuple(line for line in kept if any(line.scores))) if used else None


def _difference(sheet: Sheet, ours: Model, rival: Model, column: Column) -> Score | None:
    difference = paired(values_in(sheet, ours, column), values_in(sheet, rival, column))
    return Score(column.metric, difference.mean, len(difference.by_seed), difference) if difference else None


def tally(block: Block) -> str:
    """The block in a sentence: how many comparisons are better, worse, or not settled."""
    scores = [score for line in block.lines for score in line.scores if score]
    verdicts = [score.difference.verdict for score in scores if score.difference]
    single = verdicts.count("one seed")
    if single == len(verdicts):
        ahead = sum(score.mean > 0 for score in scores)
        behind = sum(score.mean < 0 for score in scores)
        return (
            f"Of {len(verdicts)} comparisons with a rival GradProm is ahead in {ahead} and behind in {behind}, each on "
            "one seed: nothing is settled yet."
        )
    settled = f"better in {verdicts.count('above')}, worse in {verdicts.count('below')}"
    rest = f"in {verdicts.count('open')} the interval holds 0: no difference could be shown"
    more = f"; {single} have one seed only" if single else ""
    return f"Of {len(verdicts)} comparisons with a rival GradProm is {settled}; {rest}{more}."


def context(report: Report, config: Mapping[str, Any]) -> dict[str, Any]:
    """What study.html needs."""
    return base_context(report, config, study_of(report), PROMISES, corner="objective")
