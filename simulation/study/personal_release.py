"""A cell in, the model that it begins with out: trained once per data set, seed and training, then kept.

    run_dir/releases/<key>.safetensors    enhancer and recogniser of a release, trained at the old hospitals; or of a
                     <key>.json           model that the new hospital trained alone (kept as generators are)

How a release is adapted, and what the new scanner does to its images, is no part of the release's key.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from client.batches import evaluation_batches
from client.dataset import SiteData, Slices, merge
from client.reading import BATCH_SIZE, taken
from shared.config import CampaignConfig, MachineConfig
from shared.locks import locked
from shared.networks import Networks, build_networks
from shared.types import Arrays
from shared.weights import load_arrays, to_arrays
from simulation.comparators import alone, trained_alone
from simulation.study.cell import Cohort, Say, trained
from simulation.study.generators import read_kept, write_kept
from simulation.study.grid import Cell, key_of
from simulation.study.personal_plan import Personal

MOST_REFERENCE = 64
"""Slices of a release's reference set."""


@dataclass(frozen=True, slots=True, eq=False)
class Hospitals:
    """The old ones, where releases are trained, and the one whose scanner is new."""

    old: Cohort
    new: SiteData
    everybody: SiteData
    """For a judge, which has learned from all of them."""

    @property
    def recipe(self) -> str:
        return self.old.recipe


def hospitals_of(cell: Cell, data: Cohort) -> Hospitals:
    new = next(each for each in data.datas if each.site == cell.unseen)
    rest = tuple(each for each in data.datas if each.site != cell.unseen)
    stores = {each.site: data.stores[each.site] for each in rest}
    return Hospitals(Cohort(rest, merge(rest), stores, data.recipe), new, data.together)


def planned_of(cell: Cell) -> Personal:
    assert cell.personal is not None, "a cell of a study of personalisation"
    return cell.personal


def campaign_of_new(cell: Cell) -> CampaignConfig:
    """The campaign as the new hospital sees it: its images are degraded in its own way."""
    return replace(cell.config.campaign, degrade=planned_of(cell).degrade)


def learned_from(cell: Cell, new: SiteData) -> Slices:
    """Training slices of the new scanner that the cell may learn from: all, or those of its first `studies`
    patients. Pseudonyms are hashes, so the first are a sample, and few are part of more."""
    studies = planned_of(cell).studies
    patients = sorted(set(new.train.patient_N.tolist()))
    if not studies or studies >= len(patients):
        return new.train
    chosen_N = torch.isin(new.train.patient_N, torch.tensor(patients[:studies]))
    return taken(new.train, torch.nonzero(chosen_N)[:, 0].tolist())


def model_of(cell: Cell, hospitals: Hospitals, folder: Path, machine: MachineConfig, say: Say) -> Networks:
    """The release, or the model of the new hospital alone; trained first where it is not kept.

    Raises DataError for a kept one that is damaged, and what training raises.
    """
    key = release_key(cell)
    with locked(folder / "releases" / f"{key}.lock"):
        kept = read_kept(folder / "releases", key, "release")
        if kept is None:
            began = time.perf_counter()
            arrays, records = _trained(cell, key, hospitals, folder, machine, say)
            write_kept(folder / "releases", key, arrays, records, time.perf_counter() - began)
            kept = read_kept(folder / "releases", key, "release")
            assert kept is not None
    from safetensors.numpy import load_file

    networks = build_networks(cell.config.campaign)
    load_arrays(networks, load_file(kept.path))
    return networks


def release_key(cell: Cell) -> str:
    personal = planned_of(cell)
    apart = {"degrade": personal.key["new"], "studies": personal.studies} if personal.alone else {}
    return key_of(cell.config, cell.setting, downstream=False, unseen=cell.unseen, kept="release", **apart)


def _trained(
    cell: Cell, key: str, hospitals: Hospitals, folder: Path, machine: MachineConfig, say: Say
) -> tuple[Arrays, list[Mapping[str, Any]]]:
    if not planned_of(cell).alone:
        say(f"{cell.setting} release")
        (networks,), records = trained(replace(cell, key=key), hospitals.old, folder, machine, say)
        return to_arrays(networks), records
    campaign = alone(campaign_of_new(cell))
    networks, found = trained_alone(
        campaign,
        learned_from(cell, hospitals.new),
        machine,
        name=cell.unseen,
        steps=campaign.training.local_steps,
        on_step=lambda step: say(f"{cell.unseen} alone: {step.done}/{step.total} steps"),
    )
    return to_arrays(networks), list(found)


def reference_of(old: SiteData, campaign: CampaignConfig) -> Slices:
    """Simulated images of the old scanners with their degraded forms: what a release has in its reference set. Of
    validation patients: the test patients judge, and must choose nothing."""
    slices = old.validation if len(old.validation) else old.train
    places = torch.linspace(0, len(slices) - 1, min(MOST_REFERENCE, len(slices))).round().long()
    chosen = taken(slices, places.tolist())
    return replace(chosen, degraded_NCHW=degraded(chosen, campaign))


def degraded(slices: Slices, campaign: CampaignConfig) -> torch.Tensor:
    """Each slice's evaluation degradation."""
    return torch.cat([batch.degraded_BCHW for batch in evaluation_batches(slices, campaign, BATCH_SIZE)])
