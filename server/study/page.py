"""The report of a study in, what the template study.html shows out: does it help, tables, pictures, claims, costs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.study.pictures import Picture, gate_picture, lambda_picture, severity_picture, stops_helping, svgs
from server.study.promises import LARGE_LAMBDA, NOT_CONTRADICTED, PROMISES
from server.study.rows import Model, Row, Sheet, enriched, searched, sheet_of, undecided
from server.study.statistics import mean, paired
from server.study.tables import MERGED, RIVALS, Block, Column, Line, Score, blocks_of, ordered, values_in
from server.study.wording import SHOWN, arrow, figure, gathered, label, method_shown, signed, whole_label
from server.wording import duration_shown

Report = Mapping[str, Any]
_REAL = ("hippocampus", "pneumonia", "totalseg")
SEARCHES = ("tuning", "federated-tuning")
"""Tables of settings, which are chosen on validation patients and shown on them."""
_HEADLINE = ("psnr_db", "ssim", "judge_dice", "judge_accuracy")


@dataclass(frozen=True, slots=True)
class Section:
    """One question of the study."""

    name: str
    title: str
    question: str
    conditions: tuple[str, ...]
    blocks: tuple[Block, ...]
    picture: Picture | None
    sentences: tuple[str, ...]
    claims: tuple[Mapping[str, Any], ...]
    commands: tuple[str, ...]
    cells: tuple[tuple[str, str], ...]
    """What was varied with the seeds that ran, and the seconds of each."""
    missing: tuple[str, ...]
    """What is varied in the cells that were not run, each once with its seeds."""
    not_run: int
    done: int
    planned: int
    seconds: float
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Headline:
    """GradProm minus each rival on every data set, at one choice of lambda."""

    title: str
    block: Block
    tally: str


@dataclass(frozen=True, slots=True)
class Study:
    """A whole study, ready to be shown; the same for report.html and for a page in Markdown."""

    headlines: tuple[Headline, ...]
    sections: tuple[Section, ...]
    claims: Mapping[str, Sequence[Mapping[str, Any]]]
    """By promise, in the order of PROMISES."""
    unexamined: tuple[str, ...]
    done: int
    planned: int
    seconds: float
    earlier_code: int


def study_of(report: Report) -> Study:
    """Everything that is shown, from report.json alone."""
    plan = report["study"]
    rows = enriched(report["rows"], plan["cells"])
    claims = {promise: [claim for claim in report["claims"] if claim.get("promise") == promise] for promise in PROMISES}
    return Study(
        tuple(headlines_of(rows)),
        tuple(section for name in _names(plan) if (section := _section(name, rows, report)) is not None),
        {promise: found for promise, found in claims.items() if found},
        tuple(words for promise, words in PROMISES.items() if not claims[promise]),
        len(plan["cells"]),
        int(plan["planned"]),
        float(report["wall_s"]),
        int(plan.get("earlier_code", 0)),
    )


def _names(plan: Mapping[str, Any]) -> list[str]:
    """Tables in the order of the plan; those that answer one question together stand where the first does."""
    inside = {part: whole for whole, parts in MERGED.items() for part in parts}
    return list(dict.fromkeys(inside.get(table["name"], table["name"]) for table in plan["tables"]))


def _section(name: str, rows: Sequence[Row], report: Report) -> Section | None:
    plan = report["study"]
    parts = [table for table in plan["tables"] if table["name"] in MERGED.get(name, (name,))]
    cells = [cell for cell in plan["cells"] if set(cell["tables"]) & {part["name"] for part in parts}]
    names = [part["name"] for part in parts]
    search = name in SEARCHES
    sheet = sheet_of(searched(rows, name), [name], split="validation") if search else sheet_of(rows, names)
    return Section(
        name=name,
        title=parts[0]["title"],
        question=parts[0]["question"],
        conditions=gathered(sheet.conditions),
        blocks=tuple(blocks_of(sheet, name)),
        picture=_picture(name, sheet, cells),
        sentences=_sentences(name, sheet),
        claims=tuple(claim for claim in report["claims"] if claim.get("table") in names),
        commands=tuple(command(report, part) for part in parts),
        cells=tuple(_cells(parts, cells)),
        missing=tuple(_missing(parts)),
        not_run=sum(len(part["missing"]) for part in parts),
        done=len(cells),
        planned=len(cells) + sum(len(part["missing"]) for part in parts),
        seconds=sum(float(cell["seconds"]) for cell in cells),
        seeds=tuple(sorted({int(cell["seed"]) for cell in cells})),
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


def command(report: Report, table: Mapping[str, Any]) -> str:
    """What a person types to run this table's cells again."""
    plan = report["study"]
    lines = [*table["common"], *table["missing"]]
    for cell in plan["cells"]:
        lines += cell["overrides"] if table["name"] in cell["tables"] else []
    words = {word for line in lines for word in line.split() if word.startswith(("data=", "data.test="))}
    real = {word.split("=", 1)[1] for word in words} & set(_REAL)
    root = " data.root=FOLDER" if real else ""
    what = f"experiment={report['experiment']} budget={plan['budget']} study.only=[{table['name']}]"
    return f"wardround-simulate {what}{root}"


def _cells(parts: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What a cell varies, once per seed that ran."""
    lines: dict[str, list[str]] = {}
    for cell in cells:
        part = next(part for part in parts if part["name"] in cell["tables"])
        varied = [line for line in cell["overrides"] if line not in part["common"]]
        words = " ".join(varied) or "as it stands"
        name = f"{part['name']}: {words}" if len(parts) > 1 else words
        lines.setdefault(name, []).append(f"seed {cell['seed']} ({duration_shown(float(cell['seconds']))})")
    return [(words, ", ".join(times)) for words, times in lines.items()]


def _missing(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    lines: dict[str, list[str]] = {}
    for part in parts:
        for line in part["missing"]:
            words, _, seed = line.rpartition("seed=")
            lines.setdefault(words.strip() or part["name"], []).append(seed)
    return [f"{words}  seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" for words, seeds in lines.items()]


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


def counted(claims: Sequence[Mapping[str, Any]]) -> str:
    """`3 of 4 claims hold; 2 of 2 not contradicted`: what was only not contradicted does not hold by that."""
    words = []
    for verb, chosen in (("hold", False), ("not contradicted", True)):
        found = [claim for claim in claims if (claim.get("promise") == NOT_CONTRADICTED) == chosen]
        noun = "" if chosen else " claims"
        if found:
            words.append(f"{sum(bool(claim['holds']) for claim in found)} of {len(found)}{noun} {verb}")
    return "; ".join(words) or "no claim could be examined"


def verdict_shown(claim: Mapping[str, Any]) -> str:
    if claim.get("promise") == NOT_CONTRADICTED:
        return "not contradicted" if claim["holds"] else "contradicted"
    return "holds" if claim["holds"] else "does not hold"


def target_sign(claim: Mapping[str, Any]) -> str:
    """Before a claim's target: what the value has to be."""
    if "at_most" in claim:
        return "≤ "
    above = claim.get("promise") == "margin" or (claim["target"] == 0 and claim.get("promise") != NOT_CONTRADICTED)
    return "> " if above else "≥ "


def certain(claim: Mapping[str, Any]) -> bool:
    """Whether the whole interval, and not only the mean, reaches the target."""
    if "low" not in claim:
        return False
    return bool(claim["high"] <= claim["target"] if "at_most" in claim else claim["low"] >= claim["target"])


def verdict_of(score: Score) -> str:
    """A word for the colour of a difference: good, bad, or nothing where the interval holds 0."""
    if score.difference is None or score.difference.verdict in ("open", "one seed"):
        return ""
    better = (score.difference.verdict == "above") == SHOWN[score.metric].higher_is_better
    return "good" if better else "bad"


def difference_shown(score: Score) -> tuple[str, str]:
    """`+0.12` and `[−0.30, +0.54]`, the latter empty for one seed."""
    found = score.difference
    assert found is not None
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f"[{signed(score.metric, found.low)}, {signed(score.metric, found.high)}]"
    return signed(score.metric, found.mean), interval


def context(report: Report, config: Mapping[str, Any]) -> dict[str, Any]:
    """What study.html needs."""
    study = study_of(report)
    return {
        "report": report,
        "study": study,
        "promises": PROMISES,
        "counted": counted,
        "verdict_shown": verdict_shown,
        "target_sign": target_sign,
        "not_contradicted": NOT_CONTRADICTED,
        "config": json.dumps(config, indent=2, sort_keys=True),
        "pictures": {section.name: svgs(section.picture) for section in study.sections if section.picture},
        "duration": duration_shown,
        "figure": figure,
        "arrow": arrow,
        "verdict_of": verdict_of,
        "difference_shown": difference_shown,
    }
