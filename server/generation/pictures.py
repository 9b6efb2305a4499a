"""A sheet in, charts out: quality against sampling steps; and what the cells have drawn.

`pictures` of a cell (record["study"]["cells"][i]["pictures"], optional) are made where the images are
(simulation/study/generation_pictures.py) and shown here as they come, as those of recognition.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from server.generation.rows import Model, Sheet
from server.generation.wording import COLOURS, MARKERS, SAMPLERS, label, ordered
from server.recognition.pictures import Look
from server.recognition.wording import whole_label
from server.study.drawing import Curve, Panel, Picture
from server.study.statistics import mean
from server.study.wording import SHOWN

KINDS: Mapping[str, str] = {
    "drawn": "Original, edges, outlines, and images drawn for them",
    "sampled": "The same images, drawn with other settings",
}
MOST_LOOKS = 24
"""Pictures of each kind that a question shows: a page has to open on a laptop."""
_IMAGE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
_QUALITY = ("feature_distance", "mask_dice", "images_per_s")


def steps_picture(sheet: Sheet, name: str) -> Picture | None:
    """Feature distance, the segmenter's Dice and images per second over sampling steps, a line per sampler and
    guidance; None until there are two numbers of steps."""
    panels = []
    for place in sheet.conditions:
        for metric in _QUALITY:
            groups: dict[tuple[str, float], list[Model]] = {}
            for model in sorted(sheet.models, key=lambda each: each.steps):
                if model.sampler and sheet.values(model, place, metric):
                    groups.setdefault((model.sampler, model.guidance), []).append(model)
            curves = tuple(_curve(sheet, models, place, metric, groups) for models in groups.values())
            if len({x for curve in curves for x in curve.xs}) > 1:
                title = SHOWN[metric].heading + (f": {whole_label(place)}" if len(sheet.conditions) > 1 else "")
                panels.append(Panel(title, "sampling steps", curves, logarithmic=True))
    caption = "Means over seeds; dashed: another guidance. Lower is better for the distance, higher for the others."
    return Picture(name, caption, tuple(panels)) if panels else None


def _curve(
    sheet: Sheet, models: Sequence[Model], place: Any, metric: str, groups: Mapping[tuple[str, float], Any]
) -> Curve:
    sampler, guidance = models[0].sampler, models[0].guidance
    of_sampler = [other for name, other in groups if name == sampler]
    name = SAMPLERS.get(sampler, sampler) + (f", guidance {guidance:g}" if len(of_sampler) > 1 else "")
    by_steps: dict[float, list[float]] = {}
    for model in models:
        by_steps.setdefault(float(model.steps), []).append(mean(sheet.values(model, place, metric)))
    ys = tuple(sum(found) / len(found) for found in by_steps.values())
    return Curve(name, COLOURS.get(sampler, "#7b8794"), MARKERS.get(sampler, "o"), tuple(by_steps), ys,
                 dashed=guidance != of_sampler[0])  # fmt: skip


def looks_of(sheet: Sheet, cells: Sequence[Mapping[str, Any]], known: Set[str] = frozenset()) -> list[Look]:
    """What the cells have drawn, model by model; nothing that is no PNG in the page itself. Cells are shared: those of
    `known` have been shown."""
    models = {row.get("cell", ""): model for (model, _), rows in sheet.test.items() for row in rows.values()}
    looks: dict[str, list[Look]] = {kind: [] for kind in KINDS}
    shown_of = [model for model in ordered(sheet.models) if model in set(models.values())]
    for model in shown_of:
        for cell in cells:
            key = cell.get("key", "")
            for item in (cell.get("pictures") or ()) if models.get(key) == model and key not in known else ():
                if item["kind"] in KINDS and _IMAGE.fullmatch(item["uri"]):
                    looks[item["kind"]].append(Look(item["kind"], item["uri"], item["caption"], label(model, shown_of)))
    return [look for shown in looks.values() for look in shown[:MOST_LOOKS]]
