"""What a campaign of this version lets leave a site: every array, every figure with its range, every count.

In: a campaign. Out: a closed list without a pattern or wildcard in it, the same at the coordinator, which signs it, and
at the site, which works it out again by its own code, shows it, and lets nothing past that is not on it
(client/policy.py). A name of a figure is made of the campaign's own words alone (names of masks and diagnoses), so that
a name can carry nothing that was not approved.

Ranges are those of what a figure measures (a Dice lies in [0, 1]), wide where nothing bounds it (a loss). `least` is
the fewest values behind a figure; sites withhold (client/rules.py) what is of fewer. A figure over one value of a whole
test (auc, f1) counts by the accuracy beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shared.acceptance import BINS
from shared.config import CampaignConfig
from shared.weights import ENHANCER, PARTS, parts_of

DIGITS = 6
"""Significant digits of every figure that leaves."""
FEWEST = 3
"""Values behind a figure: one of fewer would be about single patients."""
FEWEST_FOR_QUANTILES = 20
"""The outer quantiles (5 and 95 %) of fewer values are single values."""
MOST_VALUES = 100_000_000
_LARGE = 1e6
_TINY = 1e-3
"""How far rounding may carry a sum of positive terms, or a cosine, out of its range."""
_SCORES = ("dice", "jaccard", "precision", "recall")
_LOOKS = {
    **dict.fromkeys(("mean", "foreground", "fine"), (-_TINY, 1 + _TINY)),
    "contrast": (0.0, 0.5 + _TINY),
    "entropy": (0.0, 5 + _TINY),
    "noise": (0.0, 4.0),
    "sharpness": (0.0, 1.5),
    "skewness": (-1e5, 1e5),
}
"""shared.images.descriptors.DESCRIPTORS, each with its range."""


@dataclass(frozen=True, slots=True)
class Figure:
    """The range of a number that may leave; of a metric, that of each value behind its sums."""

    low: float
    high: float
    least: int = 1
    """Fewest values behind it."""
    quantiles: int = 0
    """Fewest values behind its quantiles; 0: they never leave."""

    def holds(self, value: float) -> bool:
        slack = 1e-6 * max(abs(self.low), abs(self.high))
        return self.low - slack <= value <= self.high + slack


@dataclass(frozen=True, slots=True)
class Leaves:
    """All that leaves in one phase of a campaign (in a campaign without phases: in all of it)."""

    arrays: Mapping[str, tuple[int, ...]]
    """Name -> shape of each difference, float32; under secure aggregation of what the masked values stand for."""
    added: tuple[str, ...]
    """Arrays that leave a second time, as float16: what recognition added to them (strategy.promotion)."""
    images: tuple[str, ...]
    """Parts of the networks whose images are counted (shared.weights.PARTS)."""
    most_images: int
    """Most samples and images of an update."""
    training: Mapping[str, Figure]
    metrics: Mapping[str, Figure]
    """With every update."""
    closing: Mapping[str, Figure]
    """With the closing evaluation, beside `metrics`."""
    counts: tuple[str, ...]
    """Whole numbers of the site's card, once."""

    def to_json(self) -> dict[str, Any]:
        return {
            "arrays": {name: list(shape) for name, shape in self.arrays.items()},
            "added": list(self.added),
            "images": list(self.images),
            "most_images": self.most_images,
            **{group: _figures_json(getattr(self, group)) for group in ("training", "metrics", "closing")},
            "counts": list(self.counts),
        }


def _figures_json(figures: Mapping[str, Figure]) -> dict[str, dict[str, float]]:
    return {name: {**asdict(figure), "low": float(figure.low), "high": float(figure.high)}
            for name, figure in figures.items()}  # fmt: skip


def leaving(campaign: CampaignConfig) -> dict[str, Leaves]:
    """Phase ("" where there are none) -> what leaves in it. Builds the networks once for the names of their arrays."""
    phases: dict[str, CampaignConfig] = {phase: campaign.in_phase(phase) for phase in campaign.phases}
    phases = phases or {"": campaign}
    return {phase: leaving_in(one, shapes_of(one)) for phase, one in phases.items()}


def shapes_of(campaign: CampaignConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what travels in a phase, in order."""
    if campaign.generates:
        from shared.generate.networks import TRAINED, build_generator, parts_arrays

        phase = campaign.generate.phase
        assert phase != "all"
        return _shapes(parts_arrays(build_generator(campaign), TRAINED[phase]))
    from shared.networks import build_networks
    from shared.weights import to_arrays

    return _shapes(to_arrays(build_networks(campaign)))


def _shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays.items()}


def leaving_in(campaign: CampaignConfig, shapes: Mapping[str, tuple[int, ...]]) -> Leaves:
    """What leaves in a campaign of one phase, or of none, whose weights have these shapes. Does not know torch."""
    most = campaign.training.local_steps * campaign.images_per_step
    parts = parts_of(shapes)
    if campaign.generates:
        training, metrics, closing = dict(_phase_training(campaign, most)), dict(_phase_metrics(campaign)), {}
    else:
        training = dict(_training(campaign, parts, most))
        metrics, closing = dict(_evaluation(campaign)), dict(_acceptance(campaign))
    promotes = campaign.strategy.promotion != "none" and not campaign.generates
    added = tuple(name for name in shapes if promotes and name.startswith(ENHANCER))
    return Leaves(dict(shapes), added, parts, most, training, metrics, closing, counts(campaign))


def counts(campaign: CampaignConfig) -> tuple[str, ...]:
    """Names of the whole numbers on a site's card (client/dataset.py)."""
    diagnoses = (f"diagnoses.{name}" for name in campaign.data.diagnoses)
    splits = (f"{part}_patients" for part in ("train", "validation", "test"))
    return ("patients", "series", "slices", "masks", *diagnoses, *splits)


# ------------------------------------------------------------------------------------------- training

Named = Iterator[tuple[str, Figure]]


def _spent(campaign: CampaignConfig, most: int) -> Named:
    yield "learning_rate", Figure(0, campaign.training.learning_rate)
    yield "samples", Figure(0, most)
    if not campaign.privacy.on:  # how long it took tells how many patients were drawn
        yield "seconds", Figure(0, _LARGE)


def _steered() -> Named:
    yield "gate_open_rate", Figure(0, 1)
    yield "mean_cosine", Figure(-1 - _TINY, 1 + _TINY)
    yield "added_share", Figure(0, _LARGE)


def _training(campaign: CampaignConfig, parts: tuple[str, ...], most: int) -> Named:
    """client/train/local.py and client/train/observed.py."""
    yield from _spent(campaign, most)
    for part in parts:
        yield f"images.{part}", Figure(0, most)
    if campaign.privacy.on:  # losses and gates tell of images, and no noise covers them
        yield "privacy.multiplier", Figure(0, _LARGE)
        return
    if campaign.enhance.kind != "none":
        yield "loss_enhance", Figure(-_LARGE if campaign.objective.adversarial else -_TINY, _LARGE)
        yield "ascent_rate", Figure(0, 1)
    yield "loss_recognise", Figure(-_TINY, _LARGE)
    if campaign.objective.steers:
        yield from _steered()
    if campaign.objective.adversarial:
        yield "wasserstein", Figure(-_LARGE, _LARGE)
    yield from _recognition(campaign, most)


def _recognition(campaign: CampaignConfig, most: int) -> Named:
    if campaign.learn.streams:
        for loss in _stream_losses(campaign):
            yield loss, Figure(-_TINY, _LARGE)
        if campaign.learn.pseudo_labels and campaign.diagnoses:
            yield "pseudo_offered", Figure(0, most)
            yield "pseudo_accept_rate", Figure(0, 1)
            for name in campaign.diagnoses:
                yield f"pseudo_accepted.{_word(name)}", Figure(0, most)
    if campaign.selfreg.on:
        yield "loss_selfreg", Figure(-_TINY, _LARGE)
    if campaign.learn.streams or campaign.selfreg.on:
        widest = 2**16
        yield "feature_rank", Figure(0, widest)


def _stream_losses(campaign: CampaignConfig) -> Iterator[str]:
    if campaign.masks:
        yield from ("loss_masks", "loss_mask_ssl")
    if campaign.diagnoses:
        yield from ("loss_diagnosis", "loss_diagnosis_ssl")


def _phase_training(campaign: CampaignConfig, most: int) -> Named:
    """client/train/phases.py."""
    yield from _spent(campaign, most)
    yield "loss", Figure(-_LARGE, _LARGE)
    if campaign.generate.phase == "controlnet" and campaign.generate.task.weight > 0:
        yield "loss_task", Figure(-_TINY, _LARGE)
        yield from _steered()


# ------------------------------------------------------------------------------------------- evaluation


def _told(low: float, high: float) -> Figure:
    return Figure(low, high, FEWEST, FEWEST_FOR_QUANTILES)


def _evaluation(campaign: CampaignConfig) -> Named:
    """client/evaluate.py, as a campaign's rounds call it: without distances between outlines."""
    enhances, degrades = campaign.enhance.kind != "none", campaign.degrade.kind != "none"
    for state, there in (("degraded", degrades), ("enhanced", enhances)):
        if not there:
            continue
        for name, low, high in (("psnr_db", -100.0, 100.0), ("ssim", -1 - _TINY, 1 + _TINY), ("rmse", 0.0, 1e3)):
            yield f"{state}.{name}", _told(low, high)
            if campaign.data.masks:
                yield f"{state}.{name}_region", _told(low, high)
    judged = (("clean", degrades or enhances), ("degraded", degrades and enhances), ("enhanced", True))
    for state in (state for state, there in judged if there):
        if campaign.masks:
            for name in (*_SCORES, *(f"dice.{_word(mask)}" for mask in campaign.masks)):
                yield f"{state}.{name}", _told(0, 1 + _TINY)
            yield f"{state}.mask_ssim", _told(-1 - _TINY, 1 + _TINY)
        if campaign.diagnoses:
            yield f"{state}.accuracy", _told(0, 1)
            for name in ("auc", "f1", *(f"f1.{_word(diagnosis)}" for diagnosis in campaign.diagnoses)):
                yield f"{state}.{name}", Figure(0, 1)


def _acceptance(campaign: CampaignConfig) -> Named:
    """client/acceptance.py; no quantiles."""
    enhances = campaign.enhance.kind != "none"
    if enhances:
        for name in ("gain", "harm"):
            yield f"accept.{name}.psnr_db", Figure(-200, 200, FEWEST)
    if enhances and campaign.masks:
        for name in ("before", "after"):
            for key in (f"dice_{name}", *(f"dice_{name}.{_word(mask)}" for mask in campaign.masks)):
                yield f"accept.harm.{key}", Figure(0, 1 + _TINY, FEWEST)
        rows, columns = campaign.data.image_size
        for name in ("before", "after", "invented"):
            yield f"accept.false.{name}", Figure(0, rows * columns / 4, FEWEST)
        for name in ("before", "after", "erased"):
            yield f"accept.lesions.{name}", Figure(0, 1, FEWEST)
    if enhances and campaign.diagnoses:
        for name in ("before", "after"):
            yield f"accept.harm.accuracy_{name}", Figure(0, 1, FEWEST)
    if campaign.diagnoses:
        for number in range(BINS):
            yield f"accept.calibration.count{number}", Figure(1, 1, FEWEST)
            for name in ("confidence", "correct"):
                yield f"accept.calibration.{name}{number}", Figure(0, 1 + _TINY, FEWEST)
    for name, (low, high) in _LOOKS.items():
        yield f"describe.{name}", Figure(low, high, FEWEST)


def _phase_metrics(campaign: CampaignConfig) -> Named:
    """client/train/phases.py: evaluate_phase."""
    phase = campaign.generate.phase
    if phase == "autoencoder":
        yield "autoencoder.psnr_db", _told(-100, 100)
        yield "autoencoder.l1", _told(0, 1e3)
        yield "latents.square", _told(0, _LARGE)
    else:
        yield f"{phase}.loss", _told(-_TINY, _LARGE)


def _word(name: str) -> str:
    return name.replace(" ", "_")


assert set(PARTS) == {"encoder", "decoder", "diagnosis", "prior"}, "a new part is a new count that leaves"
