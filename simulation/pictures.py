"""Scores and a model in, the arrays of a pictures file out: examples, scores, histograms.

The keys stand in server/charts.py; those of what explains the recogniser are made in simulation/explained.py.

Only a simulation writes pictures; a deployed coordinator has no code that could. Examples are chosen by rule: of the
test images with an outline (of all, where no image has one) the median one and the worst one by gain in PSNR; without
an enhancer by Dice, and where that is not defined either by the probability of the true diagnosis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from client.dataset import SiteData, Slices
from client.evaluate import evaluate
from client.reading import Reading, dice_of, judged, read, taken, true_probability
from server.charts import EXAMPLE_FIGURES
from shared.checkpoint import write_atomically
from shared.config import CampaignConfig, MachineConfig
from shared.networks import Networks
from simulation.rows import Judged, Values

Pictures = dict[str, npt.NDArray[Any]]
BINS = 48
BACKGROUND = 0.01
"""Pixels up to this value are air or padding, and left out of the histograms."""
GAIN, DICE, PROBABILITY = "gain in PSNR", "Dice", "probability of the true diagnosis"
_SPREAD = ("psnr_db", "ssim", "dice")


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """A site's examples, and what is read in all of its test slices."""

    by: str
    indices: Mapping[str, int]
    """median, worst -> index of the test slice."""
    readings: Mapping[str, Reading]


def chosen_of(
    networks: Networks, datas: Mapping[str, SiteData], judged_by: Judged, campaign: CampaignConfig,
    machine: MachineConfig,
) -> dict[str, Chosen]:  # fmt: skip
    """Each site's examples by rule; `judged_by` holds the scores of these networks."""
    chosen = {}
    for site, data in datas.items():
        readings = read(networks, data.test, campaign, machine)
        by, score_N = score(judged_by.by_test[site], readings[judged(campaign)], data.test, campaign)
        chosen[site] = Chosen(by, choose(score_N, data.test), readings)
    return chosen


def score(
    values: Values, read_as: Reading, slices: Slices, campaign: CampaignConfig
) -> tuple[str, npt.NDArray[np.float64]]:
    """What examples are chosen by, in words and of every slice; NaN where it is not defined."""
    if campaign.enhance.kind != "none" and "enhanced.psnr_db" in values:
        with np.errstate(invalid="ignore"):  # two images without any error: inf - inf
            gain_N = values["enhanced.psnr_db"] - values["degraded.psnr_db"]
        if np.isfinite(gain_N).any():
            return GAIN, gain_N
    return recognised_by(read_as, slices, campaign)


def recognised_by(read_as: Reading, slices: Slices, campaign: CampaignConfig) -> tuple[str, npt.NDArray[np.float64]]:
    """The score of a recogniser alone; of slices without any label, one that is nowhere defined."""
    dice_N = dice_of(read_as, slices, campaign)
    if np.isfinite(dice_N).any():
        return DICE, dice_N
    return PROBABILITY, true_probability(read_as, slices)


def choose(score_N: npt.NDArray[np.float64], slices: Slices) -> dict[str, int]:
    """Index of the median and of the worst slice, among the slices with an outline if there are any with a score."""
    outlined_N = (slices.mask_NHW > 0).flatten(1).any(1).numpy()
    candidates = np.flatnonzero(outlined_N & np.isfinite(score_N))
    if not candidates.size:
        candidates = np.arange(len(slices))
    ranked = candidates[np.argsort(np.nan_to_num(score_N[candidates], nan=np.inf), kind="stable")]
    ranked = ranked[np.isfinite(score_N[ranked])] if np.isfinite(score_N[ranked]).any() else ranked
    return {"median": int(ranked[len(ranked) // 2]), "worst": int(ranked[0])}


def examples(
    networks: Networks, datas: Mapping[str, SiteData], chosen: Mapping[str, Chosen], campaign: CampaignConfig,
    machine: MachineConfig,
) -> Pictures:  # fmt: skip
    """The examples in every state, with truth, predictions, diagnoses and figures."""
    pictures: Pictures = {}
    for site, of_site in chosen.items():
        slices = datas[site].test
        shown = taken(slices, list(of_site.indices.values()))
        values = evaluate(networks, shown, campaign, machine, surfaces=True).values
        for place, (which, index) in enumerate(of_site.indices.items()):
            truth = int(slices.diagnosis_N[index])
            arrays: Pictures = {"by": np.array(of_site.by)}
            if slices.has_mask_N[index]:
                arrays["truth"] = slices.mask_NHW[index].numpy()
            if campaign.diagnoses and truth >= 0:
                arrays["diagnosis"] = np.array(truth, dtype=np.int16)
            for state, reading in of_site.readings.items():
                arrays |= _state_arrays(reading, state, index, truth) | _figures(values, state, place, campaign)
            pictures |= {f"example/{site}/{which}/{key}": value for key, value in arrays.items()}
    return pictures


def _state_arrays(reading: Reading, state: str, index: int, truth: int) -> Pictures:
    arrays: Pictures = {state: pixels(reading.image_NCHW[index])}
    if reading.found_NHW is not None:
        arrays[f"{state}_mask"] = reading.found_NHW[index].numpy()
    if reading.probabilities_NK is not None:
        probabilities_K = reading.probabilities_NK[index]
        arrays[f"said_{state}"] = np.array(int(probabilities_K.argmax()), dtype=np.int16)
        arrays[f"probability_{state}"] = np.array(probabilities_K.max(), dtype=np.float32)
        if truth >= 0:
            arrays[f"true_probability_{state}"] = np.array(probabilities_K[truth], dtype=np.float32)
    return arrays


def _figures(values: Values, state: str, place: int, campaign: CampaignConfig) -> Pictures:
    # `evaluate` calls the judged image enhanced, with an enhancer and without.
    measured = "enhanced" if state == judged(campaign) else state
    of_metrics = {metric: values.get(f"{measured}.{metric}") for metric in EXAMPLE_FIGURES}
    return {
        f"{metric}_{state}": np.array(value_N[place], dtype=np.float32)
        for metric, value_N in of_metrics.items()
        if value_N is not None and np.isfinite(value_N[place])
    }


def pixels(image_CHW: Tensor) -> npt.NDArray[np.float32]:
    """(H, W) for one channel, (H, W, 3) for three."""
    image: npt.NDArray[np.float32] = image_CHW.permute(1, 2, 0).float().numpy()
    return image[..., 0] if image.shape[-1] == 1 else image


def score_arrays(models: list[Judged]) -> Pictures:
    """Scores per image of every model on every test; `degraded` ones stand once, with the federated model."""
    pictures: Pictures = {}
    for model in models:
        for test_site, values in model.by_test.items():
            for metric in _SPREAD:
                if f"enhanced.{metric}" in values:
                    key = f"scores/{model.setting}/{model.site}/{test_site}/{metric}"
                    pictures[key] = values[f"enhanced.{metric}"].astype(np.float32)
                if model.setting == "federated" and f"degraded.{metric}" in values:
                    pictures[f"scores/degraded/all/{test_site}/{metric}"] = values[f"degraded.{metric}"].astype(
                        np.float32
                    )
    return pictures


def histograms(datas: Mapping[str, SiteData]) -> Pictures:
    """Share of foreground pixels per intensity bin, over each site's clean training slices."""
    edges = np.linspace(0, 1, BINS + 1)
    pictures: Pictures = {"histogram/edges": edges}
    for site, data in datas.items():
        pixels = data.train.clean_NCHW.numpy()
        counts, _ = np.histogram(np.clip(pixels[pixels > BACKGROUND], 0, 1), bins=edges)
        pictures[f"histogram/{site}"] = (counts / max(counts.sum(), 1)).astype(np.float32)
    return pictures


def write_pictures(path: Path, pictures: Pictures) -> None:
    """One compressed npz without pickle, old or new."""
    import io

    assert all(array.dtype != object for array in pictures.values())
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **pictures)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
