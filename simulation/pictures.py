"""Scores and a model in, the arrays of a pictures file out: examples, explanations, scores, histograms.

The keys stand in server/charts.py, those of explanations in server/explanations.py.

Only a simulation writes pictures; a deployed coordinator has no code that could. Examples are chosen by rule: of the
test images with an outline (of all, where no image has one) the median one by gain in PSNR, and the worst one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from client.dataset import SiteData, Slices
from client.evaluate import predict
from client.explain import Maps, explain
from shared.checkpoint import write_atomically
from shared.config import CampaignConfig, MachineConfig
from shared.networks import Networks
from simulation.rows import Judged, Values

Pictures = dict[str, npt.NDArray[Any]]
BINS = 48
BACKGROUND = 0.01
"""Pixels up to this value are air or padding, and left out of the histograms."""
SALIENCY_SCALE = 0.995
"""The quantile of a slice's saliency that is shown brightest: a gradient has single pixels far above all others."""
_SPREAD = ("psnr_db", "ssim", "dice")


def examples(
    networks: Networks, datas: Mapping[str, SiteData], judged: Judged, campaign: CampaignConfig, machine: MachineConfig
) -> Pictures:
    """The median and the worst test image of each site, before and after, with truth, predictions and figures."""
    pictures: Pictures = {}
    for site, data in datas.items():
        chosen = choose(judged.by_test[site], data.test)
        shown = predict(networks, data.test, list(chosen.values()), campaign, machine)
        for place, (which, index) in enumerate(chosen.items()):
            prefix = f"example/{site}/{which}/"
            for state in ("clean", "degraded", "enhanced"):
                pictures[f"{prefix}{state}"] = _image(getattr(shown, f"{state}_NCHW")[place])
            if shown.has_mask_N[place]:
                pictures[f"{prefix}truth"] = shown.mask_NHW[place].numpy()
            for state in ("degraded", "enhanced") if shown.found_NHW else ():
                pictures[f"{prefix}{state}_mask"] = shown.found_NHW[state][place].numpy()
            for metric in ("psnr_db", "dice"):
                for state in ("degraded", "enhanced"):
                    value = judged.by_test[site].get(f"{state}.{metric}")
                    if value is not None and np.isfinite(value[index]):
                        pictures[f"{prefix}{metric}_{state}"] = np.array(value[index], dtype=np.float32)
    return pictures


def explanations(
    networks: Networks, datas: Mapping[str, SiteData], judged: Judged, campaign: CampaignConfig, machine: MachineConfig
) -> Pictures:
    """Where the recogniser looks in the same images, in a byte per pixel (errors: float16); shares that have no value
    are left out."""
    pictures: Pictures = {}
    for site, data in datas.items():
        chosen = choose(judged.by_test[site], data.test)
        found = explain(networks, data.test, list(chosen.values()), campaign, machine)
        for place, (which, index) in enumerate(chosen.items()):
            prefix = f"explain/{site}/{which}/"
            for state, error_NHW in found.error_NHW.items():
                pictures[f"{prefix}error/{state}"] = error_NHW[place].astype(np.float16)
            for task, maps in found.maps.items():
                pictures |= {f"{prefix}{task}/{key}": value for key, value in _task_arrays(maps, place).items()}
            if np.isfinite(found.area_N[place]):
                pictures[f"{prefix}area"] = found.area_N[place]
            if found.asked_N[place] >= 0:
                pictures[f"{prefix}asked"] = np.array(found.asked_N[place], dtype=np.int16)
                pictures[f"{prefix}known"] = np.array(bool(data.test.diagnosis_N[index] >= 0))
    return pictures


def _task_arrays(maps: Mapping[str, Maps], place: int) -> Pictures:
    """One slice's maps, each kind on one scale over the slice's states."""
    arrays: Pictures = {}
    largest = float(np.quantile([of_state.saliency_NHW[place] for of_state in maps.values()], SALIENCY_SCALE))
    for state, of_state in maps.items():
        arrays[f"saliency/{state}"] = _bytes(of_state.saliency_NHW[place] / (largest or 1.0))
        arrays[f"activation/{state}"] = _bytes(of_state.activation_NHW[place])
        shares = {"saliency": of_state.saliency_inside_N[place], "activation": of_state.activation_inside_N[place]}
        arrays |= {f"{kind}_inside/{state}": share for kind, share in shares.items() if np.isfinite(share)}
    return arrays


def _bytes(map_HW: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.round(np.clip(map_HW, 0, 1) * 255).astype(np.uint8)


def choose(values: Values, slices: Slices) -> dict[str, int]:
    """Index of the median and of the worst slice by gain in PSNR, among the slices with an outline if there are any."""
    gain_N = values["enhanced.psnr_db"] - values["degraded.psnr_db"]
    outlined_N = (slices.mask_NHW > 0).flatten(1).any(1).numpy()
    candidates = np.flatnonzero(outlined_N & np.isfinite(gain_N))
    if not candidates.size:
        candidates = np.arange(len(slices))
    ranked = candidates[np.argsort(np.nan_to_num(gain_N[candidates], nan=np.inf), kind="stable")]
    return {"median": int(ranked[len(ranked) // 2]), "worst": int(ranked[0])}


def _image(image_CHW: Tensor) -> npt.NDArray[np.float32]:
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
