"""A cell in, its generator out: trained once, part by part, and kept in the run folder for every cell that needs it.

    run_dir/generators/<key>.safetensors    the networks that are trained so far, by the names that travel
                       <key>.json           digest of that file, records of the rounds, seconds
                       <key>/               checkpoints of a federation that is not finished

There are three parts: autoencoder, denoiser with its prompts, ControlNet (with an edge detector that is trained). Each
begins with the file of the one before, and its key says all that it follows from: not how images are drawn, nor what
for. So ablations of the ControlNet share the first two parts, and an interruption costs one part at most (a federation
goes on in the round where it was lost).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from client.dataset import SiteData
from client.generators import generator_folder
from shared.checkpoint import file_digest, write_atomically
from shared.config import (
    AugmentConfig,
    CampaignConfig,
    DrawConfig,
    GenerateConfig,
    MachineConfig,
    Phase,
    PhaseConfig,
    TaskConfig,
    to_dict,
)
from shared.errors import DataError
from shared.locks import locked
from shared.types import Arrays
from simulation.run import run_federation, site_setups
from simulation.study.cell import Cohort, Say
from simulation.study.grid import Cell

if TYPE_CHECKING:
    from shared.generate.networks import Generator

PARTS: tuple[Phase, ...] = ("autoencoder", "denoiser", "controlnet")
_NONE = PhaseConfig(rounds=0)


@dataclass(frozen=True, slots=True)
class KeptGenerator:
    """A generator on the disk."""

    path: Path
    records: tuple[Mapping[str, Any], ...]
    """Of all rounds in order, each with its `phase`; of a federation a mean over the sites that say it."""
    seconds: float


def kept_generator(
    cell: Cell, setting: str, data: Cohort, folder: Path, machine: MachineConfig, say: Say, site: str = ""
) -> KeptGenerator:
    """The cell's generator; its missing parts are trained first. `setting` federated or pooled: on all of `data`;
    local: on the slices of `site`. A pooled denoiser has the federated autoencoder: losses can be compared in one space
    of latents only.

    Raises DataError for a kept one that is damaged, and what training raises.
    """
    assert (setting == "local") == bool(site), (setting, site)
    campaign = cell.config.campaign
    start, before = campaign.generate.start, _file_digest(campaign.generate.start)
    records: list[Mapping[str, Any]] = []
    seconds = 0.0
    for part in PARTS:
        if not campaign.generate.of(part).rounds:
            continue
        where = "federated" if (setting, part) == ("pooled", "autoencoder") else setting
        asked = replace(_of_part(campaign, part), generate=replace(_of_part(campaign, part).generate, start=start))
        key = key_of_part(cell, asked, where, site, data, before)
        kept = _kept_part(key, part, asked, cell, where, data, folder / "generators", machine, say, site)
        start, before = str(kept.path), key
        records += kept.records
        seconds += kept.seconds
    assert start is not None, "a generator of a study has a part that is trained, or one to start from"
    return KeptGenerator(Path(start), tuple(records), seconds)


def drawing(campaign: CampaignConfig, kept: KeptGenerator) -> CampaignConfig:
    """The campaign with nothing of its generator left to train: it starts with what is kept."""
    generate = replace(campaign.generate, autoencoder=_NONE, denoiser=_NONE, controlnet=_NONE, start=str(kept.path))
    return replace(campaign, generate=generate)


def loaded(campaign: CampaignConfig, kept: KeptGenerator) -> Generator:
    """The networks, on the CPU."""
    from shared.generate.networks import build_generator

    return build_generator(drawing(campaign, kept))


def _of_part(campaign: CampaignConfig, part: str) -> CampaignConfig:
    """The campaign that trains this part alone, and in which nothing else stands that the part does not follow from."""
    full = campaign.generate
    lengths: dict[str, PhaseConfig] = {name: full.of(name) if name == part else _NONE for name in PARTS}
    generate = replace(
        GenerateConfig(), kind=full.kind, size=full.size, kl_weight=full.kl_weight, ema=full.ema, organs=full.organs,
        prediction="noise", draw=DrawConfig(sampler="dpm", guidance=1.0), **lengths,  # type: ignore[arg-type]
    )  # fmt: skip
    if part != "autoencoder":
        flow = full.prediction == "velocity"
        generate = replace(
            generate, prediction=full.prediction, text=full.text, text_encoder=full.text_encoder,
            drop_text=full.drop_text, draw=DrawConfig(sampler="rflow" if flow else "dpm", guidance=1.0),
        )  # fmt: skip
    if part == "controlnet":
        generate = replace(
            generate, edges=full.edges, hed_weights=full.hed_weights, contour=full.contour, box=full.box,
            drop_hint=full.drop_hint, task=full.task,
        )  # fmt: skip
        if full.edges == "hed":  # its phase, one round here, takes as many steps as all rounds of the autoencoder
            steps = max(full.autoencoder.rounds, 1) * full.autoencoder.local_steps
            generate = replace(generate, autoencoder=replace(full.autoencoder, rounds=0, local_steps=steps))
    return replace(campaign, name="generator", generate=generate, augment=AugmentConfig())


def key_of_part(cell: Cell, asked: CampaignConfig, setting: str, site: str, data: Cohort, before: str | None) -> str:
    """Digest of what the part's weights follow from; `before`: key of the part that it begins with."""
    values = to_dict(asked)
    generate = {key: value for key, value in values["generate"].items() if key not in ("start", "draw")}
    generate = {key: value for key, value in generate.items() if key not in ("hed_weights", "text_encoder")}
    what: list[Any] = [generate, values["data"]["labels"], values["seed"], data.recipe, setting, site, before]
    training = {key: value for key, value in values["training"].items() if key not in _OF_PHASE}
    what += [training, values["data"]["ingest"], [each.site for each in data.datas]]
    what += [values["strategy"], cell.config.transport] if setting == "federated" else []
    encoder = asked.generate.text_encoder and f"{asked.generate.text_encoder}/model.safetensors"
    what += [_file_digest(path) for path in (asked.generate.hed_weights, encoder) if path]
    if asked.generate.task != TaskConfig():  # the recogniser whose gradient steers
        what += [values[name] for name in ("recognise", "learn", "objective")]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]


_OF_PHASE = ("local_steps", "batch_size", "learning_rate")


def _kept_part(
    key: str,
    part: str,
    asked: CampaignConfig,
    cell: Cell,
    setting: str,
    data: Cohort,
    folder: Path,
    machine: MachineConfig,
    say: Say,
    site: str,
) -> KeptGenerator:
    with locked(folder / f"{key}.lock"):
        kept = read_kept(folder, key)
        if kept is None:
            began = time.perf_counter()
            say(f"{setting} generator: {part}")
            place = folder / key
            trained = _federated if setting == "federated" else _alone
            arrays, records = trained(asked, data, place, cell, machine, say, site)
            write_kept(folder, key, {**_start(asked), **arrays}, records, time.perf_counter() - began)
            shutil.rmtree(place, ignore_errors=True)
            kept = read_kept(folder, key)
            assert kept is not None
    return kept


def write_kept(folder: Path, key: str, arrays: Arrays, records: Sequence[Mapping[str, Any]], seconds: float) -> None:
    """The record last: without it there is nothing."""
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    content = save({name: np.asarray(values, np.float32, order="C") for name, values in arrays.items()})
    write_atomically(folder / f"{key}.safetensors", content)
    sheet = {"sha256": hashlib.sha256(content).hexdigest(), "records": list(records), "seconds": seconds}
    write_atomically(folder / f"{key}.json", json.dumps(sheet).encode())


def read_kept(folder: Path, key: str, what: str = "generator") -> KeptGenerator | None:
    """None where there is none; raises DataError for one that was changed or cannot be read. `what` it is, in words."""
    path = folder / f"{key}.safetensors"
    if not (folder / f"{key}.json").is_file():
        return None
    damaged = DataError(f"the kept {what} {key} is damaged; remove {what}s/{key}.json and run again")
    try:
        sheet = json.loads((folder / f"{key}.json").read_text())
        records, seconds, digest = sheet["records"], float(sheet["seconds"]), sheet["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise damaged from None
    whole = isinstance(records, list) and all(isinstance(record, dict) for record in records)
    if not whole or digest != _file_digest(str(path)):
        raise damaged
    return KeptGenerator(path, tuple(records), seconds)


def _start(asked: CampaignConfig) -> Arrays:
    """What the parts before have left."""
    from safetensors.numpy import load_file

    return dict(load_file(asked.generate.start)) if asked.generate.start else {}


def _federated(
    asked: CampaignConfig, data: Cohort, place: Path, cell: Cell, machine: MachineConfig, say: Say, site: str
) -> tuple[Arrays, list[Mapping[str, Any]]]:
    result = run_federation(asked, data.stores, place, cell.config.transport, machine)
    for setup in site_setups(asked, data.stores, place, machine):
        shutil.rmtree(generator_folder(setup.generators, asked), ignore_errors=True)
    return dict(result.weights), [_of_sites(record) for record in result.records if record["training"]]


def _of_sites(record: Mapping[str, Any]) -> dict[str, Any]:
    """A federation's round as a mean over the sites that say it."""
    sites = list(record["training"].values())
    keys = sorted({key for each in sites for key in each})
    means = {key: float(np.mean([each[key] for each in sites if key in each])) for key in keys}
    sent = {key: record[key] for key in ("bytes_up", "bytes_down") if key in record}
    return {"phase": record.get("phase", ""), **means, **sent}


def _alone(
    asked: CampaignConfig, data: Cohort, place: Path, cell: Cell, machine: MachineConfig, say: Say, site: str
) -> tuple[Arrays, list[Mapping[str, Any]]]:
    """Pooled: in as many steps as the sites of a federation take together."""
    from client.train.all_phases import trained_generator
    from shared.generate.networks import TRAINED, parts_arrays

    of_site: SiteData = next((each for each in data.datas if each.site == site), data.together)
    generator, records = trained_generator(
        asked,
        of_site.train,
        machine,
        name=site or "pooled",
        on_step=lambda done, total: say(f"{site or 'pooled'} generator: {done}/{total} steps"),
        sites=1 if site else len(data.datas),
    )
    parts = [name for phase in asked.generate.phases for name in TRAINED[phase]]
    parts += ["latents"] if "autoencoder" in asked.generate.phases else []
    flat: list[Mapping[str, Any]] = [{"phase": phase, **record} for phase, found in records.items() for record in found]
    return parts_arrays(generator, parts), flat


def _file_digest(path: str | None) -> str | None:
    """SHA-256 of a file; None where none is named or it cannot be read (whoever reads it next says so in words)."""
    try:
        return None if path is None else file_digest(Path(path))
    except OSError:
        return None
