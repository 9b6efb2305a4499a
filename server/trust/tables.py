"""A sheet in, tables out. Where aggregations are held against attacks: a block per figure, attacks across; else what
protects down, figures across. Small, beside each: this figure minus that of FedAvg over visible updates of honest
sites, over the seeds that both have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from server.study.statistics import mean, paired
from server.study.tables import Block, Line, Score
from server.study.wording import heading
from server.trust.rows import PLAIN, Model, Place, Sheet
from server.trust.wording import AGGREGATIONS, ATTACKS, label, ordered, place_label

QUALITY = ("psnr_db", "dice", "ssim", "accuracy")
COSTS = ("epsilon", "noise_multiplier", "privacy_cosine", "seconds", "bytes_up")
"""Nothing to compare with, but for the last two."""
COMPARED = (*QUALITY, "seconds", "bytes_up")


def is_attacked(name: str) -> bool:
    """Tables that hold aggregations against attacks, by the first letters of their name."""
    return name.startswith("robust")


def blocks_of(sheet: Sheet, name: str) -> list[Block]:
    """Empty where nothing was judged."""
    return [
        block
        for place in sheet.places
        for block in (_by_attack(sheet, place) if is_attacked(name) else _by_protection(sheet, place))
    ]


def _by_attack(sheet: Sheet, place: Place) -> Iterator[Block]:
    for metric in ("dice", "psnr_db", "backdoor_success"):
        there = [model for model in sheet.models if sheet.values(model, place, metric)]
        attacks = [name for name in ATTACKS if any(model.attack == name for model in there)]
        lines = []
        for robust in AGGREGATIONS:
            scores = tuple(_score(sheet, Model(attack, robust), place, metric) for attack in attacks)
            if any(scores):
                lines.append(Line(AGGREGATIONS[robust], scores, ours=robust == "none"))
        if lines:
            yield Block(_titled(sheet, place, heading(metric)), tuple(ATTACKS[name] for name in attacks), tuple(lines))


def _by_protection(sheet: Sheet, place: Place) -> Iterator[Block]:
    models = [model for model in ordered(sheet.models) if sheet.values(model, place, "psnr_db")]
    columns = [key for key in (*QUALITY, *COSTS) if any(sheet.values(model, place, key) for model in models)]
    lines = [_as_acquired(sheet, place, columns)]
    lines += [
        Line(label(model), tuple(_score(sheet, model, place, key) for key in columns), ours=model == PLAIN)
        for model in models
    ]
    kept = tuple(line for line in lines if any(line.scores))
    if models:
        yield Block(_titled(sheet, place, ""), tuple(map(heading, columns)), kept)


def _titled(sheet: Sheet, place: Place, words: str) -> str:
    return ": ".join(filter(None, (place_label(place) if len(sheet.places) > 1 else "", words)))


def _score(sheet: Sheet, model: Model, place: Place, metric: str) -> Score | None:
    values = sheet.values(model, place, metric)
    if not values:
        return None
    if model == PLAIN or metric not in COMPARED:
        return Score(metric, mean(values), len(values))
    return Score(metric, mean(values), len(values), paired(values, sheet.values(PLAIN, place, metric)))


def _as_acquired(sheet: Sheet, place: Place, columns: Sequence[str]) -> Line:
    scores = []
    for metric in columns:
        values = sheet.of_state("degraded", place, metric) if metric in ("psnr_db", "ssim") else {}
        scores.append(Score(metric, mean(values), len(values)) if values else None)
    return Line("as acquired", tuple(scores), state=True)
