"""Numbers in, small inline SVG charts out: what report.html shows beside its tables.

Every chart is about 3.6 inches wide, so that the page can lay them out in columns and a phone shows each at full width
with readable text. Ink is `currentColor` and the background is transparent: one picture for a light and a dark page.
Same numbers, same bytes: no date and no random jitter goes into a file. matplotlib is imported when a chart is drawn.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image as Picture

SETTING_COLOURS: Mapping[str, str] = {
    "clean": "#6f7d8c",
    "degraded": "#98a2ad",
    "local": "#d08a2e",
    "pooled": "#2f9c86",
    "federated": "#3b74e0",
    "personalised": "#9a62c7",
}
SITE_COLOURS = ("#3b74e0", "#d08a2e", "#2f9c86", "#c0567f", "#8a6fd1", "#7b9a3a", "#4aa3c7", "#a0714a")
"""Mid-tones that read on white and on near-black; sites beyond the eighth start over."""

SITE_MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("*", "★"), ("p", "⬟"))
"""matplotlib's marker and the sign of a page's legend: lines are told apart without colour, too."""

INK = "#010203"  # stands for currentColor until the SVG is written
MOST_OPAQUE = 0.7  # of a map over a picture: the anatomy below must stay readable
_WORDS: Mapping[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "color": INK, "alpha": 0.6}
_POINTS = 60  # points drawn per box: enough to see a tail, few enough for a phone


def site_colour(index: int) -> str:
    return SITE_COLOURS[index % len(SITE_COLOURS)]


def site_marker(index: int) -> str:
    return SITE_MARKERS[index % len(SITE_MARKERS)][0]


def site_sign(index: int) -> str:
    return SITE_MARKERS[index % len(SITE_MARKERS)][1]


@dataclass(frozen=True, slots=True)
class Chart:
    """What a page shows: words, and inline SVG below them; a sentence that explains what is drawn."""

    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a round chart: a value per round, NaN where there is none."""

    colour: str
    marker: str
    ys: Sequence[float]


@dataclass(frozen=True, slots=True)
class Axis:
    """Ends of the y axis that are fixed (None: by the data), and a line to read values against."""

    low: float | None = None
    high: float | None = None
    guide: float | None = None


@dataclass(frozen=True, slots=True)
class Box:
    """One box of a spread chart: the 5, 25, 50, 75 and 95 % points, and the images' own values where they are known."""

    group: str
    label: str
    colour: str
    quantiles: tuple[float, ...]
    values: tuple[float, ...] = ()


def box_of(group: str, label: str, colour: str, values: npt.NDArray[Any]) -> Box:
    """A box from values per image; not-finite values are left out."""
    finite = np.sort(np.asarray(values, dtype=np.float64)[np.isfinite(values)])
    quantiles = tuple(float(q) for q in np.quantile(finite, (0.05, 0.25, 0.5, 0.75, 0.95)))
    picked = finite[np.unique(np.linspace(0, len(finite) - 1, min(_POINTS, len(finite))).astype(int))]
    return Box(group, label, colour, quantiles, tuple(map(float, picked)))


def line_chart(lines: Sequence[tuple[str, str, Sequence[float], Sequence[float]]], *, label: str, x_label: str) -> str:
    """`lines` are (name, colour, xs, ys); names go to the page's own legend, not into the chart."""
    figure, axes = new_figure(2.05)
    for _, colour, xs, ys in lines:
        axes.plot(xs, ys, color=colour, linewidth=1.6, marker="o", markersize=2.6, alpha=0.95)
    axes.set_xlabel(x_label)
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    return svg(figure, label)


def round_chart(rounds: Sequence[int], lines: Sequence[Line], axis: Axis, *, label: str, blank: str = "warm-up") -> str:
    """All `rounds` stand on the axis; the first ones, where no line has a value, are shaded and called `blank`."""
    figure, axes = new_figure(2.05)
    if axis.guide is not None:
        axes.axhline(axis.guide, color=INK, alpha=0.45, linewidth=0.8)
    for line in lines:
        axes.plot(rounds, line.ys, color=line.colour, linewidth=1.5, marker=line.marker, markersize=3.6, alpha=0.95)
    axes.set_xlim(rounds[0] - 0.5, rounds[-1] + 0.5)
    drawn = [bool(np.isfinite([line.ys[place] for line in lines]).any()) for place in range(len(rounds))]
    if not drawn[0]:
        first = rounds[drawn.index(True)]
        axes.axvspan(rounds[0] - 0.5, first - 0.5, color=INK, alpha=0.07, linewidth=0)
        middle = (rounds[0] + first - 1) / 2
        axes.text(middle, 0.5, blank, transform=axes.get_xaxis_transform(), rotation=90, **_WORDS)
    _set_y(axes, axis)
    axes.set_xlabel("round")
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    return svg(figure, label)


def _set_y(axes: Axes, axis: Axis) -> None:
    """A twentieth beyond a fixed end, so that a marker on it is whole; then beyond the other, too."""
    low, high = axes.get_ylim()
    low = low if axis.low is None else axis.low
    high = high if axis.high is None else axis.high
    high = max(high, low + 0.01)
    room = (high - low) / 20
    axes.set_ylim(low - room * (axis.low is not None), high + room * (axis != Axis(guide=axis.guide)))


def spread_chart(boxes: Sequence[Box], *, label: str, x_label: str) -> str:
    """Horizontal boxes, grouped by site: whiskers 5-95 %, box 25-75 %, bar at the median, one dot per image."""
    groups = list(dict.fromkeys(box.group for box in boxes))
    rows: list[tuple[float, Box]] = []
    ticks: list[float] = []
    y = 0.0
    for group in groups:
        members = [box for box in boxes if box.group == group]
        rows += [(y + i, box) for i, box in enumerate(members)]
        ticks.append(y + (len(members) - 1) / 2)
        y += len(members) + 0.7
    figure, axes = new_figure(0.55 + 0.155 * y)
    for at, box in rows:
        _draw_box(axes, at, box)
    axes.set_yticks(ticks, groups)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(y - 0.9, -0.8)
    axes.set_xlabel(x_label)
    axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)
    return svg(figure, label)


def _draw_box(axes: Axes, at: float, box: Box) -> None:
    low, first, median, third, high = box.quantiles
    axes.plot([low, high], [at, at], color=box.colour, linewidth=1.1, solid_capstyle="butt")
    axes.barh(at, third - first, left=first, height=0.62, color=box.colour, alpha=0.32, linewidth=0)
    axes.plot([median, median], [at - 0.36, at + 0.36], color=box.colour, linewidth=2.2, solid_capstyle="butt")
    if box.values:
        # golden-ratio offsets spread the dots evenly without a random number
        offsets = ((np.arange(len(box.values)) * 0.6180339887) % 1 - 0.5) * 0.5
        axes.scatter(box.values, at + offsets, s=2.2, color=box.colour, alpha=0.55, linewidths=0)


def histogram_chart(edges: npt.NDArray[Any], densities: Mapping[str, npt.NDArray[Any]], *, label: str) -> str:
    """One outline per site over shared bin edges (campaign scale, 0 to 1)."""
    figure, axes = new_figure(2.05)
    for index, density in enumerate(densities.values()):
        axes.stairs(density, edges, color=site_colour(index), linewidth=1.5, alpha=0.95)
        axes.stairs(density, edges, color=site_colour(index), fill=True, alpha=0.07, linewidth=0)
    axes.set_yscale("symlog", linthresh=0.05)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("intensity on the campaign's scale")
    return svg(figure, label)


def image_uri(image_HW: npt.NDArray[Any]) -> str:
    """Intensities in [0, 1] (H, W) or (H, W, 3) as a PNG data URI."""
    from PIL import Image

    grey = np.round(np.clip(np.nan_to_num(image_HW), 0, 1) * 255).astype(np.uint8)
    return png_uri(Image.fromarray(grey))


def error_uri(error_HW: npt.NDArray[Any], largest: float) -> str:
    """|error| (H, W) from 0 (black) to `largest` (yellow) as a PNG data URI."""
    from matplotlib import colormaps
    from PIL import Image

    share = np.clip(np.abs(np.nan_to_num(error_HW)) / max(largest, 1e-9), 0, 1)
    return png_uri(Image.fromarray(np.round(colormaps["inferno"](share)[..., :3] * 255).astype(np.uint8)))


def map_uri(share_HW: npt.NDArray[Any], colours: str, *, see_through: bool = False) -> str:
    """A map (H, W) of 0 to 1 in matplotlib's `colours` as a PNG data URI with a palette: a byte per pixel.

    With `see_through`, 0 is clear and what lies below a 1 still shines through, for a map over a picture.
    """
    from matplotlib import colormaps
    from PIL import Image

    levels = np.round(np.clip(np.nan_to_num(share_HW), 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(levels, mode="P")
    palette = np.round(colormaps[colours](np.arange(256))[:, :3] * 255).astype(np.uint8)
    picture.putpalette(palette.tobytes())
    clear = {"transparency": bytes(np.round(np.arange(256) * MOST_OPAQUE).astype(np.uint8))} if see_through else {}
    return png_uri(picture, **clear)


def gradient_css(colours: str) -> str:
    """matplotlib's `colours` from left to right as a CSS gradient."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    stops = ", ".join(to_hex(colormaps[colours](at)) for at in np.linspace(0, 1, 9))
    return f"linear-gradient(to right, {stops})"


def contour_path(mask_HW: npt.NDArray[Any]) -> str:
    """The outlines of a binary mask as SVG path data, in pixels with (0, 0) at the corner of the first pixel."""
    from contourpy import contour_generator

    padded = np.pad(mask_HW.astype(np.float64), 1)  # an organ cut by the border still closes
    lines = cast("list[npt.NDArray[np.float64]]", contour_generator(z=padded, line_type="Separate").lines(0.5))
    steps = ("M" + "L".join(f"{x - 0.5:.1f} {y - 0.5:.1f}" for x, y in line) + "Z" for line in lines)
    return "".join(steps)


def png_uri(picture: Picture, **options: Any) -> str:
    """As a data URI; `options` are those of Pillow's PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def new_figure(height_in: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, height_in), layout="constrained")
    axes: Axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=INK, alpha=0.35, linewidth=0.7)
    axes.tick_params(color=INK, labelcolor=INK, labelsize=8, width=0.7, length=3)
    axes.xaxis.label.set(color=INK, fontsize=8)
    return figure, axes


def svg(figure: Figure, label: str) -> str:
    """Inline SVG that scales with its column, takes the page's ink and font, and reads out `label`."""
    from html import escape

    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label, "path.simplify": True}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<g) id="[A-Za-z]+_\d+"', r"\1", text)  # figure_1, axes_1 ... would repeat on one page
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", text)
    viewbox = re.search(r'viewBox="[^"]+"', text)
    assert viewbox is not None
    return f'<svg role="img" aria-label="{escape(label)}" {viewbox.group()}>' + text[text.index(">") + 1 :]
