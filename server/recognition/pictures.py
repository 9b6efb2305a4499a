"""A sheet in, charts out: the ladders of labels, the rank of features over training, and what cells look like.

`pictures` of a cell (record["study"]["cells"][i]["pictures"], optional) are made where the images are
(simulation/study/pictures.py) and shown here as they come: a list of {"kind", "caption", "uri"}, the uri a PNG as a
data URI, the kind a key of KINDS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from server import figures
from server.recognition.rows import SELFREG, Model, Place, Sheet
from server.recognition.wording import (
    COLOURS,
    MARKERS,
    REGULARISERS,
    label,
    method_shown,
    ordered,
    place_label,
    whole_label,
)
from server.study.drawing import Curve, Panel, Picture
from server.study.statistics import mean, mean_of
from server.study.wording import SHOWN

KINDS: Mapping[str, str] = {
    "contours": "Outlines: predicted in colour, the truth white and dashed",
    "saliency": "What the class head looked at",
    "similarity": "Similarity of features, shallow and deep blocks",
    "attention": "Attention, shallow and deep blocks",
}
FEATURES = ("similarity", "attention")
MOST_LOOKS = 24
"""Pictures of each kind that a question shows: a page has to open on a laptop."""
_IMAGE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
_LADDERS = ("dice", "accuracy")


@dataclass(frozen=True, slots=True)
class Look:
    kind: str
    uri: str
    """A PNG as a data URI."""
    caption: str
    of: str
    """The model it is of."""


def ladder_picture(sheet: Sheet, name: str) -> Picture | None:
    """Dice and accuracy over how many labels there are, a line per method; None until there are two settings."""
    panels = []
    for metric in _LADDERS:
        shown = [p for p in sheet.conditions if any(sheet.values(model, p, metric) for model in sheet.models)]
        if len({place.labels for place in shown}) < 2 or len({place.data for place in shown}) > 1:
            continue
        curves = []
        for model in ordered(sheet.models):
            points = [(x, mean(v)) for x, p in enumerate(shown) if (v := sheet.values(model, p, metric))]
            if points:
                curves.append(_curve(label(model, sheet.models), model, points))
        ticks = tuple(place_label(place, shown).replace(", ", "\n") for place in shown)
        panels.append(Panel(SHOWN[metric].heading, "labels in training", tuple(curves), ticks=ticks))
    caption = "Means over seeds on test patients; labels are those of all sites together."
    return Picture(name, caption, tuple(panels)) if panels else None


def _curve(name: str, model: Model, points: Sequence[tuple[float, float]]) -> Curve:
    xs, ys = zip(*points, strict=True)
    dashed = model.selfreg != "none"
    return Curve(name, COLOURS.get(model.method, "#7b8794"), MARKERS.get(model.method, "o"), xs, ys, dashed=dashed)


def rank_picture(sheet: Sheet, cells: Sequence[Mapping[str, Any]], table: str) -> Picture | None:
    """Effective rank of the features over training, per network and data set: what collapses falls towards 1."""
    by_cell = _rounds(cells)
    panels = []
    for place in sheet.conditions:
        groups: dict[tuple[str, str], list[Model]] = {}
        for model in ordered(sheet.models):
            groups.setdefault((model.method, model.recogniser), []).append(model)
        for models in groups.values():
            curves = []
            for model in models:
                number = SELFREG.index(model.selfreg) if model.selfreg in SELFREG else len(SELFREG)
                points = _records(sheet, model, place, by_cell, "feature_rank")
                if points:
                    xs, ys = zip(*points, strict=True)
                    colour, marker = figures.site_colour(number), figures.site_marker(number)
                    name = ", ".join(filter(None, (REGULARISERS.get(model.selfreg, "without"), model.variant)))
                    curves.append(Curve(name, colour, marker, xs, ys))
            if curves:
                title = f"{method_shown(replace(models[0], selfreg='none'))}, {whole_label(place)}"
                panels.append(Panel(title, "training record", tuple(curves)))
    caption = "Effective rank of the last decoder block's features over training, mean over seeds; 1: all alike."
    return Picture(table, caption, tuple(panels)) if panels else None


def accept_picture(sheet: Sheet, cells: Sequence[Mapping[str, Any]], name: str) -> Picture | None:
    """Share of the images without a diagnosis whose pseudo-label was taken, over training."""
    by_cell = _rounds(cells)
    panels = []
    for place in sheet.conditions:
        curves = []
        for model in ordered(sheet.models):
            points = _records(sheet, model, place, by_cell, "pseudo_accept_rate")
            if points:
                curves.append(_curve(label(model, sheet.models), model, points))
        if curves:
            title = f"pseudo-labels taken, share: {whole_label(place)}"
            panels.append(Panel(title, "training record", tuple(curves), limits=(-0.02, 1.02)))
    caption = "Share of the images without a diagnosis whose pseudo-label was confident enough, mean over seeds."
    return Picture(name, caption, tuple(panels)) if panels else None


Rounds = Sequence[Mapping[str, Any]]


def _rounds(cells: Sequence[Mapping[str, Any]]) -> dict[str, Rounds]:
    """The training records of each cell."""
    return {cell["key"]: cell["rounds"] for cell in cells if "key" in cell}


def _records(
    sheet: Sheet, model: Model, place: Place, by_cell: Mapping[str, Rounds], key: str
) -> list[tuple[float, float]]:
    """Number of the training record, and the mean over the seeds that have it."""
    points: dict[int, list[float]] = {}
    for row in sheet.test.get((model, place), {}).values():
        for number, record in enumerate(by_cell.get(row.get("cell", ""), ()), start=1):
            if record.get(key) is not None:
                points.setdefault(number, []).append(float(record[key]))
    return [(float(number), mean_of(values)) for number, values in sorted(points.items())]


def looks_of(sheet: Sheet, cells: Sequence[Mapping[str, Any]], name: str, known: Set[str] = frozenset()) -> list[Look]:
    """What the cells look like, model by model; nothing that is no PNG in the page itself.

    Features are shown where SelfReg is asked about; outlines and saliency with the first table that has the cell, since
    cells are shared: not those of `known`.
    """
    models = {row.get("cell", ""): model for (model, _), rows in sheet.test.items() for row in rows.values()}
    looks: dict[str, list[Look]] = {kind: [] for kind in KINDS}
    for model in ordered(sheet.models):
        for cell in cells:
            key = cell.get("key", "")
            for item in (cell.get("pictures") or ()) if models.get(key) == model else ():
                kind, uri = item["kind"], item["uri"]
                wanted = name.startswith("selfreg") if kind in FEATURES else key not in known
                if kind in KINDS and wanted and _IMAGE.fullmatch(uri):
                    looks[kind].append(Look(kind, uri, item["caption"], label(model, sheet.models)))
    return [look for shown in looks.values() for look in shown[:MOST_LOOKS]]
