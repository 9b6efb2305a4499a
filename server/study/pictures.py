"""A sheet in, the study's three pictures out: inline SVG for report.html, PNG files for the pages of docs/results.

    lambda     PSNR of each objective minus plain's, paired by seed, over lambda; beside it a judge's score likewise
    severity   gain in PSNR, and a judge's score, over the noise
    gates      where each gate opened, and the cosine of the two gradients, over training

Bands are the paired intervals of server/study/statistics.py, drawn only where there are two seeds or more.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from server import figures
from server.study.rows import Model, Sheet, Trained
from server.study.statistics import BySeed, mean, mean_of, paired
from server.study.tables import ordered
from server.study.wording import COLOURS, MARKERS, SHOWN, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OTHER_COLOURS = ("#3b74e0", "#d08a2e", "#2f9c86", "#c0567f", "#8a6fd1", "#7b9a3a", "#4aa3c7")
_JUDGES = ("judge_dice", "judge_accuracy")


@dataclass(frozen=True, slots=True)
class Curve:
    name: str
    colour: str
    marker: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()
    """Ends of the band; empty where there is none."""
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    x_label: str
    curves: tuple[Curve, ...]
    logarithmic: bool = False
    guide: float | None = None
    """A horizontal line to read values against."""
    limits: tuple[float, float] | None = None
    """Ends of the vertical axis; None: by the data."""


@dataclass(frozen=True, slots=True)
class Picture:
    name: str
    caption: str
    panels: tuple[Panel, ...]

    @property
    def legend(self) -> tuple[tuple[str, str], ...]:
        """Names and colours, each once."""
        return tuple(dict.fromkeys((curve.name, curve.colour) for panel in self.panels for curve in panel.curves))


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


def draw(panel: Panel, axes: Axes) -> None:
    """The panel's lines and bands; axes and ink are the caller's."""
    if panel.guide is not None:
        axes.axhline(panel.guide, color=figures.INK, alpha=0.45, linewidth=0.8)
    for curve in panel.curves:
        (line,) = axes.plot(curve.xs, curve.ys, color=curve.colour, label=curve.name, linewidth=1.6)
        line.set(marker=curve.marker, markersize=3.8, linestyle="--" if curve.dashed else "-")
        if curve.lows and not all(map(math.isnan, curve.lows)):
            axes.fill_between(curve.xs, curve.lows, curve.highs, color=curve.colour, alpha=0.14, linewidth=0)
    if panel.logarithmic:
        axes.set_xscale("log")
        ticks = sorted({x for curve in panel.curves for x in curve.xs})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    if panel.limits is not None:
        axes.set_ylim(*panel.limits)
    axes.set_xlabel(panel.x_label)
    axes.grid(axis="y", color=figures.INK, alpha=0.12, linewidth=0.6)


def svgs(picture: Picture) -> list[tuple[str, str]]:
    """Title and inline SVG of every panel; the page has the legend."""
    return [(panel.title, _svg(panel, f"{picture.name}: {panel.title}")) for panel in picture.panels]


def _svg(panel: Panel, label: str) -> str:
    figure, axes = figures.new_figure(2.3)
    draw(panel, axes)
    return figures.svg(figure, label)


def png(picture: Picture) -> bytes:
    """All panels side by side on white, with their legend: for a page that can show no SVG in its own ink."""
    from matplotlib.figure import Figure

    count = len(picture.panels)
    figure = Figure(figsize=(5.2 * count, 3.7), layout="constrained", facecolor="white")
    for place, panel in enumerate(picture.panels, start=1):
        axes = figure.add_subplot(1, count, place)
        axes.spines[["top", "right"]].set_visible(False)
        draw(panel, axes)
        axes.set_title(panel.title, fontsize=10, loc="left")
        axes.tick_params(labelsize=8)
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    columns = max(1, int(figure.get_figwidth() / (0.6 + 0.09 * max(map(len, handles)))))
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False,
        fontsize=9,
    )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
