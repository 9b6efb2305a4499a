"""A sheet in, tables out: augmentations (or generators) down, metrics across, a block per data set and label setting.

Beside a figure stands this row minus the row that it is compared with, over the seeds that both have: no augmentation,
or what the table asks about: pooled training of the generator, all conditions, the published sampler, no task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from server.generation.promises import SINGLE
from server.generation.rows import Model, Sheet
from server.generation.wording import label, ordered
from server.recognition.rows import Place
from server.recognition.wording import place_label, whole_label
from server.study.statistics import mean, paired
from server.study.tables import Block, Line, Score
from server.study.wording import SHOWN, heading

MERGED = {
    "generators": ("generators", "generators-pooled", "generators-local"),
    "scarce": ("scarce", "scarce-local", "scarce-federated"),
    "memorisation": ("memorisation", "memorisation-overfitted"),
}
"""Tables of the plan that answer one question together."""
OVERFITTED = "memorisation-overfitted"
TASKS = ("dice", "accuracy")
MASK_METRICS = ("dice", "jaccard", "hd95_mm", "hd95_px", "missed")
DIAGNOSIS_METRICS = ("accuracy", "f1", "auc")
_QUALITY = ("mask_dice", "real_dice", "mask_share", "feature_distance", "real_distance")
_LOSSES = ("autoencoder_psnr_db", "denoiser_loss", "controlnet_loss")
_GUARDS = ("memorised_share", "rejected_share", "refused")
_GENERATOR: dict[str, tuple[str, ...]] = {
    "generators": (*_LOSSES, *_QUALITY, *_GUARDS[:2]),
    "conditions": ("controlnet_loss", *_QUALITY),
    "steps": (*_QUALITY, "images_per_s"),
    "task": ("controlnet_loss", *_QUALITY),
    "memorisation": (*_GUARDS[::2], "nearest_ratio", "membership_auc", "mask_dice", "feature_distance"),
}
"""By the first words of a table's name: the figures of generators that it shows."""
_NEUTRAL = ("real_dice", "real_distance", "rejected_share", "refused", "images_per_s")
"""No difference of these says anything, or none that a page should colour."""


def blocks_of(sheet: Sheet, name: str) -> list[Block]:
    """The table `name` of the study; empty where nothing was tested."""
    if name.startswith("scarce"):
        return list(_scarce(sheet, name))
    metrics = next((kinds for start, kinds in _GENERATOR.items() if name.startswith(start)), None)
    groups = [("", metrics)] if metrics else [("masks", MASK_METRICS), ("diagnoses", DIAGNOSIS_METRICS)]
    groups = [(title, kinds) for title, kinds in groups if _there(sheet, sheet.conditions, kinds)]
    return list(_by_place(sheet, name, groups, sheet.conditions))


def details_of(sheet: Sheet, name: str) -> list[Block]:
    """Each class."""
    groups = [(SHOWN[metric].heading, sheet.parts(metric)) for metric in ("dice", "mask_dice", "f1")]
    groups = [(title, parts) for title, parts in groups if parts]
    return [] if name.startswith("scarce") else list(_by_place(sheet, name, groups, sheet.conditions))


def _scarce(sheet: Sheet, name: str) -> Iterator[Block]:
    """The scarce class beside the other figures: first on all hospitals' tests, then on each one's own."""
    metrics = [*sheet.parts("f1"), *DIAGNOSIS_METRICS, "dice", *sheet.parts("dice")]
    for place in sheet.places:
        where = "tests of all hospitals" if place.test_site == "all" else f"tests of {place.test_site}"
        for block in _by_place(sheet, name, [("", metrics)], [place]):
            yield replace(block, title=where)


def _there(sheet: Sheet, places: Sequence[Place], metrics: Sequence[str]) -> list[str]:
    return [
        key for key in metrics if any(sheet.values(model, place, key) for model in sheet.models for place in places)
    ]


def _by_place(
    sheet: Sheet, name: str, groups: Sequence[tuple[str, Sequence[str]]], places: Sequence[Place]
) -> Iterator[Block]:
    """A block per place and group of metrics."""
    models = ordered(sheet.models)
    for place in places:
        for group, metrics in groups:
            there = _there(sheet, [place], metrics)
            here = [model for model in models if any(sheet.values(model, place, key) for key in there)]
            lines = tuple(_line(sheet, model, place, there, name, here) for model in here)
            where = place_label(place, places) if len(places) > 1 else ""
            title = ": ".join(filter(None, (where, group if len(groups) > 1 else "")))
            if lines:
                yield Block(title, tuple(map(heading, there)), lines)


def _line(sheet: Sheet, model: Model, place: Place, metrics: Sequence[str], name: str, among: Sequence[Model]) -> Line:
    compared = reference_in(among, name)
    scores = tuple(_score(sheet, model, place, key, compared) for key in metrics)
    return Line(label(model, among), scores, ours=model == compared)


def _score(sheet: Sheet, model: Model, place: Place, key: str, reference: Model | None) -> Score | None:
    values = sheet.values(model, place, key)
    if not values:
        return None
    if reference is None or reference == model or key in _NEUTRAL:
        return Score(key, mean(values), len(values))
    return Score(key, mean(values), len(values), paired(values, sheet.values(reference, place, key)))


def reference_in(models: Sequence[Model], name: str) -> Model | None:
    """What the rows of the table `name` are compared with; None where there is no such row, or nothing to compare."""
    if name.startswith("memorisation"):
        return None
    if name.startswith("generators"):
        return next((each for each in models if each.setting == "pooled"), None)
    if name.startswith("steps"):
        return next((each for each in models if each.sampler == "ddim"), None)
    if name.startswith("task"):
        return next((each for each in models if not each.task_weight), None)
    if name.startswith("conditions"):
        return next(iter(models), None)
    return next((each for each in ordered(models) if each.method == "none"), None)


def best_single(sheet: Sheet, place: Place, metric: str, setting: str) -> Model | None:
    """The classical augmentation with the highest mean; of a recogniser in this setting."""
    found = [model for model in ordered(sheet.models) if model.method in SINGLE and model.setting == setting]
    found = [model for model in found if model.site == "all" and sheet.values(model, place, metric)]
    return max(found, key=lambda model: mean(sheet.values(model, place, metric)), default=None)


def where_of(place: Place, model: Model) -> str:
    """`mni, 10 masks, 10 % diagnoses, federated`"""
    return f"{whole_label(place)}, {model.setting}"
