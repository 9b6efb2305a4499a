"""A model and its examples in, the arrays that explain its recogniser out; the keys stand in server/explanations.py
and server/looks.py.

    explanations   where it looks in the examples (client/explain.py)
    diagnoses      the saliency behind each diagnosis, on one test image that is read as it
    features       how alike its channels are and where its blocks look, before and after training (client/features.py)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor

from client.dataset import SiteData, merge_slices
from client.explain import Behind, Maps, behind_diagnoses, explain
from client.features import Features, features_of, redundancy
from client.reading import joined, judged
from shared.config import CampaignConfig, MachineConfig
from shared.networks import Networks, build_networks
from simulation.pictures import Chosen, Pictures, pixels

SALIENCY_SCALE = 0.995
"""The quantile of a slice's saliency that is shown brightest: a gradient has single pixels far above all others."""


def explanations(
    networks: Networks, datas: Mapping[str, SiteData], chosen: Mapping[str, Chosen], campaign: CampaignConfig,
    machine: MachineConfig,
) -> Pictures:  # fmt: skip
    """Where the recogniser looks in the examples, in a byte per pixel (errors: float16); shares that have no value
    are left out."""
    pictures: Pictures = {}
    for site, of_site in chosen.items():
        slices = datas[site].test
        found = explain(networks, slices, list(of_site.indices.values()), campaign, machine)
        for place, (which, index) in enumerate(of_site.indices.items()):
            prefix = f"explain/{site}/{which}/"
            for state, error_NHW in found.error_NHW.items():
                pictures[f"{prefix}error/{state}"] = error_NHW[place].astype(np.float16)
            for task, maps in found.maps.items():
                pictures |= {f"{prefix}{task}/{key}": value for key, value in _task_arrays(maps, place).items()}
            if np.isfinite(found.area_N[place]):
                pictures[f"{prefix}area"] = found.area_N[place]
            if found.asked_N[place] >= 0:
                pictures[f"{prefix}asked"] = np.array(found.asked_N[place], dtype=np.int16)
                pictures[f"{prefix}known"] = np.array(bool(slices.diagnosis_N[index] >= 0))
    return pictures


def _task_arrays(maps: Mapping[str, Maps], place: int) -> Pictures:
    """One slice's maps, each kind on one scale over the slice's states."""
    arrays: Pictures = {}
    largest = float(np.quantile([of_state.saliency_NHW[place] for of_state in maps.values()], SALIENCY_SCALE))
    for state, of_state in maps.items():
        arrays[f"saliency/{state}"] = levels(of_state.saliency_NHW[place] / (largest or 1.0))
        arrays[f"activation/{state}"] = levels(of_state.activation_NHW[place])
        shares = {"saliency": of_state.saliency_inside_N[place], "activation": of_state.activation_inside_N[place]}
        arrays |= {f"{kind}_inside/{state}": share for kind, share in shares.items() if np.isfinite(share)}
    return arrays


def diagnoses(
    networks: Networks, datas: Mapping[str, SiteData], chosen: Mapping[str, Chosen], campaign: CampaignConfig,
    machine: MachineConfig,
) -> Pictures:  # fmt: skip
    """For each diagnosis, of all sites' test images that are read as it, the one of median probability."""
    if not campaign.diagnoses:
        return {}
    slices = merge_slices([datas[site].test for site in chosen])
    sites = [site for site in chosen for _ in range(len(datas[site].test))]
    read_as = joined([of_site.readings[judged(campaign)] for of_site in chosen.values()])
    pictures: Pictures = {}
    for behind in behind_diagnoses(networks, slices, read_as, campaign, machine):
        prefix, index = f"behind/{behind.code}/", behind.index
        pictures[f"{prefix}site"] = np.array(sites[index])
        pictures[f"{prefix}image"] = pixels(read_as.image_NCHW[index])
        pictures[f"{prefix}saliency"] = brightest(behind)
        pictures[f"{prefix}probability"] = np.array(behind.probability, dtype=np.float32)
        pictures[f"{prefix}bridge"] = np.array(behind.bridge)
        if slices.diagnosis_N[index] >= 0:
            pictures[f"{prefix}diagnosis"] = np.array(int(slices.diagnosis_N[index]), dtype=np.int16)
        if slices.has_mask_N[index]:
            pictures[f"{prefix}truth"] = slices.mask_NHW[index].numpy()
    return pictures


def brightest(behind: Behind) -> npt.NDArray[np.uint8]:
    """The saliency in a byte per pixel, on its own scale."""
    largest = float(np.quantile(behind.saliency_HW, SALIENCY_SCALE))
    return levels(behind.saliency_HW / (largest or 1.0))


def shows_features(campaign: CampaignConfig) -> bool:
    """Campaigns that are about what the recogniser learns, and not about images."""
    return campaign.learn.streams or campaign.selfreg.on


def features(
    networks: Networks, chosen: Mapping[str, Chosen], campaign: CampaignConfig, machine: MachineConfig
) -> Pictures:
    """Of the first site's median example: similarity in -127 to 127, attention in a byte, on one scale per block; gates
    in a byte, 255 where all of the skip passes."""
    if not shows_features(campaign) or not chosen:
        return {}
    site, of_site = next(iter(chosen.items()))
    image_CHW = of_site.readings[judged(campaign)].image_NCHW[of_site.indices["median"]]
    found = before_and_after(networks, image_CHW, campaign, machine)
    after = found["after"]
    pictures: Pictures = {
        "features/site": np.array(site),
        "features/image": pixels(image_CHW),
        "features/compared": np.array(list(after.similarity)),
        "features/blocks": np.array(list(after.attention)),
    }
    if after.gates:
        pictures["features/gates"] = np.array(list(after.gates))
    for when, of_time in found.items():
        for name, similarity in of_time.similarity.items():
            pictures[f"features/{when}/similarity/{name}"] = np.round(similarity * 127).astype(np.int8)
            if np.isfinite(redundancy(similarity)):
                pictures[f"features/{when}/redundancy/{name}"] = np.array(redundancy(similarity), dtype=np.float32)
        for name in after.attention:
            pictures[f"features/{when}/attention/{name}"] = levels(attention_shown(found, when, name))
        for name, psi_HW in of_time.gates.items():
            pictures[f"features/{when}/gates/{name}"] = levels(psi_HW)
    return pictures


def before_and_after(
    networks: Networks, image_CHW: Tensor, campaign: CampaignConfig, machine: MachineConfig
) -> dict[str, Features]:
    """The same image, seen with the weights that the campaign begins with and with the trained ones."""
    return {
        "before": features_of(build_networks(campaign), image_CHW, machine),
        "after": features_of(networks, image_CHW, machine),
    }


def attention_shown(found: Mapping[str, Features], when: str, name: str) -> npt.NDArray[np.float32]:
    """A block's attention as a share of its largest value before or after."""
    largest = max(float(of_time.attention[name].max()) for of_time in found.values())
    shown: npt.NDArray[np.float32] = found[when].attention[name] / np.float32(largest or 1.0)
    return shown


def levels(map_HW: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.round(np.clip(map_HW, 0, 1) * 255).astype(np.uint8)
