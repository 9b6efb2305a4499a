"""A federation's final weights and its sites' stores in, the comparison out: rows, pictures, a record for the report.

    datas      every site's slices; in a simulation one process may hold them all
    models     federated, local per site, pooled: equal budgets (simulation/comparators.py)
    judged     every model on every site's test: the site x model matrix
    pseudo     how many pseudo-labels of the federated model are right (simulation/pseudo.py)
    rows       of report.json (simulation/rows.py), claims over all seeds (simulation/claims.py)

Several comparisons (seeds, objectives) stand in one record; server/report.py makes the page from it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from client.dataset import SiteData, Slices, merge, open_site
from client.evaluate import STATES, Scores, evaluate
from client.site import SiteSetup
from server.about import versions
from server.closing import labels_of
from server.private import of_row
from shared.checkpoint import write_atomically
from shared.config import (
    CampaignConfig,
    MachineConfig,
    ScannerConfig,
    SimulationConfig,
    campaign_digest,
    to_dict,
    without_places,
)
from shared.errors import ConfigError
from shared.networks import Networks, build_networks
from shared.recognise.metrics import of_all_patients
from shared.types import Arrays
from shared.weights import load_arrays
from simulation import explained, pictures
from simulation.claims import claims_of
from simulation.comparators import Model, OnStep, lanes_of, side_by_side, train_comparators
from simulation.progress import ModelStep
from simulation.pseudo import pseudo_labels_judged
from simulation.rows import TAUGHT, Judged, Row, metrics_of, rows_of


class Federated(Protocol):
    """What is needed of simulation.run.FederationResult."""

    @property
    def weights(self) -> Arrays: ...
    @property
    def records(self) -> Sequence[Mapping[str, Any]]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """One seed of one method: its rows, round records, data sheet, pictures, and the seconds that comparing took."""

    method: str
    seed: int
    rows: tuple[Row, ...]
    rounds: tuple[Mapping[str, Any], ...]
    sites: Mapping[str, Mapping[str, Any]]
    pictures: pictures.Pictures
    seconds: Mapping[str, float]
    pseudo_labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By site: offered, accepted, known, right (see simulation/pseudo.py); {} where none are made."""
    phases: tuple[Mapping[str, Any], ...] = ()
    """Round records of a generator's phases, which came before `rounds`."""


def compare(
    config: SimulationConfig,
    seed: int,
    stores: Mapping[str, Path],
    federated: Federated,
    *,
    machine: MachineConfig,
    on_event: OnStep,
    elsewhere: Mapping[str, Path] | None = None,
) -> Comparison:
    """Train the comparators that `config.compare` asks for and judge every model on every site's test.

    `elsewhere` are the stores of another data set (`data.test=`), whose test patients every enhancer is judged on too.
    `on_event` gets a ModelStep after each step of a comparator. Raises DataError for a store that cannot be used.
    """
    campaign = replace(config.campaign, seed=seed)
    datas = {site: _opened(store, site, campaign, machine) for site, store in stores.items()}
    together = merge(list(datas.values()))

    began = time.perf_counter()
    comparators = train_comparators(campaign, list(datas.values()), together, config.compare, machine, on_event)
    models = [_federated(campaign, federated), *(model for model in comparators if model.setting != "judge")]
    judge = next((model for model in comparators if model.setting == "judge"), None)
    trained = time.perf_counter()

    lanes, single = lanes_of(campaign, machine)
    work = [partial(_judged, model, datas, campaign, single, judge) for model in models]
    judged = side_by_side(work, lanes, on_event)
    costs = {(model.setting, model.site): _cost(model, federated) for model in models}
    rows = rows_of(judged, labels_of(to_dict(campaign)), costs)
    protected = of_row(to_dict(campaign))
    rows = [{**row, **(protected if row["setting"] == "federated" else {})} for row in rows]
    if elsewhere:
        rows += _elsewhere_rows(elsewhere_config(config, campaign), elsewhere, models, single, campaign.data.kind)
    networks = models[0].networks
    pseudo = pseudo_labels_judged(networks, datas, stores, campaign, machine)
    chosen = pictures.chosen_of(networks, datas, judged[0], campaign, machine)
    shown = {
        **pictures.examples(networks, datas, chosen, campaign, machine),
        **explained.explanations(networks, datas, chosen, campaign, machine),
        **explained.diagnoses(networks, datas, chosen, campaign, machine),
        **explained.features(networks, chosen, campaign, machine),
        **pictures.score_arrays(judged),
        **pictures.histograms(datas),
    }
    return Comparison(
        method=campaign.objective.kind,
        seed=seed,
        rows=tuple(rows),
        rounds=tuple(of_training(federated.records)),
        sites={site: _sheet(data, config) for site, data in datas.items()},
        pictures=shown,
        seconds={"comparators": trained - began, "judging": time.perf_counter() - trained},
        pseudo_labels=pseudo,
        phases=tuple(of_generator(federated.records)),
    )


def _opened(store: Path, site: str, campaign: CampaignConfig, machine: MachineConfig) -> SiteData:
    """A site's slices; where the campaign draws synthetic images, with those that the site drew for the federation, so
    that every model learns from the same ones."""
    data = open_site(store, site, campaign)
    if not campaign.augment.generated:
        return data
    from client.generate.synthetic import site_synthetic
    from client.generators import kept_generator

    setup = SiteSetup(site, store, machine, {})
    generator = kept_generator(setup.generators, campaign)
    synthetic = site_synthetic(generator, data.train, campaign, setup, held_out=data.validation)
    return replace(data, train=replace(data.train, synthetic=synthetic))


def of_training(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records of the rounds that trained enhancer and recogniser: not those of a generator's phases."""
    return [record for record in records if record.get("phase", "train") == "train"]


def of_generator(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The others: those of a generator's phases."""
    return [record for record in records if record.get("phase", "train") != "train"]


def elsewhere_config(config: SimulationConfig, campaign: CampaignConfig | None = None) -> SimulationConfig:
    """The same campaign over the hospitals of `data.test=`."""
    assert config.cross is not None
    campaign = campaign or config.campaign
    rounds = replace(campaign.rounds, quorum=1)  # nobody trains there
    there = replace(campaign, data=config.cross.data, rounds=rounds)
    sites = len(config.cross.hospitals.sites)
    return replace(config, campaign=there, hospitals=config.cross.hospitals, sites=sites, cross=None)


def check_elsewhere(config: SimulationConfig) -> None:
    """Refuse a `data.test=` that could not be tested on, before anything is trained; ConfigError."""
    if config.cross is None:
        return
    data = config.cross.data
    if data.kind == "store":
        raise ConfigError("data.test=store is not possible: stores say nothing of their sites; choose another data set")
    if data.kind in ("hippocampus", "pneumonia", "totalseg") and (data.root is None or not Path(data.root).is_dir()):
        raise ConfigError(f"data.test={data.kind} needs data.test_root=FOLDER, a folder that holds it")
    if data.channels != config.campaign.data.channels:
        raise ConfigError(
            f"data.test={data.kind} has images of {data.channels} channel, and data.channels is "
            f"{config.campaign.data.channels}; choose another data set to test on"
        )
    try:
        elsewhere_config(config)
    except ConfigError as error:
        raise ConfigError(f"data.test={data.kind} does not go with this campaign: {error}") from None


def _elsewhere_rows(
    there: SimulationConfig, stores: Mapping[str, Path], models: Sequence[Model], machine: MachineConfig, learned: str
) -> list[Row]:
    """Image quality on patients, scanners and organs that no model was trained on; its recogniser knows other classes,
    so nothing is recognised."""
    campaign = there.campaign
    if campaign.enhance.kind == "none":
        return []
    slices = merge([open_site(store, site, campaign) for site, store in stores.items()]).test
    labels = {**labels_of(to_dict(campaign)), "data": learned, "test_data": campaign.data.kind}
    labels |= {"test_site": "all"}
    rows: list[Row] = []
    local: list[dict[str, float]] = []
    for model in models:
        blind = Networks(model.networks.enhancer, build_networks(campaign).recogniser)
        values = evaluate(blind, slices, campaign, machine).values
        figures = {state: _quality(values, state) for state in ("degraded", "enhanced")}
        if model.setting == "federated":
            rows.append({**labels, "setting": "degraded", "n": len(slices), **figures["degraded"]})
        if model.setting == "local":
            local.append(figures["enhanced"])
        else:
            rows.append({**labels, "setting": model.setting, "n": len(slices), **figures["enhanced"]})
    if local:
        mean = {key: float(np.mean([figures[key] for figures in local])) for key in local[0]}
        rows.append({**labels, "setting": "local", "n": len(slices), **mean})
    return rows


def _quality(values: Mapping[str, npt.NDArray[np.float64]], state: str) -> dict[str, float]:
    found = metrics_of([values], state)
    return {key: value for key, value in found.items() if key.startswith(("psnr_db", "ssim", "rmse"))}


def write_record(
    run_dir: Path,
    config: SimulationConfig,
    comparisons: Sequence[Comparison],
    *,
    wall_s: float,
    timings: Mapping[str, float] | None = None,
) -> Path:
    """Write record.json and pictures/ for server.report; `timings` are seconds of the other parts of the run."""
    rows = [row for comparison in comparisons for row in comparison.rows]
    for comparison in comparisons:
        name = f"{comparison.method}-seed{comparison.seed}.npz"
        pictures.write_pictures(run_dir / "pictures" / name, comparison.pictures)
    seconds: dict[str, float] = dict(timings or {})
    for comparison in comparisons:
        for part, value in comparison.seconds.items():
            seconds[part] = seconds.get(part, 0.0) + value
    record = {
        "experiment": config.experiment,
        "seeds": list(dict.fromkeys(comparison.seed for comparison in comparisons)),
        "config_digest": campaign_digest(config.campaign),
        "versions": versions(),
        "wall_s": wall_s,
        "rows": rows,
        "claims": _claims(rows, config),
        "runs": [_run(comparison) for comparison in comparisons],
        "config": without_places(to_dict(config)),
        "sites": dict(comparisons[0].sites) if comparisons else {},
        "timings": seconds,
    }
    write_atomically(run_dir / "record.json", (json.dumps(record, allow_nan=False) + "\n").encode())
    return run_dir / "record.json"


def _run(comparison: Comparison) -> dict[str, Any]:
    run: dict[str, Any] = {"method": comparison.method, "seed": comparison.seed, "rounds": list(comparison.rounds)}
    run |= {"pseudo_labels": comparison.pseudo_labels} if comparison.pseudo_labels else {}
    return run | ({"phases": list(comparison.phases)} if comparison.phases else {})


def _claims(rows: Sequence[Row], config: SimulationConfig) -> list[dict[str, Any]]:
    campaign = config.campaign
    return claims_of(rows, config.compare, masks=bool(campaign.masks), enhancer=campaign.enhance.kind != "none")


def _federated(campaign: CampaignConfig, federated: Federated) -> Model:
    networks = build_networks(campaign)
    own = {name: values for name, values in federated.weights.items() if name.partition(".")[0] in networks.all}
    load_arrays(networks, own)
    training = [site for record in of_training(federated.records) for site in record["training"].values()]
    return Model(
        "federated",
        "all",
        networks,
        sum(site["samples"] for site in training),
        sum(site.get("seconds", 0.0) for site in training),
    )


def _judged(
    model: Model,
    datas: Mapping[str, SiteData],
    campaign: CampaignConfig,
    machine: MachineConfig,
    judge: Model | None,
    on_step: OnStep,
) -> Judged:
    """The model on every site's test, with the judge's Dice beside its own recogniser's."""
    scores: dict[str, Scores] = {}
    by_test: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    name = f"judging {model.setting}" + ("" if model.site == "all" else f" {model.site}")
    for done, (site, data) in enumerate(datas.items(), start=1):
        scores[site] = evaluate(model.networks, data.test, campaign, machine)
        by_test[site] = dict(scores[site].values)
        if judge is not None and campaign.masks:
            apart = Networks(model.networks.enhancer, judge.networks.recogniser)
            found = evaluate(apart, data.test, campaign, machine).values
            by_test[site] |= {
                f"{state}.judge_dice": found[f"{state}.dice"] for state in STATES if f"{state}.dice" in found
            }
        on_step(ModelStep(name, done, len(datas)))
    return Judged(
        model.setting,
        model.site,
        by_test,
        _over_all(list(scores.values()), campaign.data.diagnoses),
        {site: len(data.test) for site, data in datas.items()},
        taught(datas[model.site].train) if model.setting == "local" else {},
    )


def taught(train: Slices) -> dict[str, int]:
    """Labels that a site trains with, those that data.labels hides not counted: slices with a mask, patients with a
    diagnosis."""
    diagnosed = set(train.patient_N[train.diagnosis_N >= 0].tolist())
    return {TAUGHT["masks"]: int(train.has_mask_N.sum()), TAUGHT["diagnoses"]: len(diagnosed)}


def _over_all(scores: Sequence[Scores], diagnoses: Sequence[str]) -> dict[str, float]:
    """AUC and F1 over the patients of all sites together; an average of the sites' values would be another figure."""
    figures = {}
    for state in STATES:
        parts = [score.patients[state] for score in scores if state in score.patients]
        if parts:
            probabilities_PN, diagnosis_P = (np.concatenate(part) for part in zip(*parts, strict=True))
            found = of_all_patients(probabilities_PN, diagnosis_P, diagnoses)
            figures.update({f"{state}.{name}": value for name, value in found.items()})
    return figures


def _cost(model: Model, federated: Federated) -> Row:
    cost: Row = {"samples_seen": float(model.samples_seen), "seconds": float(model.seconds)}
    if model.setting == "federated":
        cost["bytes_up"] = float(sum(record["bytes_up"] for record in federated.records))
    return cost


def _sheet(data: SiteData, config: SimulationConfig) -> dict[str, Any]:
    """What the data table says of the site: counts of its store, the labels that it trains with, and the scanner where
    the hospital was simulated."""
    sheet: dict[str, Any] = {**data.counts, **taught(data.train)}
    for hospital in config.hospitals.sites:
        if hospital.name == data.site and hospital.scanner != ScannerConfig():
            sheet["scanner"] = _scanner(hospital.scanner)
    return sheet


def _scanner(scanner: ScannerConfig) -> str:
    words = [f"noise {scanner.noise:g}", f"bias {scanner.bias_field:g}", f"blur {scanner.psf_mm:g} mm"]
    return ", ".join([f"gamma {scanner.contrast_gamma:g}", *words])
