"""A sheet in, charts out: what is gained on the new scanner against what is lost on the old ones; and before and after.

`pictures` of a cell (record["study"]["cells"][i]["pictures"], optional) are made where the images are
(simulation/study/personal_pictures.py) and shown here as they come.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from server.personal.promises import MOST_LOST_DB
from server.personal.rows import RELEASE, Model, Place, Sheet
from server.personal.tables import gains
from server.personal.wording import COLOURS, MARKERS, label, ordered, whole_label
from server.recognition.pictures import Look
from server.study.drawing import Curve, Panel, Picture
from server.study.statistics import mean

KINDS: Mapping[str, str] = {
    "new": "The new scanner: clean, as acquired, by the release, after the adaptation",
    "old": "An old scanner: clean, as acquired, by the release, after the adaptation",
}
MOST_LOOKS = 16
"""Pictures of each kind that a question shows: a page has to open on a laptop."""
_IMAGE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
_SHADES = ("#3b74e0", "#d08a2e", "#2f9c86", "#c0567f", "#8a6fd1", "#7b9a3a", "#4aa3c7", "#7b8794")


def picture_of(sheet: Sheet, name: str) -> Picture | None:
    """Of phi or of the number of studies, where a table asks about one; else gain against loss."""
    if name.startswith("phi"):
        return _along(sheet, name, "phi", lambda model: model.tgd_phi)
    if name.startswith("few"):
        return _along(sheet, name, "patients of the new scanner", lambda model: float(model.studies))
    return balance_picture(sheet, name)


def balance_picture(sheet: Sheet, name: str) -> Picture | None:
    """A point per seed and method: up is lost or kept on the old scanners, right is gained on the new one."""
    panels = []
    for place in sheet.places:
        models = [each for each in ordered(sheet.models) if each.method != RELEASE]
        drawn = [(each, *_points(sheet, each, place)) for each in models]
        drawn = [each for each in drawn if each[1]]
        several = len({model.method for model, _, _ in drawn}) < len(drawn)
        curves = tuple(
            Curve(
                label(model, models),
                _SHADES[number % len(_SHADES)] if several else COLOURS.get(model.method, _SHADES[-1]),
                MARKERS.get(model.method, "o"),
                xs, ys, points=True,
            )
            for number, (model, xs, ys) in enumerate(drawn)
        )  # fmt: skip
        if curves:
            title = "change on the old scanners, dB" + (f": {whole_label(place)}" if len(sheet.places) > 1 else "")
            panels.append(Panel(title, "gain on the new scanner, dB", curves, guide=-MOST_LOST_DB))
    caption = (
        "PSNR after the adaptation less that of the release, a point per seed: right is better on the new scanner, "
        f"down is forgotten of the old ones. The line: {MOST_LOST_DB:g} dB lost."
    )
    return Picture(name, caption, tuple(panels)) if panels else None


def _points(sheet: Sheet, model: Model, place: Place) -> tuple[tuple[float, ...], tuple[float, ...]]:
    new, old = (gains(sheet, model, place, domain) for domain in ("new", "old"))
    seeds = [seed for seed in new if seed in old]
    return tuple(new[seed] for seed in seeds), tuple(old[seed] for seed in seeds)


def _along(sheet: Sheet, name: str, x_label: str, x_of: Callable[[Model], float]) -> Picture | None:
    """Gain and loss over what the table varies; models without a value of it are left out."""
    panels = []
    for place in sheet.places:
        for domain, words in (("new", "gain on the new scanner, dB"), ("old", "change on the old scanners, dB")):
            groups: dict[Model, list[tuple[float, float]]] = {}
            for model in sorted(sheet.models, key=x_of):
                found = gains(sheet, model, place, domain)
                if x_of(model) > 0 and found:
                    same = replace(model, tgd_phi=0.0, studies=0, variant="")
                    groups.setdefault(same, []).append((x_of(model), mean(found)))
            curves = []
            for number, (model, points) in enumerate(groups.items()):
                xs, ys = zip(*points, strict=True)
                name_of_line, several = label(model, list(groups)), len({m.method for m in groups}) < len(groups)
                colour = _SHADES[number % len(_SHADES)] if several else COLOURS.get(model.method, _SHADES[-1])
                curves.append(Curve(name_of_line, colour, MARKERS.get(model.method, "o"), xs, ys))
            if curves and len({x for curve in curves for x in curve.xs}) > 1:
                title = words + (f": {whole_label(place)}" if len(sheet.places) > 1 else "")
                panels.append(Panel(title, x_label, tuple(curves), guide=0.0))
    caption = "PSNR after the adaptation less that of the release, means over seeds; the line: no change."
    return Picture(name, caption, tuple(panels)) if panels else None


def looks_of(sheet: Sheet, cells: Sequence[Mapping[str, Any]], known: Set[str] = frozenset()) -> list[Look]:
    """Before and after, model by model; nothing that is no PNG in the page itself. Cells are shared: those of `known`
    have been shown."""
    models = {row.get("cell", ""): key[0] for key, rows in sheet.test.items() for row in rows.values()}
    among = [model for model in ordered(sheet.models) if model in set(models.values())]
    looks: dict[str, list[Look]] = {kind: [] for kind in KINDS}
    for model in among:
        for cell in cells:
            key = cell.get("key", "")
            for item in (cell.get("pictures") or ()) if models.get(key) == model and key not in known else ():
                if item["kind"] in KINDS and _IMAGE.fullmatch(item["uri"]):
                    looks[item["kind"]].append(Look(item["kind"], item["uri"], item["caption"], label(model, among)))
    return [look for shown in looks.values() for look in shown[:MOST_LOOKS]]
