"""One question of a study: what is asked, what was run for it, and what is there to be shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.study.drawing import Picture
from server.study.tables import Block
from server.wording import duration_shown

Report = Mapping[str, Any]
_REAL = ("hippocampus", "pneumonia", "totalseg")


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


def questions(
    plan: Mapping[str, Any], merged: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Name and tables of each question, in the order of the plan; tables of `merged` answer one together, which stands
    where the first of them does."""
    inside = {part: whole for whole, parts in merged.items() for part in parts}
    for name in dict.fromkeys(inside.get(table["name"], table["name"]) for table in plan["tables"]):
        yield name, [table for table in plan["tables"] if table["name"] in merged.get(name, (name,))]


def section_of(
    name: str,
    report: Report,
    parts: Sequence[Mapping[str, Any]],
    *,
    conditions: tuple[str, ...],
    blocks: tuple[Block, ...],
    picture: Picture | None,
    sentences: tuple[str, ...],
) -> Section:
    """The question that the tables `parts` of the plan answer together, with the cells that were run for them."""
    names = [part["name"] for part in parts]
    cells = cells_of(report, parts)
    return Section(
        name=name,
        title=parts[0]["title"],
        question=parts[0]["question"],
        conditions=conditions,
        blocks=blocks,
        picture=picture,
        sentences=sentences,
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


def cells_of(report: Report, parts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The sheets of the cells that were run for any of these tables."""
    names = {part["name"] for part in parts}
    return [cell for cell in report["study"]["cells"] if set(cell["tables"]) & names]


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


@dataclass(frozen=True, slots=True)
class Headline:
    """What the study says first: a table and the sentence that counts it."""

    title: str
    block: Block
    tally: str


@dataclass(frozen=True, slots=True)
class Study:
    """A whole study, ready to be shown; the same for report.html and for a page in Markdown."""

    headlines: tuple[Headline, ...]
    sections: tuple[Section, ...]
    claims: Mapping[str, Sequence[Mapping[str, Any]]]
    """By promise, in the order in which they were made."""
    unexamined: tuple[str, ...]
    done: int
    planned: int
    seconds: float
    earlier_code: int


def whole_of(
    report: Report, headlines: tuple[Headline, ...], sections: tuple[Section, ...], promises: Mapping[str, str]
) -> Study:
    plan = report["study"]
    claims = {promise: [claim for claim in report["claims"] if claim.get("promise") == promise] for promise in promises}
    return Study(
        headlines,
        sections,
        {promise: found for promise, found in claims.items() if found},
        tuple(words for promise, words in promises.items() if not claims[promise]),
        len(plan["cells"]),
        int(plan["planned"]),
        float(report["wall_s"]),
        int(plan.get("earlier_code", 0)),
    )
