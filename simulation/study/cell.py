"""One cell in, its rows out: the data, one model (or a federation's), its scores and those of independent judges.

    test         what the tables show
    validation   what settings may be chosen by: patients that neither train nor test

Every figure is a mean over the images (or patients) of all sites.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from client.dataset import SiteData, Slices, merge, open_site
from client.evaluate import evaluate
from server.closing import labels_of
from shared.config import CampaignConfig, DegradeConfig, MachineConfig, SimulationConfig, to_dict
from shared.locks import locked
from shared.networks import Networks, build_networks
from shared.weights import load_arrays
from simulation.comparators import alone, trained_alone
from simulation.compare import elsewhere_config
from simulation.prepare import prepare
from simulation.rows import metrics_of
from simulation.run import run_federation
from simulation.study.grid import REAL, Cell
from simulation.study.judges import DOWNSTREAM, judge_of

Row = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What is kept of a cell."""

    rows: tuple[Row, ...]
    rounds: tuple[Mapping[str, Any], ...]
    """Training records in order: where the gate opened, the losses."""
    seconds: float
    pictures: tuple[Mapping[str, str], ...] = ()
    """See simulation/study/pictures.py."""


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """A data set as a cell sees it: every site's slices, and all of them together."""

    datas: tuple[SiteData, ...]
    together: SiteData
    stores: Mapping[str, Path]
    recipe: str


def run_cell(cell: Cell, folder: Path, machine: MachineConfig, say: Say) -> Result:
    """Train and judge one cell; data and judges are kept in `folder` for the next.

    Raises ConfigError, DataError or PeerError, as a campaign run alone does.
    """
    began = time.perf_counter()
    campaign, config = cell.config.campaign, cell.config
    data = opened(config, folder)
    judges = {"judge": judge_of(campaign, data.together, data.recipe, folder / "judges", machine)}
    if cell.downstream:
        judges |= {
            kind: judge_of(campaign, data.together, data.recipe, folder / "judges", machine, kind)
            for kind in DOWNSTREAM
        }
    models, rounds = trained(cell, data, folder, machine, say)
    rows = _mean_rows([_rows(cell, networks, data.together, judges, machine) for networks in models])
    if cell.setting in ("federated", "local"):
        names = [site.site for site in data.datas] if cell.setting == "local" else ["all"]
        for name, networks in zip(names, models, strict=True):
            rows += _site_rows(cell, name, networks, data, judges["judge"], machine)
    if config.cross is not None:
        rows += _mean_rows([_cross_rows(cell, networks, folder, machine) for networks in models])
    return Result(tuple(rows), tuple(rounds), time.perf_counter() - began)


def opened(config: SimulationConfig, folder: Path) -> Cohort:
    """The cell's hospitals as stores, written and ingested once per data set and seed, and their slices."""
    campaign = config.campaign
    data = {**to_dict(campaign.data), "root": None}
    del data["labels"]  # which labels are used changes no store
    text = json.dumps([data, to_dict(config.hospitals), config.sites, campaign.seed], sort_keys=True)
    recipe = hashlib.sha256(text.encode()).hexdigest()[:12]
    place = folder / "data" / f"{campaign.data.kind}-{recipe}"
    with locked(folder / "data" / f"{recipe}.lock"):
        prepared = prepare(config, campaign.seed, place, lambda *progress: None)
    stores = {name: item.store for name, item in prepared.items()}
    datas = tuple(open_site(store, name, campaign) for name, store in stores.items())
    return Cohort(datas, merge(datas), stores, recipe)


def trained(
    cell: Cell, data: Cohort, folder: Path, machine: MachineConfig, say: Say
) -> tuple[list[Networks], list[Mapping[str, Any]]]:
    """The cell's models (one, or one per site) and the training records of all rounds."""
    campaign = cell.config.campaign
    match cell.setting:
        case "untrained":
            return [replace(build_networks(campaign), enhancer=_NonLocalMeans())], []
        case "pooled":
            steps = campaign.training.local_steps
            networks, records = trained_alone(
                alone(campaign),
                data.together.train,
                machine,
                name="pooled",
                steps=steps,
                on_step=lambda step: say(f"{step.done}/{step.total} steps"),
            )
            return [networks], list(records)
        case "local":
            steps = campaign.training.local_steps
            local = [
                trained_alone(
                    alone(campaign), site.train, machine, name=site.site, steps=steps, on_step=lambda step: None
                )
                for site in data.datas
            ]
            return [networks for networks, _ in local], [record for _, records in local for record in records]
        case "federated":
            place = folder / "federations" / cell.key
            result = run_federation(campaign, data.stores, place, cell.config.transport, machine)
            networks = build_networks(campaign)
            load_arrays(networks, result.weights)
            shutil.rmtree(place, ignore_errors=True)
            return [networks], [_record(record) for record in result.records if record["training"]]
    raise AssertionError(cell.setting)


def _record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A federation's round as a mean over the sites that say it, with what the coordinator's gate did."""
    sites = list(record["training"].values())
    keys = sorted({key for site in sites for key in site})
    means = {key: float(np.mean([site[key] for site in sites if key in site])) for key in keys}
    extra = {key: record[key] for key in ("promotion", "bytes_up", "bytes_down") if key in record}
    return {**means, **extra}


def _rows(
    cell: Cell, networks: Networks, data: SiteData, judges: Mapping[str, nn.Module], machine: MachineConfig
) -> list[Row]:
    """Degraded, clean and the model's own row, on validation and on test."""
    rows = []
    for split in ("validation", "test"):
        slices: Slices = getattr(data, split)
        if not len(slices):
            continue
        wanted = judges if split == "test" else {}
        rows += _judged(cell, networks, slices, wanted, cell.config.campaign, machine, split, cell.downstream)
    return rows


def _site_rows(
    cell: Cell, site: str, networks: Networks, data: Cohort, judge: nn.Module, machine: MachineConfig
) -> list[Row]:
    """The model of `site` (or of "all") on each site's own test."""
    rows: list[Row] = []
    for there in data.datas:
        judged = _judged(
            cell, networks, there.test, {"judge": judge}, cell.config.campaign, machine, "test", downstream=False
        )
        of_model = [row for row in judged if row["setting"] == cell.setting]
        rows += [{**row, "site": site, "test_site": there.site} for row in of_model]
    return rows


def _cross_rows(cell: Cell, networks: Networks, folder: Path, machine: MachineConfig) -> list[Row]:
    """The enhancer on another data set's test patients, with that data set's own judge."""
    there = elsewhere_config(cell.config)
    campaign, data = there.campaign, opened(there, folder)
    judge = judge_of(campaign, data.together, data.recipe, folder / "judges", machine)
    apart = Networks(networks.enhancer, judge)  # its own recogniser knows other classes
    rows = _judged(cell, apart, data.together.test, {"judge": judge}, campaign, machine, "test", downstream=False)
    own = ("dice", "jaccard", "precision", "recall", "mask_ssim", "missed", "accuracy", "auc", "f1")
    return [{key: value for key, value in row.items() if not key.startswith(own)} for row in rows]


def _judged(
    cell: Cell,
    networks: Networks,
    slices: Slices,
    judges: Mapping[str, nn.Module],
    campaign: CampaignConfig,
    machine: MachineConfig,
    split: str,
    downstream: bool,
) -> list[Row]:
    figures: dict[str, dict[str, float]] = {}
    values = evaluate(networks, slices, campaign, machine).values
    for state in ("degraded", "clean", "enhanced"):
        figures[state] = metrics_of([values], state)
    for name, judge in judges.items():
        found = evaluate(Networks(networks.enhancer, judge), slices, campaign, machine).values
        for state, of_state in figures.items():
            of_state |= _of_judge(metrics_of([found], state), name)
        if name in DOWNSTREAM and downstream:
            harmless = replace(campaign, degrade=DegradeConfig(kind="gaussian", sigma=(0.0, 0.0)))
            harmless = replace(harmless, enhance=replace(campaign.enhance, data_consistency=False))
            found = evaluate(Networks(networks.enhancer, judge), slices, harmless, machine).values
            figures["enhanced"] |= {
                f"no_harm_{key}": value for key, value in _of_judge(metrics_of([found], "enhanced"), name).items()
            }
    labels = {**labels_of(to_dict(cell.config.campaign)), **conditions(cell), "split": split}
    labels["test_data"] = campaign.data.kind
    # What learns nothing stands among the models of pooled data, which have seen more than it.
    trained = "pooled" if cell.setting == "untrained" else cell.setting
    settings = {"degraded": "degraded", "clean": "clean", "enhanced": trained}
    return [
        {**labels, "setting": settings[state], "test_site": "all", "n": len(slices), **of_state}
        for state, of_state in figures.items()
    ]


def _of_judge(metrics: Mapping[str, float], name: str) -> dict[str, float]:
    """`judge_dice`, `judge_accuracy`, or `dice_<net>` of one of the four downstream networks."""
    found = {key: metrics[key] for key in ("dice", "accuracy") if key in metrics}
    return {f"{key}_{name}" if name in DOWNSTREAM else f"{name}_{key}": value for key, value in found.items()}


def conditions(cell: Cell) -> Row:
    """What the tables sort by, beside the labels that every row has; all of it follows from the cell's config."""
    campaign = cell.config.campaign
    objective = campaign.objective
    row: Row = {
        "recognition": objective.recognition if objective.steers else "none",
        "auxiliaries": objective.auxiliaries,
        "adam_states": campaign.training.adam_states,
        "optimiser": campaign.training.optimiser,
        "promotion": campaign.strategy.promotion,
        "enhancer": campaign.enhance.kind,
        "output": campaign.enhance.output,
        "recogniser": campaign.recognise.kind,
        "mask_weight": objective.mask_weight,
        "diagnosis_weight": objective.diagnosis_weight,
        "learning_rate": campaign.training.learning_rate,
        "warmup": objective.warmup,
        "rounds": campaign.rounds.rounds,
        "local_steps": campaign.training.local_steps,
        "scanners": _scanners(cell.config),
        "data_consistency": campaign.enhance.data_consistency,
        "relative": objective.relative,
        "norm_cap": objective.norm_cap,
        "cell": cell.key,
    }
    if objective.adversarial:
        row["adversarial_weight"] = objective.critic.adversarial_weight
    if cell.setting == "federated":
        row["server_learning_rate"] = campaign.strategy.server_learning_rate
    if campaign.degrade.kind in ("gaussian", "composite"):
        row["sigma"] = campaign.degrade.sigma[1]
    if objective.kind == "plain" and campaign.enhance.kind == "cnn3":
        row["method"] = "cnn3"
    if objective.kind == "mse-wgan" and campaign.enhance.attention:
        row["method"] = "sa-wgan"
    if cell.setting == "untrained":
        row |= {"method": "nlm", "recognition": "none", "gate": "off"}
    return row


def _scanners(config: SimulationConfig) -> str:
    if config.campaign.data.kind in REAL:
        return "as they are"
    scanners = {repr(hospital.scanner) for hospital in config.hospitals.sites[: config.sites]}
    return "equal" if len(scanners) == 1 else "as they are"


def _mean_rows(of_models: Sequence[list[Row]]) -> list[Row]:
    """Rows of several models judged by the same images (local ones), as one model's."""
    return [mean_row(rows) for rows in zip(*of_models, strict=True)]


def mean_row(rows: Sequence[Row]) -> Row:
    """One row of several models' (or several tests'): the mean of each figure that all of them have, the first one's
    labels."""
    figures = {key for key, value in rows[0].items() if isinstance(value, float) and key not in _LABELS}
    common = [key for key in rows[0] if key in figures and all(key in row for row in rows)]
    mean = {key: float(np.mean([row[key] for row in rows])) for key in common}
    return {**{key: value for key, value in rows[0].items() if key not in figures}, **mean}


_LABELS = (
    *("lambda", "sigma", "norm_cap", "mask_weight", "diagnosis_weight", "learning_rate", "warmup"),
    *("adversarial_weight", "server_learning_rate", "diagnoses", "mask_ssl_weight", "threshold"),
    *("guidance", "task_weight"),
)
"""Numbers that say what was run, and are no figure of it."""


class _NonLocalMeans(nn.Module):
    """A denoiser that learns nothing, in the place of an enhancer."""

    def forward(self, image_BCHW: Tensor) -> Tensor:
        from simulation.study.denoisers import non_local_means

        return non_local_means(image_BCHW)
