"""One cell of the generation study in, its rows out.

    figures=generator    a generator's losses on test images, what it draws (simulation/study/quality.py), and what the
                         guards say of the sets that sites draw from their training images
    figures=draws        what it draws alone: for settings of drawing, which change no weight
    figures=recogniser   a recogniser that trained with an augmentation; with emit-diff each site's slices have their
                         synthetic set beside them, drawn once by the generator in the setting that the table asks for

Every recogniser is judged on each site's test patients and on those of all sites together; the summary of `local` is
the mean over the sites' models. No test image is synthetic.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from client.dataset import SiteData, Slices, merge
from client.evaluate import evaluate
from client.generate.manifest import KeptSet, synthetic_folder
from client.generate.synthetic import load_synthetic, site_set
from client.site import SiteSetup
from client.train import phases
from client.train.phases import evaluate_phase
from server.closing import labels_of
from shared.config import CampaignConfig, MachineConfig, SimulationConfig, to_dict
from shared.errors import ConfigError
from shared.generate.networks import Generator
from shared.networks import Networks
from simulation.rows import metrics_of
from simulation.study.cell import Cohort, Result, Row, Say, conditions, mean_row, opened, trained
from simulation.study.generation_pictures import drawn_pictures, sampled_picture
from simulation.study.generators import PARTS, KeptGenerator, drawing, kept_generator, loaded
from simulation.study.grid import Cell
from simulation.study.judges import judge_of
from simulation.study.quality import drawn_to_be_judged, quality_of
from simulation.study.recognisers import label_budget


def run_generation_cell(cell: Cell, folder: Path, machine: MachineConfig, say: Say) -> Result:
    """Train and judge one cell; data, generators, synthetic sets and judges are kept in `folder` for the next.

    Raises ConfigError, DataError, RefusedError or PeerError, as a campaign run alone does.
    """
    run = _recogniser_cell if cell.figures == "recogniser" else _generator_cell
    try:
        return run(cell, folder, machine, say)
    finally:
        phases.forget()


# ---------------------------------------------------------------------------------------------------------- generators


def _generator_cell(cell: Cell, folder: Path, machine: MachineConfig, say: Say) -> Result:
    began = time.perf_counter()
    data = opened(cell.config, folder)
    sites = [each.site for each in data.datas if cell.site in ("", each.site)] if cell.setting == "local" else [""]
    rows, rounds, pictures = list[Row](), list[Any](), list[Any]()
    for site in sites:
        kept = kept_generator(cell, cell.setting, data, folder, machine, say, site)
        say("judging what it draws")
        figures, shown = _judged(cell, kept, data, folder, machine, say, site)
        rows.append({**generation_labels(cell), "site": site or "all", "n": len(data.together.test), **figures})
        rounds += kept.records
        pictures += shown
    if len(rows) > 1:
        rows.append({**mean_row(rows), "site": "all"})
    return Result(tuple(rows), tuple(rounds), time.perf_counter() - began, tuple(pictures))


def _judged(
    cell: Cell, kept: KeptGenerator, data: Cohort, folder: Path, machine: MachineConfig, say: Say, site: str
) -> tuple[Row, list[dict[str, str]]]:
    campaign = cell.config.campaign
    generator, test = loaded(campaign, kept), data.together.test
    judging = replace(cell.config, campaign=replace(campaign, data=replace(campaign.data, labels=None)))
    everything = opened(judging, folder)  # a judge has all labels, however few the cell's training has
    judge = judge_of(judging.campaign, everything.together, everything.recipe, folder / "judges", machine)
    found = drawn_to_be_judged(generator, test, campaign, machine, cell.images)
    figures: Row = quality_of(found, test, data.together.train, judge, campaign)
    whole = cell.figures == "generator"
    if whole:
        figures |= _losses(generator, test, campaign, machine)
        drawing_sites = [each for each in data.datas if site in ("", each.site)]
        figures |= _guards([drawn_at(cell, kept, each, data, machine, say) for each in drawing_sites])
    shown = []
    if cell.seed == 0 and whole:
        shown = drawn_pictures(generator, data.datas, campaign, machine)
    elif cell.seed == 0:
        shown = sampled_picture(found, test)
    return figures, shown


_FIGURES = {
    "autoencoder_psnr_db": "autoencoder.psnr_db",
    "denoiser_loss": "denoiser.loss",
    "controlnet_loss": "controlnet.loss",
}


def _losses(generator: Generator, test: Slices, campaign: CampaignConfig, machine: MachineConfig) -> dict[str, float]:
    """Of each part, on test slices of all sites."""
    found: dict[str, float] = {}
    for part in PARTS:
        found |= {
            key: moments.mean
            for key, moments in evaluate_phase(generator, test, campaign.in_phase(part), machine).items()
        }
    return {name: found[key] for name, key in _FIGURES.items()}


def drawn_at(
    cell: Cell, kept: KeptGenerator, data: SiteData, everybody: Cohort, machine: MachineConfig, say: Say
) -> KeptSet:
    """The site's synthetic set, drawn once and kept beside its store; also one that the guards refuse."""
    campaign = drawing(cell.config.campaign, kept)
    setup = SiteSetup(data.site, everybody.stores[data.site], machine, {})
    return site_set(
        loaded(campaign, kept),  # its own: a site may fine-tune it before it draws
        data.train,
        campaign,
        setup,
        held_out=data.validation,
        on_progress=lambda done, total: say(f"{data.site} draws: {done}/{total} images"),
    )


def _guards(sets: list[KeptSet]) -> dict[str, float]:
    """What the guards say, over the images of all sites that had something to draw from."""
    reports = [each.report for each in sets if each.report["asked"]]
    if not reports:
        return {}
    asked = [float(report["asked"]) for report in reports]
    used = [0.0 if report["refused"] else float(report["images"]) for report in reports]
    figures = {
        "memorised_share": float(np.average([report["memorised_share"] for report in reports], weights=asked)),
        "rejected_share": 1 - sum(used) / sum(asked),
        "refused": float(np.mean([report["refused"] for report in reports])),
    }
    for name, key in (("nearest_ratio", "ratio_median"), ("membership_auc", "membership_auc")):
        values = [report["nearness"].get(key) for report in reports]
        if all(value is not None for value in values):
            figures[name] = float(np.average(values, weights=asked))
    return figures


# --------------------------------------------------------------------------------------------------------- recognisers


def _recogniser_cell(cell: Cell, folder: Path, machine: MachineConfig, say: Say) -> Result:
    began = time.perf_counter()
    everybody = opened(cell.config, folder)
    training, campaign = everybody, cell.config.campaign
    if cell.site:
        training = _cohort([each for each in everybody.datas if each.site == cell.site], everybody)
    if campaign.augment.generated:
        training, campaign = _with_drawn(cell, everybody, training, folder, machine, say)
    cell = replace(cell, config=replace(cell.config, campaign=campaign))
    models, records = trained(cell, training, folder, machine, say)
    names = [each.site for each in training.datas] if cell.setting == "local" else ["all"]
    rows = [
        row
        for name, networks in zip(names, models, strict=True)
        for row in _recogniser_rows(cell, name, networks, everybody, machine)
    ]
    if len(models) > 1:
        rows.append({**mean_row([row for row in rows if row["test_site"] == "all"]), "site": "all"})
    return Result(tuple(rows), tuple(records), time.perf_counter() - began)


def _cohort(datas: list[SiteData], everybody: Cohort) -> Cohort:
    stores = {each.site: everybody.stores[each.site] for each in datas}
    return Cohort(tuple(datas), merge(datas), stores, everybody.recipe)


def _with_drawn(
    cell: Cell, everybody: Cohort, training: Cohort, folder: Path, machine: MachineConfig, say: Say
) -> tuple[Cohort, CampaignConfig]:
    """Each site's training slices with its synthetic set, and the campaign that draws the same sets.

    Raises RefusedError where a guard refuses a generator.
    """
    kept_of = _generators(cell, everybody, folder, machine, say)
    datas, campaign = [], cell.config.campaign
    for data in training.datas:
        kept = kept_of(data.site)
        found = drawn_at(cell, kept, data, everybody, machine, say)
        folder_of_set = synthetic_folder(everybody.stores[data.site])
        synthetic = load_synthetic(folder_of_set, found.digest, data.train)
        datas.append(replace(data, train=replace(data.train, synthetic=synthetic)))
        campaign = drawing(cell.config.campaign, kept)
    return _cohort(datas, everybody), campaign


def _generators(
    cell: Cell, everybody: Cohort, folder: Path, machine: MachineConfig, say: Say
) -> Callable[[str], KeptGenerator]:
    """The generator that draws at a site."""
    if cell.generator == "local":
        if cell.setting == "federated":
            raise ConfigError("a federation trains with images of one generator; choose generator=federated or pooled")
        return lambda site: kept_generator(cell, "local", everybody, folder, machine, say, site)
    kept = kept_generator(cell, cell.generator, everybody, folder, machine, say)
    return lambda site: kept


def _recogniser_rows(
    cell: Cell, site: str, networks: Networks, everybody: Cohort, machine: MachineConfig
) -> Iterator[Row]:
    """On each hospital's own tests, then on all of them."""
    labels = {**generation_labels(cell), "site": site}
    for there in (*everybody.datas, everybody.together):
        scores = evaluate(networks, there.test, cell.config.campaign, machine, surfaces=True)
        name = "all" if there is everybody.together else there.site
        yield {**labels, "test_site": name, "n": len(there.test), **metrics_of([scores.values], "enhanced")}


# -------------------------------------------------------------------------------------------------------------- labels


def generation_labels(cell: Cell) -> Row:
    """All labels of a row; whose model and whose tests stand for all of them."""
    campaign = cell.config.campaign
    labels = {**labels_of(to_dict(campaign)), **conditions(cell), **generation_conditions(cell)}
    return {**labels, "setting": cell.setting, "split": "test", "site": "all", "test_site": "all"}


def generation_conditions(cell: Cell) -> dict[str, Any]:
    """What the tables of generation sort by; all of it follows from the cell's config."""
    campaign, of_recogniser = cell.config.campaign, cell.figures == "recogniser"
    masks, diagnoses, words = label_budget(cell.config)
    row: dict[str, Any] = {
        "method": campaign.augment.kind if of_recogniser else "emit-diff",
        "generator": cell.generator if of_recogniser else "none",
        "labels": words,
        "masks": masks,
        "diagnoses": diagnoses,
        "balance": campaign.augment.balance if of_recogniser else None,
    }
    if cell.site and of_recogniser:
        row["scarce"] = scarce_class(cell.config, cell.site)
    if cell.generator != "none":
        generate = campaign.generate
        row |= {key: getattr(generate, key) for key in ("prediction", "text", "edges", "contour", "box")}
        row |= {key: getattr(generate.draw, key) for key in ("sampler", "steps", "guidance", "classes")}
        row |= {"task_weight": generate.task.weight, "task_gate": generate.task.gate}
    return row


def scarce_class(config: SimulationConfig, site: str) -> str:
    """The diagnosis that the hospital has least of; empty where all are equal."""
    hospital = next((each for each in config.hospitals.sites if each.name == site), None)
    balance, names = hospital.balance if hospital else (), config.campaign.data.diagnoses
    return names[balance.index(min(balance))] if len(balance) == len(names) and len(set(balance)) > 1 else ""
