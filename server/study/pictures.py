"""A sheet in, the study's three pictures out.

    lambda     PSNR of each objective minus plain's, paired by seed, over lambda; beside it a judge's score likewise
    severity   gain in PSNR, and a judge's score, over the noise
    gates      where each gate opened, and the cosine of the two gradients, over training

Bands are the paired intervals of server/study/statistics.py, drawn only where there are two seeds or more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from server import figures
from server.study.drawing import Curve, Panel, Picture
from server.study.rows import Model, Sheet, Trained
from server.study.statistics import BySeed, mean, mean_of, paired
from server.study.tables import ordered
from server.study.wording import COLOURS, MARKERS, SHOWN, label

_OTHER_COLOURS = ("#3b74e0", "#d08a2e", "#2f9c86", "#c0567f", "#8a6fd1", "#7b9a3a", "#4aa3c7")
_JUDGES = ("judge_dice", "judge_accuracy")


def lambda_picture(sheet: Sheet) -> Picture | None:
    """None until plain and a steered objective have a seed in common."""
    plain = next((each for each in sheet.test if each.model.method == "plain"), None)
    if plain is None:
        return None
    panels = []
    for metric in ("psnr_db", *_JUDGES):
        base = sheet.values(plain, metric)
        curves = [_over_lambda(sheet, model, plain, metric, base) for model in ordered(sheet.models)]
        curves += [_level(sheet, plain, metric, base)]
        drawn = tuple(curve for curve in curves if curve is not None)
        if any(not curve.dashed for curve in drawn):
            shown = SHOWN[metric]
            unit = f", {shown.unit}" if shown.unit else ""
            panels.append(Panel(f"{shown.heading} minus plain's{unit}", "lambda |v| / |g|", drawn, True, 0.0))
    caption = (
        "Each objective minus plain training on the same seeds, on test patients; above 0 is better than training "
        "without recognition. Bands: 95 % paired interval."
    )
    return Picture("lambda", caption, tuple(panels)) if panels else None


def _over_lambda(sheet: Sheet, model: Model, plain: Trained, metric: str, base: BySeed) -> Curve | None:
    points = []
    for task_weight in sheet.task_weights(model, plain.condition):
        if task_weight is not None and task_weight > 0 and model.relative:
            found = paired(sheet.values(Trained(model, plain.condition, task_weight), metric), base)
            if found is not None:
                points.append((task_weight, found.mean, found.low, found.high))
    if not points:
        return None
    xs, ys, lows, highs = zip(*points, strict=True)
    name = model.method
    ends = [tuple(math.nan if end is None else end for end in each) for each in (lows, highs)]
    return Curve(name, COLOURS.get(name, "#7b8794"), MARKERS.get(name, "o"), xs, ys, ends[0], ends[1])


def _level(sheet: Sheet, plain: Trained, metric: str, base: BySeed) -> Curve | None:
    """ESTR has a weight of its own, on another scale: a level beside the lines."""
    for each in sheet.test:
        if each.model.method == "estr" and each.condition == plain.condition:
            found = paired(sheet.values(each, metric), base)
            task_weights = [other.task_weight for other in sheet.test if other.model.relative and other.task_weight]
            if found is not None and task_weights:
                ends = (min(task_weights), max(task_weights))
                return Curve("estr (its own lambda)", COLOURS["estr"], "", ends, (found.mean,) * 2, dashed=True)
    return None


def severity_picture(sheet: Sheet) -> Picture | None:
    """None until there are two strengths of noise."""
    conditions = sorted((each for each in sheet.conditions if each.sigma is not None), key=lambda each: each.sigma or 0)
    if len(conditions) < 2:
        return None
    gains, scores = list[Curve](), list[Curve]()
    judge = next((key for key in _JUDGES if any(sheet.values(each, key) for each in sheet.test)), None)
    for model in ordered(sheet.models):
        for curves, metric, of_gain in ((gains, "psnr_db", True), (scores, judge, False)):
            points = []
            for condition in conditions if metric else ():
                task_weights = sheet.task_weights(model, condition)
                values = sheet.values(Trained(model, condition, task_weights[-1]), metric or "") if task_weights else {}
                base = sheet.of_state("degraded", condition, "psnr_db")
                gain = paired(values, base)
                if gain is not None:
                    points.append((condition.sigma or 0.0, gain.mean if of_gain else mean(values)))
            if points:
                xs, ys = zip(*points, strict=True)
                name = label(model, sheet.models)
                curves.append(Curve(name, _colour(model.method), MARKERS.get(model.method, "o"), xs, ys))
    panels = [Panel("PSNR gained over the degraded image, dB", "noise, sigma", tuple(gains), guide=0.0)]
    if judge is not None and scores:
        for state, colour in (("degraded", "#98a2ad"), ("clean", "#6f7d8c")):
            found = [(each.sigma or 0.0, sheet.of_state(state, each, judge)) for each in conditions]
            levels = [(sigma, mean(values)) for sigma, values in found if values]
            xs, ys = zip(*levels, strict=True) if levels else ((), ())
            scores.append(Curve(f"{state} images", colour, "", xs, ys, dashed=True))
        panels.append(Panel(SHOWN[judge].heading, "noise, sigma", tuple(scores)))
    caption = "Means over seeds on test patients. The judge took no part in any training."
    return Picture("severity", caption, tuple(panels))


def _colour(method: str) -> str:
    return COLOURS.get(method, "#7b8794")


def stops_helping(sheet: Sheet) -> list[str]:
    """Per objective a sentence: up to which noise the judge scores the enhanced image above the degraded one."""
    sentences = []
    conditions = sorted((each for each in sheet.conditions if each.sigma is not None), key=lambda each: each.sigma or 0)
    for model in ordered(sheet.models):
        helped, not_helped = list[float](), list[float]()
        for condition in conditions:
            task_weights = sheet.task_weights(model, condition)
            for judge in _JUDGES:
                values = sheet.values(Trained(model, condition, task_weights[-1]), judge) if task_weights else {}
                gain = paired(values, sheet.of_state("degraded", condition, judge))
                if gain is not None:
                    (helped if gain.mean > 0 else not_helped).append(condition.sigma or 0.0)
        name = label(model, sheet.models)
        if not_helped:
            listed = ", ".join(f"{sigma:g}" for sigma in not_helped)
            words = "the judge does no better on enhanced images than on degraded ones at sigma"
            sentences.append(f"{name}: {words} {listed}.")
        elif helped:
            words = "the judge does better on enhanced images at every sigma tried, up to"
            sentences.append(f"{name}: {words} {helped[-1]:g}.")
    return sentences


def gate_picture(sheet: Sheet, cells: Sequence[Mapping[str, Any]], table: str) -> Picture | None:
    """Gate-open rate and cosine over the training records, mean over seeds, at the smallest lambda of the table."""
    by_key = {cell["key"]: cell["rounds"] for cell in cells if table in cell["tables"]}
    models = [model for model in ordered(sheet.models) if model.method == "gradprom"]
    panels = []
    for key, title, guide, limits in (
        ("gate_open_rate", "gate open, share", None, (0.0, 1.0)),
        ("mean_cosine", "cosine of the two gradients", 0.0, None),
    ):
        curves = []
        for number, model in enumerate(models):
            trained = [each for each in sheet.test if each.model == model and each.task_weight is not None]
            if trained:
                first = min(trained, key=lambda each: each.task_weight or 0.0)
                rounds = [by_key[row["cell"]] for row in sheet.test[first].values() if row["cell"] in by_key]
                xs, ys = _mean_records(rounds, key)
                name, colour = label(model, models), _OTHER_COLOURS[number % len(_OTHER_COLOURS)]
                marker = figures.site_marker(number)
                if xs:
                    curves.append(Curve(name, colour, marker, xs, ys))
        if curves:
            panels.append(
                Panel(
                    title, "training record (a point is the mean of three)", tuple(curves), guide=guide, limits=limits
                )
            )
    caption = "Mean over seeds. Records of the warm-up, in which recognition does not steer, are left out."
    return Picture("gates", caption, tuple(panels)) if panels else None


GROUP = 3
"""Training records that a point of the gates' picture is the mean of: one alone (50 steps) is mostly noise."""


def _mean_records(runs: Sequence[Sequence[Mapping[str, Any]]], key: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    points: dict[int, list[float]] = {}
    for rounds in runs:
        for number, record in enumerate(rounds, start=1):
            if key in record:
                points.setdefault(number, []).append(float(record[key]))
    numbers = sorted(points)
    groups = [numbers[first : first + GROUP] for first in range(0, len(numbers), GROUP)]
    values = [[value for number in group for value in points[number]] for group in groups]
    return tuple(mean_of(group) for group in groups), tuple(mean_of(each) for each in values)
