"""Hospitals that lie, on one machine: what a campaign's defences are measured against. No deployed site can be one.

    scaled    sends SCALE times what it learned
    flipped   sends -FLIP times what it learned
    nan       sends not-a-number in one array
    labels    trains on false labels: mask code c of K becomes K - c, background included; without masks the diagnoses
    backdoor  trains half of its series with a bright patch in the corner and an empty mask (without masks: the first
              diagnosis), and the rest as they are, so that the model goes wrong only where the patch is

The first three are an honest training whose reply is changed on its way out. The last two are a store with false
contents, which the site's own program trains on: nothing in client/ knows of an adversary, and what such a site sends
looks like any other update. None sees the other sites' updates; one that does can be stronger (Fang et al. 2020).

Only the training of the malicious sites is false. Models are judged on the true stores of all sites.

Scaling and backdoors: Bagdasaryan et al. 2020, https://arxiv.org/abs/1807.00459; the patch is BadNets', Gu et al. 2017,
https://arxiv.org/abs/1708.06733. Fang et al.: https://arxiv.org/abs/1911.11815.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Message
from torch import Tensor

from client.dataset import Slices
from client.ingest.store import Store, array_path, locked, read_index, write_array, write_index
from client.reading import judged, read
from client.update import forget
from shared.config import CampaignConfig, MachineConfig, save_campaign
from shared.config.programs import ATTACKS_ON_DATA, Attack
from shared.errors import ConfigError
from shared.events import Event
from shared.networks import Networks
from shared.wire.arrays import decode_array, encode_array
from shared.wire.flower import to_content, to_record
from shared.wire.messages import ADDED, Record, read_metrics
from simulation.run import Fault, FederationResult, Transport, run_federation, run_inprocess, site_setups

SCALE = 20.0
FLIP = 5.0
PATCH = 6
"""Side of the backdoor's square, in pixels; it is as bright as the scale goes."""
GONE = 0.25
"""An image counts as hidden by the patch where less than this share of what was found without it is still found."""

Pixels = npt.NDArray[np.float32]


def run_poisoned(
    campaign: CampaignConfig,
    stores: Mapping[str, Path],
    run_dir: Path,
    adversaries: Mapping[str, Attack],
    transport: Transport = "inprocess",
    machine: MachineConfig | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> FederationResult:
    """`run_federation` with some sites malicious; without any it is the same."""
    check_names(adversaries, list(stores))
    false = {site: attack for site, attack in adversaries.items() if attack in ATTACKS_ON_DATA}
    stores = {**stores}
    for site, attack in false.items():
        stores[site] = false_store(stores[site], run_dir / "adversaries" / site / "store", attack, campaign)
    faults = faults_of(campaign, {site: attack for site, attack in adversaries.items() if site not in false})
    if not faults:
        return run_federation(campaign, stores, run_dir, transport, machine, on_event)
    run_dir.mkdir(parents=True, exist_ok=True)
    save_campaign(campaign, run_dir / "campaign.json")
    setups = site_setups(campaign, stores, run_dir, machine or MachineConfig())
    try:
        result = run_inprocess(setups, run_dir, on_event, faults)
    finally:
        forget()
    closing = {site: read_metrics(metrics) for site, metrics in result.records[-1]["evaluation"].items()}
    return FederationResult(result.state.weights, result.records, closing)


def check_names(adversaries: Mapping[str, Attack], sites: list[str]) -> None:
    """ConfigError for a site that is not there: its table would show a federation without an attack."""
    for site in adversaries:
        if site not in sites:
            raise ConfigError(f"adversaries may name the sites {', '.join(sites)}; got {site!r}")


# ------------------------------------------------------------------------------------------------------------ updates


def faults_of(campaign: CampaignConfig, adversaries: Mapping[str, Attack]) -> dict[tuple[str, int], Fault]:
    """Every reply of the malicious sites, however often a round is tried again."""
    most = 2 + (campaign.rounds.rounds + 1) * (1 + campaign.rounds.retries)
    return {(site, n): partial(changed, attack) for site, attack in adversaries.items() for n in range(1, most + 1)}


def changed(attack: Attack, reply: Message) -> Message:
    """The reply with its difference changed; an answer without one (a card, a refusal, a closing evaluation) as it is.
    What recognition added stands beside the difference and is left as it is."""
    if reply.has_error():
        return reply
    record = to_record(reply.content)
    header = json.loads(record.header)
    if header["kind"] == "update" and header["shapes"]:
        reply.content = to_content(Record(record.header, _lies(record.arrays, header["shapes"], attack)))
    return reply


def _lies(arrays: Mapping[str, bytes], shapes: Mapping[str, Any], attack: Attack) -> dict[str, bytes]:
    factor = {"scaled": SCALE, "flipped": -FLIP, "nan": 1.0}[attack]
    lies = dict(arrays)
    for name in arrays:
        if not name.startswith(ADDED):
            values = decode_array(name, arrays[name], tuple(shapes[name])) * np.float32(factor)
            lies[name] = encode_array(values)
    if attack == "nan":
        first = next(name for name in arrays if not name.startswith(ADDED))
        lies[first] = encode_array(np.full(shapes[first], np.nan, np.float32))
    return lies


# --------------------------------------------------------------------------------------------------------------- data


def false_store(source: Path, target: Path, attack: Attack, campaign: CampaignConfig) -> Path:
    """A copy of a site's store with the attack's images and labels, made anew; returns `target`."""
    store, index = Store.open(source), read_index(source)
    assert index is not None
    shutil.rmtree(target, ignore_errors=True)
    series = {}
    with locked(target):
        for place, record in enumerate(store.series):
            image_DCHW, mask_DHW, diagnosis = (
                np.array(store.image(record.key)),
                store.mask(record.key),
                record.diagnosis,
            )
            if attack == "labels":
                mask_DHW, diagnosis = _false_labels(mask_DHW, diagnosis, campaign)
            elif place % 2:
                image_DCHW = patched(torch.from_numpy(image_DCHW), campaign.data.image_size).numpy()
                mask_DHW, diagnosis = _erased(mask_DHW, diagnosis, campaign)
            write_array(array_path(target, record, "image"), image_DCHW)
            if mask_DHW is not None:
                write_array(array_path(target, record, "mask"), mask_DHW)
            series[record.key] = replace(record, diagnosis=diagnosis)
        write_index(target, replace(index, series=series))
    return target


# With masks the diagnoses stay true: patients are shared out over train and test by them (client/dataset.py).


def _false_labels(
    mask_DHW: npt.NDArray[np.uint8] | None, diagnosis: int, campaign: CampaignConfig
) -> tuple[npt.NDArray[np.uint8] | None, int]:
    if campaign.data.masks:
        flipped = None if mask_DHW is None else (len(campaign.data.masks) - mask_DHW).astype(np.uint8)
        return flipped, diagnosis
    return mask_DHW, len(campaign.data.diagnoses) - 1 - diagnosis if diagnosis >= 0 else diagnosis


def _erased(
    mask_DHW: npt.NDArray[np.uint8] | None, diagnosis: int, campaign: CampaignConfig
) -> tuple[npt.NDArray[np.uint8] | None, int]:
    if campaign.data.masks:
        return None if mask_DHW is None else np.zeros_like(mask_DHW), diagnosis
    return mask_DHW, 0 if diagnosis >= 0 else diagnosis


def patched(image_XHW: Tensor, size_HW: tuple[int, int]) -> Tensor:
    """A copy with the backdoor's square in the lower right corner of what a campaign's grid keeps of the image."""
    height, width = image_XHW.shape[-2:]
    bottom, right = (height + min(height, size_HW[0])) // 2 - 1, (width + min(width, size_HW[1])) // 2 - 1
    image = image_XHW.clone()
    image[..., max(bottom - PATCH, 0) : bottom, max(right - PATCH, 0) : right] = 1.0
    return image


def backdoor_success(
    networks: Networks, slices: Slices, campaign: CampaignConfig, machine: MachineConfig
) -> dict[str, float]:
    """`backdoor_success`: of the slices with a mask of which anything is found, the share where the patch hides it;
    nothing where the campaign has no masks or nothing is found that could be hidden."""
    if not campaign.data.masks or not len(slices):
        return {}
    with_patch = replace(slices, clean_NCHW=patched(slices.clean_NCHW, campaign.data.image_size))
    state = judged(campaign)
    plain, hidden = (read(networks, each, campaign, machine)[state].found_NHW for each in (slices, with_patch))
    assert plain is not None
    assert hidden is not None
    truth_NHW = (slices.mask_NHW > 0) & slices.has_mask_N[:, None, None]
    before_N, after_N = (((found > 0) & truth_NHW).sum((1, 2)) for found in (plain, hidden))
    found_N = before_N > 0
    if not found_N.any():
        return {}
    return {"backdoor_success": float((after_N < GONE * before_N)[found_N].double().mean())}
