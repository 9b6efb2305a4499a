"""A run's pictures in; the saliency behind each diagnosis, and the recogniser's blocks before and after training, out.

The keys in a pictures npz (simulation/explained.py makes them):

    behind/<code>/<image|saliency>            the image (H, W) or (H, W, 3) float32; saliency uint8, 255 at the top of
                                              its scale, at the size at which it entered the decoder
    behind/<code>/<site|probability|bridge|diagnosis|truth>   whose image, what the diagnosis is given, whether a bridge
                                              took the saliency, the true diagnosis and mask where they are known
    features/<site|image|compared|blocks>     the image, the names of the matrices and of the maps
    features/<before|after>/similarity/<name>  (C, C) int8, 127 is a cosine of 1
    features/<before|after>/redundancy/<name>  mean |cosine| of different channels
    features/<before|after>/attention/<block>  (h, w) uint8, one scale per block
    features/gates, features/<before|after>/gates/<name>   names, and (h, w) uint8 with 255 for 1: attention U-Nets only

A diagnosis that no test image is read as has no keys. An older run has none at all, and no such section either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from server import figures
from server.explanations import MAP_COLOURS, Bar

Pictures = Mapping[str, npt.NDArray[Any]]
SIMILARITY_COLOURS, ATTENTION_COLOURS = "coolwarm", "viridis"
ENDS = {"shallow": "first encoder block", "deep": "deepest block", "last": "last decoder block"}
TIMES = ("before", "after")


@dataclass(frozen=True, slots=True)
class Behind:
    """One diagnosis: an image that is read as it, and the saliency of that; empty URIs where no image is."""

    diagnosis: str
    image: str = ""
    saliency: str = ""
    size: tuple[int, int] = (1, 1)
    contour: str = ""
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Diagnoses:
    found: tuple[Behind, ...]
    bridge: bool
    bar: Bar


@dataclass(frozen=True, slots=True)
class Square:
    """One matrix or map as a PNG, and the words below it."""

    label: str
    uri: str
    words: str = ""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A grid: a column per block, a row before training and one after it."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Square, ...]], ...]
    size: tuple[int, int]
    bar: Bar


@dataclass(frozen=True, slots=True)
class Features:
    site: str
    similarity: Blocks
    attention: Blocks
    gates: Blocks | None


def diagnoses_shown(pictures: Pictures, diagnoses: Sequence[str]) -> Diagnoses | None:
    """Every diagnosis of the campaign in order, or None for a run without them."""
    found = [_behind(pictures, code, diagnoses) for code in range(len(diagnoses))]
    if not any(behind.image for behind in found):
        return None
    bridge = any(bool(pictures.get(f"behind/{code}/bridge", False)) for code in range(len(diagnoses)))
    colours = figures.gradient_css(MAP_COLOURS["saliency"])
    return Diagnoses(tuple(found), bridge, Bar("saliency", colours, "0", "the image's top half percent"))


def _behind(pictures: Pictures, code: int, diagnoses: Sequence[str]) -> Behind:
    prefix = f"behind/{code}/"
    found = {key.removeprefix(prefix): value for key, value in pictures.items() if key.startswith(prefix)}
    if not {"image", "saliency"} <= found.keys():
        return Behind(diagnoses[code])
    truth, mask = int(found.get("diagnosis", np.int16(-1))), found.get("truth")
    words = [str(found["site"])] if "site" in found else []
    words += [f"read as it with {float(found['probability']):.2f}"] if "probability" in found else []
    words += [f"in truth {diagnoses[truth]}"] if 0 <= truth < len(diagnoses) else []
    return Behind(
        diagnoses[code],
        figures.image_uri(found["image"]),
        figures.map_uri(found["saliency"] / np.float32(255), MAP_COLOURS["saliency"]),
        (found["image"].shape[1], found["image"].shape[0]),
        "" if mask is None else figures.contour_path(mask > 0),
        tuple(words),
    )


def features_shown(pictures: Pictures) -> Features | None:
    """The blocks before and after training, or None for a run that is not about them."""
    if "features/image" not in pictures:
        return None
    image = pictures["features/image"]
    size = (image.shape[1], image.shape[0])
    colours = figures.gradient_css(ATTENTION_COLOURS)
    attention = Bar("attention", colours, "0", "the block's largest, before or after")
    gates = Bar("passes", colours, "0", "1")
    return Features(
        str(pictures.get("features/site", "")),
        _similarity(pictures),
        _maps(pictures, "attention", pictures["features/blocks"], attention, size),
        _maps(pictures, "gates", pictures["features/gates"], gates, size) if "features/gates" in pictures else None,
    )


def _similarity(pictures: Pictures) -> Blocks:
    names = [str(name) for name in pictures["features/compared"]]
    rows = []
    for when in TIMES:
        squares = []
        for name in names:
            matrix = pictures[f"features/{when}/similarity/{name}"].astype(np.float64) / 127
            mean = pictures.get(f"features/{when}/redundancy/{name}")
            words = "" if mean is None else f"mean |cosine| {float(mean):.2f}"
            uri = figures.map_uri((matrix + 1) / 2, SIMILARITY_COLOURS)
            squares.append(Square(f"{ENDS.get(name, name)}, {when} training", uri, words))
        rows.append((f"{when} training", tuple(squares)))
    bar = Bar("cosine", figures.gradient_css(SIMILARITY_COLOURS), "−1", "1")
    columns = []
    for name in names:
        channels = len(pictures[f"features/after/similarity/{name}"])
        columns.append(f"{ENDS.get(name, name)}, {channels} channels")
    return Blocks(tuple(columns), tuple(rows), (1, 1), bar)


def _maps(pictures: Pictures, kind: str, named: npt.NDArray[Any], bar: Bar, size: tuple[int, int]) -> Blocks:
    names = [str(name) for name in named]
    rows = []
    for when in TIMES:
        maps = [(name, pictures[f"features/{when}/{kind}/{name}"] / np.float32(255)) for name in names]
        squares = [
            Square(f"{name}, {when} training", figures.map_uri(shown, ATTENTION_COLOURS), "" if shown.any() else "0")
            for name, shown in maps
        ]
        rows.append((f"{when} training", tuple(squares)))
    return Blocks(tuple(names), tuple(rows), size, bar)
