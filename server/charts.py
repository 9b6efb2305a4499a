"""A run's record and its pictures in, the page's charts and picture strips out (see server/figures.py for the drawing).

What is drawn from which file of the run folder stands in server/findings.py. The keys of a pictures npz:

    example/<site>/<median|worst>/<state>                            (H, W) or (H, W, 3) float32, 0 to 1
    example/<site>/<median|worst>/<truth|<state>_mask>               (H, W) uint8, campaign codes, if there are masks
    example/<site>/<median|worst>/<psnr_db|dice|hd95_mm|hd95_px>_<state>   scalar
    example/<site>/<median|worst>/diagnosis                          code of the true one, if it is known
    example/<site>/<median|worst>/<said|probability|true_probability>_<state>   what is read, what it and the true one
                                                                     are given, if there are diagnoses
    example/<site>/<median|worst>/by                                 what the rule that chose it goes by, in words
    scores/<setting>/<site>/<test_site>/<metric>                     (images,) float32
    histogram/edges, histogram/<site>                                bin edges and densities
    explain/...                                                      see server/explanations.py
    behind/..., features/...                                         see server/looks.py

A state is degraded, enhanced or clean; a recogniser alone has degraded and clean, or only clean.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from server import figures
from server.figures import Chart
from server.findings import Run
from server.wording import METRICS
from shared.errors import DataError

Pictures = Mapping[str, npt.NDArray[Any]]
MASK_COLOURS = ("#ffb000", "#4fd1ff", "#ff6fae", "#8be36b", "#c59bff", "#ff8a5c")
"""Contours of predictions, one colour per class; chosen to stand out on grey anatomy."""
EXAMPLE_FIGURES = ("psnr_db", "dice", "hd95_mm", "hd95_px")
"""Below an example, where it has them."""

_CURVES = (
    ("training", "loss_enhance", "enhancement loss, training"),
    ("training", "loss_recognise", "recognition loss, training"),
    ("evaluation", "enhanced.psnr_db", "PSNR of enhanced test images (dB)"),
    ("evaluation", "enhanced.dice", "Dice on enhanced test images"),
    ("evaluation", "enhanced.accuracy", "accuracy over test patients, on enhanced images"),
)
_SPREAD = ("psnr_db", "ssim", "dice")
"""What has a spread over images; accuracy is right or wrong, and stands as a share of patients in the tables."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One image of a strip: its PNG, contours over it as (path data, colour, is it the truth), the words below."""

    title: str
    uri: str
    size: tuple[int, int]
    contours: tuple[tuple[str, str, bool], ...] = ()
    figures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Strip:
    site: str
    which: str
    panels: tuple[Panel, ...]
    largest_error: float | None
    """End of the error maps' scale; None for a campaign without an enhancer, which has no such maps."""
    by: str
    """What the image was chosen by."""

    @property
    def outlined(self) -> bool:
        """Some outline is drawn."""
        return any(panel.contours for panel in self.panels)

    @property
    def measured(self) -> bool:
        """A distance between outlines stands below an image."""
        return any(words.startswith("HD95") for panel in self.panels for words in panel.figures)

    @property
    def predicted(self) -> bool:
        """Something that was predicted is drawn."""
        return any(not is_truth for panel in self.panels for _, _, is_truth in panel.contours)


def load_pictures(path: Path) -> Pictures:
    """All arrays of a pictures npz; DataError if it cannot be read without pickle."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError):
        raise DataError(
            f"pictures/{path.name} cannot be read; delete it to write the report without pictures"
        ) from None


def curves(run: Run, sites: Sequence[str]) -> list[Chart]:
    """One chart per measured quantity, one line per site."""
    charts = []
    evaluated = [site for record in run.rounds for site in record.get("evaluation", {}).values()]
    enhanced = not evaluated or any("enhanced.psnr_db" in site for site in evaluated)
    for part, key, title in _CURVES:
        title = title if enhanced else title.replace(", on enhanced images", "").replace("enhanced ", "")
        lines = []
        for index, site in enumerate(sites):
            xs, ys = _series(run.rounds, part, key, site)
            if xs:
                lines.append((site, figures.site_colour(index), xs, ys))
        if lines:
            drawn = figures.line_chart(lines, label=f"{title}, {run.method}", x_label="round")
            nought = [site for site, _, _, ys in lines if not any(ys)]
            charts.append(Chart(title, drawn, _of_nought(nought) if key == "loss_recognise" else ""))
    return charts


def _of_nought(sites: Sequence[str]) -> str:
    """Why a site's recognition loss is 0 in every round: not because it recognises so well."""
    if not sites:
        return ""
    return (
        f"0 in every round at {', '.join(sites)}: no training image there has a label, or a pseudo-label, that a loss "
        "could be taken of; it does not mean that everything is recognised."
    )


def _series(rounds: Sequence[Mapping[str, Any]], part: str, key: str, site: str) -> tuple[list[int], list[float]]:
    """An evaluation judges the weights that came in with the round: it stands one round earlier on the axis."""
    xs: list[int] = []
    ys: list[float] = []
    for record in rounds:
        value = record.get(part, {}).get(site, {}).get(key)
        if isinstance(value, Mapping):
            value = value["total"] / value["count"] if value.get("count") else None
        if value is not None and np.isfinite(value):
            xs.append(record["round"] - (part == "evaluation"))
            ys.append(float(value))
    return xs, ys


def spreads(run: Run, pictures: Pictures | None, sites: Sequence[str]) -> list[Chart]:
    """Boxes per site and setting: from scores per image in simulation, from the sites' quantiles in deployment."""
    charts = []
    for metric in _SPREAD:
        boxes = _measured_boxes(pictures, metric, sites) if pictures else _reported_boxes(run, metric, sites)
        if any(len(set(box.quantiles)) > 2 for box in boxes):  # all alike: no spread to show
            shown = METRICS[metric]
            label = f"{shown.heading} per image" + (f" ({shown.unit})" if shown.unit else "")
            charts.append(Chart(label, figures.spread_chart(boxes, label=f"{label}, {run.method}", x_label=label)))
    return charts


def _measured_boxes(pictures: Pictures, metric: str, sites: Sequence[str]) -> list[figures.Box]:
    boxes = []
    for site in sites:
        for setting in ("degraded", "local", "pooled", "federated"):
            model = site if setting == "local" else "all"
            values = pictures.get(f"scores/{setting}/{model}/{site}/{metric}")
            if values is not None and np.isfinite(values).any():
                boxes.append(figures.box_of(site, setting, figures.SETTING_COLOURS[setting], values))
    return boxes


def _reported_boxes(run: Run, metric: str, sites: Sequence[str]) -> list[figures.Box]:
    judged = [record["evaluation"] for record in run.rounds if record.get("evaluation")]
    boxes = []
    for site in sites if judged else ():
        for state, setting in (("degraded", "degraded"), ("enhanced", "federated")):
            quantiles = judged[-1].get(site, {}).get(f"{state}.{metric}", {}).get("quantiles", ())
            if len(quantiles) == 5:
                boxes.append(figures.Box(site, setting, figures.SETTING_COLOURS[setting], tuple(quantiles)))
    return boxes


def histogram(pictures: Pictures, sites: Sequence[str]) -> Chart | None:
    """Intensities of the sites' clean training images over shared bins."""
    densities = {site: pictures[f"histogram/{site}"] for site in sites if f"histogram/{site}" in pictures}
    if not densities or "histogram/edges" not in pictures:
        return None
    label = "share of pixels by intensity"
    return Chart(label, figures.histogram_chart(pictures["histogram/edges"], densities, label=label))


def strips(
    pictures: Pictures, sites: Sequence[str], masks: Sequence[str], diagnoses: Sequence[str] = ()
) -> list[Strip]:
    """Each site's examples: clean, degraded, enhanced and the two error maps, both errors on one scale; of a
    recogniser alone the image, the truth and what was recognised."""
    found = []
    for site in sites:
        for which in ("median", "worst"):
            prefix = f"example/{site}/{which}/"
            example = {key.removeprefix(prefix): value for key, value in pictures.items() if key.startswith(prefix)}
            if "clean" in example:
                found.append(_strip(site, which, example, len(masks), diagnoses))
    return found


def _strip(site: str, which: str, example: Pictures, num_masks: int, diagnoses: Sequence[str]) -> Strip:
    by = str(example.get("by", "gain in PSNR"))
    if "degraded" not in example:
        return Strip(site, which, _alone(example, num_masks, diagnoses), None, by)
    clean, size = example["clean"], _size(example["clean"])
    truth = _contours(example.get("truth"), num_masks, is_truth=True)
    panels = [Panel("clean", figures.image_uri(clean), size, truth, _truth_words(example, diagnoses))]
    states = [state for state in ("degraded", "enhanced") if state in example]
    for state in states:
        drawn = (*truth, *_contours(example.get(f"{state}_mask"), num_masks, is_truth=False))
        words = _figures(example, state, diagnoses)
        panels.append(Panel(state, figures.image_uri(example[state]), size, drawn, words))
    if "enhanced" not in states:
        return Strip(site, which, tuple(panels), None, by)
    errors = {state: _error(example[state], clean) for state in states}
    largest = float(np.quantile(errors["degraded"], 0.995))
    for state, title in (("degraded", "error before"), ("enhanced", "error after")):
        panels.append(Panel(title, figures.error_uri(errors[state], largest), size))
    return Strip(site, which, tuple(panels), largest, by)


def _alone(example: Pictures, num_masks: int, diagnoses: Sequence[str]) -> tuple[Panel, ...]:
    """The one image that there is: bare, with the truth, and with both; without outlines, one panel has all words."""
    uri, size = figures.image_uri(example["clean"]), _size(example["clean"])
    truth = _contours(example.get("truth"), num_masks, is_truth=True)
    found = _contours(example.get("clean_mask"), num_masks, is_truth=False)
    true_words, found_words = _truth_words(example, diagnoses), _figures(example, "clean", diagnoses)
    segmented = "clean_mask" in example
    if not truth and not segmented:
        return (Panel("image", uri, size, (), (*true_words, *found_words)),)
    bare, with_truth = Panel("image", uri, size), Panel("truth", uri, size, truth, true_words)
    if not segmented:
        return bare, replace(with_truth, figures=(*true_words, *found_words))
    recognised = Panel("recognised", uri, size, (*truth, *found), found_words)
    return (bare, with_truth, recognised) if truth else (replace(bare, figures=true_words), recognised)


def _size(image: npt.NDArray[Any]) -> tuple[int, int]:
    return image.shape[1], image.shape[0]


def _error(image: npt.NDArray[Any], clean: npt.NDArray[Any]) -> npt.NDArray[Any]:
    error: npt.NDArray[np.float64] = np.abs(image.astype(np.float64) - clean)
    return np.asarray(error.mean(axis=-1)) if error.ndim == 3 else error


def _contours(mask: npt.NDArray[Any] | None, num_masks: int, *, is_truth: bool) -> tuple[tuple[str, str, bool], ...]:
    if mask is None:
        return ()
    codes = [code for code in range(1, num_masks + 1) if (mask == code).any()]
    colours = {code: "#ffffff" if is_truth else MASK_COLOURS[(code - 1) % len(MASK_COLOURS)] for code in codes}
    return tuple((figures.contour_path(mask == code), colours[code], is_truth) for code in codes)


def _figures(example: Pictures, state: str, diagnoses: Sequence[str]) -> tuple[str, ...]:
    words = []
    for metric in EXAMPLE_FIGURES:
        value = example.get(f"{metric}_{state}")
        if value is not None and np.isfinite(value):
            shown = METRICS[metric]
            words.append(f"{shown.heading} {float(value):.{shown.decimals}f} {shown.unit}".rstrip())
    said = _named(example.get(f"said_{state}"), diagnoses)
    if said:
        words.append(f"read as {said}, {_probability(example, f'probability_{state}')}")
    truth = _named(example.get("diagnosis"), diagnoses)
    if said and truth and truth != said:
        words.append(f"{truth} given {_probability(example, f'true_probability_{state}')}")
    return tuple(words)


def _truth_words(example: Pictures, diagnoses: Sequence[str]) -> tuple[str, ...]:
    truth = _named(example.get("diagnosis"), diagnoses)
    return (f"in truth {truth}",) if truth else ()


def _named(code: npt.NDArray[Any] | None, names: Sequence[str]) -> str:
    return names[int(code)] if code is not None and 0 <= int(code) < len(names) else ""


def _probability(example: Pictures, key: str) -> str:
    return f"{float(example.get(key, np.float32(np.nan))):.2f}"
