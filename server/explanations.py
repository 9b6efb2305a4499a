"""A run's pictures in, the section "Where the recogniser looks" out: map by map, and what can be checked in numbers.

The keys in a pictures npz, for the images that stand there as example/<site>/<median|worst>/ (client/explain.py):

    explain/<site>/<which>/error/<degraded|enhanced>                   (H, W) float16, on the intensity scale
    explain/<site>/<which>/<masks|diagnosis>/<saliency|activation>/<state>   (H, W) uint8, 255 at the top of the scale
    explain/<site>/<which>/<masks|diagnosis>/<saliency|activation>_inside/<state>   share inside the true foreground
    explain/<site>/<which>/area                                        share of the image that the foreground covers
    explain/<site>/<which>/asked, known                                the diagnosis explained, and whether it is true

A state is degraded, enhanced or clean: those that the example has, and a recogniser alone may have one image only. An
older run has no explanations, and then the section is not there. Without an outline there is no share inside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from server import figures

Pictures = Mapping[str, npt.NDArray[Any]]
STATES = ("degraded", "enhanced", "clean")
TASKS = {"masks": "outlines", "diagnosis": "diagnosis"}
KINDS = {"saliency": "saliency", "activation": "class activation"}
MAP_COLOURS = {"saliency": "magma", "activation": "viridis", "error": "inferno"}
"""All three run evenly from dark to light, so they read without colour vision and in a grey print."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One picture of the grid: a PNG, or a map over the picture whose id is `under`."""

    label: str
    uri: str
    id: str = ""
    under: str = ""
    words: str = ""
    outlined: bool = True
    """The true foreground's outline lies over it, where there is one."""


@dataclass(frozen=True, slots=True)
class Look:
    """One slice: a row per state of the image, a column per map; a cell that says nothing is None."""

    site: str
    which: str
    question: str
    id: str
    size: tuple[int, int]
    contour: str
    """Path data of the true foreground's outline; empty without one."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


@dataclass(frozen=True, slots=True)
class Share:
    """Mean shares inside the true foreground, over the shown slices that have one for every state."""

    task: str
    kind: str
    slices: int
    area: float
    by_state: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Bar:
    """A colour scale: its CSS gradient and the words at both ends."""

    name: str
    css: str
    low: str
    high: str


@dataclass(frozen=True, slots=True)
class Explained:
    states: tuple[str, ...]
    tasks: tuple[str, ...]
    looks: tuple[Look, ...]
    shares: tuple[Share, ...]
    bars: tuple[Bar, ...]


def explained(pictures: Pictures, sites: Sequence[str], diagnoses: Sequence[str], *, page_id: str) -> Explained | None:
    """Everything of the section, or None for a run that explained nothing; `page_id` keeps ids apart on one page."""
    slices = {
        (site, which): found
        for site in sites
        for which in ("median", "worst")
        if (found := _of_slice(pictures, site, which)) is not None
    }
    if not slices:
        return None
    largest = max(_largest_error(found) for found in slices.values())
    looks = tuple(
        _look(found, site, which, largest=largest, diagnoses=diagnoses, prefix=f"{page_id}-{number}")
        for number, ((site, which), found) in enumerate(slices.items())
    )
    tasks = tuple(task for task in TASKS if any(task in _tasks(found) for found in slices.values()))
    states = tuple(state for state in STATES if any(state in found for found in slices.values()))
    return Explained(states, tasks, looks, tuple(_shares(list(slices.values()), states)), _bars(states, largest))


def row_name(state: str, states: Sequence[str]) -> str:
    """What a state is called; where there is no other, it is the image."""
    return state if len(states) > 1 else "image"


def _of_slice(pictures: Pictures, site: str, which: str) -> Pictures | None:
    """A slice's arrays by the rest of their keys; None without its images or without any explanation."""
    explain, example = f"explain/{site}/{which}/", f"example/{site}/{which}/"
    found = {key.removeprefix(explain): value for key, value in pictures.items() if key.startswith(explain)}
    images = {key.removeprefix(example): value for key, value in pictures.items() if key.startswith(example)}
    return {**images, **found} if found and "clean" in images else None


def _states(found: Pictures) -> list[str]:
    return [state for state in STATES if state in found]


def _tasks(found: Pictures) -> list[str]:
    keys = [(kind, state) for kind in KINDS for state in _states(found)]
    return [task for task in TASKS if all(f"{task}/{kind}/{state}" in found for kind, state in keys)]


def _largest_error(found: Pictures) -> float:
    error = found.get("error/degraded")
    return 0.0 if error is None else float(np.quantile(error.astype(np.float64), 0.995))


def _look(found: Pictures, site: str, which: str, *, largest: float, diagnoses: Sequence[str], prefix: str) -> Look:
    tasks, states = _tasks(found), _states(found)
    one = len(tasks) == 1
    columns = ["image", *(KINDS[kind] if one else f"{KINDS[kind]}, {TASKS[task]}" for task in tasks for kind in KINDS)]
    truth = found.get("truth")
    outline = "" if truth is None else figures.contour_path(truth > 0)
    rows = []
    for state in states:
        under = f"{prefix}-{state}"
        cells: list[Cell | None] = [Cell("image", figures.image_uri(found[state]), id=under)]
        cells += [_map_cell(found, task, kind, state, under) for task in tasks for kind in KINDS]
        if len(states) > 1:
            cells.append(_error_cell(found, state, largest))
        rows.append((row_name(state, states), tuple(cells)))
    height, width = found["clean"].shape[:2]
    question = _question(found, diagnoses)
    ends = ("error",) if len(states) > 1 else ()
    return Look(site, which, question, prefix, (width, height), outline, (*columns, *ends), tuple(rows))


def _error_cell(found: Pictures, state: str, largest: float) -> Cell | None:
    error = found.get(f"error/{state}")
    if error is None:
        return None
    share = error.astype(np.float32) / max(largest, 1e-9)
    return Cell("error", figures.map_uri(share, MAP_COLOURS["error"]), outlined=False)


def _map_cell(found: Pictures, task: str, kind: str, state: str, under: str) -> Cell:
    """Saliency on its own, for it is fine and black where nothing answers; the coarse activation over the image."""
    over = kind == "activation"
    share_HW = found[f"{task}/{kind}/{state}"] / np.float32(255)
    inside = found.get(f"{task}/{kind}_inside/{state}")
    words = "" if share_HW.any() else "0 everywhere"
    return Cell(
        f"{KINDS[kind]} of {TASKS[task]}",
        figures.map_uri(share_HW, MAP_COLOURS[kind], see_through=over),
        under=under if over else "",
        words=words if inside is None else f"{100 * float(inside):.0f} % inside",
    )


def _question(found: Pictures, diagnoses: Sequence[str]) -> str:
    """Which diagnosis the maps are about, in words; empty where none is."""
    if "asked" not in found or not 0 <= int(found["asked"]) < len(diagnoses):
        return ""
    known = bool(found.get("known", False))
    clean = "clean image" if len(_states(found)) > 1 else "image"
    return f"diagnosis “{diagnoses[int(found['asked'])]}”, {'the true one' if known else f'as read from the {clean}'}"


def _shares(slices: Sequence[Pictures], states: Sequence[str]) -> list[Share]:
    shares = []
    for task in TASKS:
        for kind in KINDS:
            keys = [f"{task}/{kind}_inside/{state}" for state in states]
            judged = [found for found in slices if {*keys, "area"} <= found.keys()]
            if judged:
                means = [float(np.mean([float(found[key]) for found in judged])) for key in (*keys, "area")]
                by_state = dict(zip(states, means, strict=False))
                shares.append(Share(TASKS[task], KINDS[kind], len(judged), means[-1], by_state))
    return shares


def _bars(states: Sequence[str], largest: float) -> tuple[Bar, ...]:
    ends = {
        "saliency": ("0", "the slice's top half percent"),
        "activation": ("0", "the slice's largest"),
        "error": ("0", f"{largest:.2f} of the intensity scale"),
    }
    names = {**KINDS, "error": "error"}
    return tuple(
        Bar(names[kind], figures.gradient_css(MAP_COLOURS[kind]), low, high)
        for kind, (low, high) in ends.items()
        if kind != "error" or len(states) > 1
    )
