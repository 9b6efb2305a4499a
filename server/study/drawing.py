"""Curves in, a chart out: inline SVG for report.html, a PNG file for the pages of docs/results."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from server import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    points: bool = False
    """No line between them."""


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
    ticks: tuple[str, ...] = ()
    """Words under x = 0, 1, 2, ...; empty: numbers."""


@dataclass(frozen=True, slots=True)
class Picture:
    name: str
    caption: str
    panels: tuple[Panel, ...]

    @property
    def legend(self) -> tuple[tuple[str, str], ...]:
        """Names and colours, each once."""
        return tuple(dict.fromkeys((curve.name, curve.colour) for panel in self.panels for curve in panel.curves))


def draw(panel: Panel, axes: Axes) -> None:
    """The panel's lines and bands; axes and ink are the caller's."""
    if panel.guide is not None:
        axes.axhline(panel.guide, color=figures.INK, alpha=0.45, linewidth=0.8)
    for curve in panel.curves:
        (line,) = axes.plot(curve.xs, curve.ys, color=curve.colour, label=curve.name, linewidth=1.6)
        line.set(marker=curve.marker, markersize=3.8, linestyle="--" if curve.dashed else "-")
        if curve.points:
            line.set(linestyle="none", markersize=6)
        if curve.lows and not all(map(math.isnan, curve.lows)):
            axes.fill_between(curve.xs, curve.lows, curve.highs, color=curve.colour, alpha=0.14, linewidth=0)
    if panel.logarithmic:
        axes.set_xscale("log")
        ticks = sorted({x for curve in panel.curves for x in curve.xs})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    if panel.ticks:
        axes.set_xticks(range(len(panel.ticks)), panel.ticks)
        axes.set_xlim(-0.2, len(panel.ticks) - 0.8)
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
