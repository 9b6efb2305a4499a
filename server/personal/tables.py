"""A sheet in, tables out: methods down, the new scanner's and the old ones' figures across, a block per place.

Beside a figure stands this row minus the release as it is (where the release was not judged: nothing), over the seeds
that both have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from server.personal.rows import Model, Place, Sheet
from server.personal.wording import DOMAIN_NAMES, label, ordered, whole_label
from server.study.statistics import mean, paired
from server.study.tables import Block, Line, Score
from server.study.wording import heading

QUALITY = ("psnr_db", "ssim", "dice", "judge_dice")
OLD = ("psnr_db", "ssim", "judge_dice")
ORDERS = ("lesion_bias", "noise_cov")
ADAPTED = ("trained_share", "phi")
"""Of the adaptation itself: nothing to compare with."""
Column = tuple[str, str, str]
"""Domain, test site, metric."""


def blocks_of(sheet: Sheet) -> list[Block]:
    """Empty where nothing was judged."""
    columns = [("new", "all", key) for key in (*ORDERS, *QUALITY)]
    columns += [("old", "all", key) for key in OLD]
    columns += [("new", "all", key) for key in ADAPTED]
    return list(_blocks(sheet, columns))


def details_of(sheet: Sheet) -> list[Block]:
    """PSNR and a judge's Dice on each old scanner, the typical error on both."""
    columns = [("old", site, key) for site in sheet.old_sites for key in ("psnr_db", "judge_dice")]
    columns += [(domain, "all", "rmse") for domain in ("new", "old")]
    return list(_blocks(sheet, columns)) if sheet.old_sites else []


def _blocks(sheet: Sheet, columns: Sequence[Column]) -> Iterator[Block]:
    for place in sheet.places:
        models = [each for each in ordered(sheet.models) if sheet.values(each, place, "new", "psnr_db")]
        there = [column for column in columns if any(_values(sheet, each, place, column) for each in models)]
        release = sheet.release(place)
        lines = [_state_line(sheet, place, there)]
        lines += [
            Line(
                label(each, models),
                tuple(_score(sheet, each, release, place, column) for column in there),
                ours=each == release,
            )
            for each in models
        ]
        kept = tuple(line for line in lines if any(line.scores))
        if kept and models:
            title = whole_label(place) if len(sheet.places) > 1 else ""
            yield Block(title, tuple(map(_heading, there)), kept)


def _heading(column: Column) -> str:
    domain, site, metric = column
    if metric in ADAPTED:
        return heading(metric)
    return f"{DOMAIN_NAMES[domain] if site == 'all' else site}: {heading(metric)}"


def _values(sheet: Sheet, model: Model | None, place: Place, column: Column) -> dict[int, float]:
    domain, site, metric = column
    return sheet.values(model, place, domain, metric, site)


def _score(sheet: Sheet, model: Model, release: Model | None, place: Place, column: Column) -> Score | None:
    values = _values(sheet, model, place, column)
    if not values:
        return None
    metric = column[2]
    if release in (None, model) or metric in ADAPTED:
        return Score(metric, mean(values), len(values))
    return Score(metric, mean(values), len(values), paired(values, _values(sheet, release, place, column)))


def _state_line(sheet: Sheet, place: Place, columns: Sequence[Column]) -> Line:
    """The images as acquired; their Dice is a judge's: that of the release's own recogniser is no property of them."""
    scores = []
    for domain, site, metric in columns:
        values = sheet.of_state("degraded", place, domain, metric) if site == "all" and metric != "dice" else {}
        scores.append(Score(metric, mean(values), len(values)) if values else None)
    return Line("as acquired", tuple(scores), state=True)


def gains(sheet: Sheet, model: Model, place: Place, domain: str, metric: str = "psnr_db") -> dict[int, float]:
    """By seed: the figure less that of the release as it is."""
    found = paired(
        sheet.values(model, place, domain, metric), sheet.values(sheet.release(place), place, domain, metric)
    )
    return dict(found.by_seed) if found else {}
