"""One cell of the recognition study in, its rows out: who trained on which labels, judged on whose patients.

    domain in      patients of the hospitals that the models were trained on
    domain cross   patients of a hospital (`unseen`) that nobody trained on

Every model is judged on each site's test patients and on those of all trained sites together; figures of a row over
several sites are over their images (or patients), not over sites. The summary of `local` is the mean over the sites'
models: of each on all tests, or, where the study asks for the drop to an unseen hospital, of each on its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from client.dataset import Slices, merge
from client.evaluate import evaluate
from server.closing import labels_of
from shared.config import LabelsConfig, MachineConfig, SimulationConfig, to_dict
from shared.networks import Networks
from simulation.rows import metrics_of
from simulation.study.cell import Cohort, Result, Row, Say, conditions, mean_row, opened, trained
from simulation.study.grid import Cell
from simulation.study.pictures import cell_pictures


def run_recogniser_cell(cell: Cell, folder: Path, machine: MachineConfig, say: Say) -> Result:
    """Train and judge one cell; data are kept in `folder` for the next.

    Raises ConfigError, DataError or PeerError, as a campaign run alone does.
    """
    began = time.perf_counter()
    everybody = opened(cell.config, folder)
    seen = tuple(data for data in everybody.datas if data.site != cell.unseen)
    training = Cohort(seen, merge(seen), {data.site: everybody.stores[data.site] for data in seen}, everybody.recipe)
    models, records = trained(cell, training, folder, machine, say)
    names = [data.site for data in seen] if cell.setting == "local" else ["all"]
    rows: list[Row] = []
    for name, networks in zip(names, models, strict=True):
        rows += _site_rows(cell, name, networks, everybody, machine)
    rows += _summary(cell, models, training, rows, machine)
    pictures = cell_pictures(models[0], training.together, cell.config.campaign, machine) if cell.seed == 0 else []
    return Result(tuple(rows), tuple(records), time.perf_counter() - began, tuple(pictures))


def _site_rows(cell: Cell, site: str, networks: Networks, data: Cohort, machine: MachineConfig) -> list[Row]:
    """The model of `site` (or of "all") on each hospital's own test."""
    return [_row(cell, networks, there.test, machine, site=site, test_site=there.site) for there in data.datas]


def _summary(
    cell: Cell, models: Sequence[Networks], training: Cohort, rows: Sequence[Row], machine: MachineConfig
) -> list[Row]:
    together = training.together
    found = []
    if len(together.validation):
        found.append(
            mean_row([_row(cell, networks, together.validation, machine, split="validation") for networks in models])
        )
    if cell.setting == "local" and cell.unseen:
        found.append(mean_row([row for row in rows if row["site"] == row["test_site"]]))
    else:
        found.append(mean_row([_row(cell, networks, together.test, machine) for networks in models]))
    if cell.unseen:
        found.append({**mean_row([row for row in rows if row["test_site"] == cell.unseen]), "domain": "cross"})
    return [{**row, "site": "all", "test_site": "all"} for row in found]


def _row(
    cell: Cell,
    networks: Networks,
    slices: Slices,
    machine: MachineConfig,
    *,
    site: str = "all",
    test_site: str = "all",
    split: str = "test",
) -> Row:
    scores = evaluate(networks, slices, cell.config.campaign, machine, surfaces=split == "test")
    labels = {**labels_of(to_dict(cell.config.campaign)), **conditions(cell), **recognition_conditions(cell)}
    labels |= {"setting": cell.setting, "split": split, "site": site, "test_site": test_site}
    labels |= {"domain": "cross" if test_site == cell.unseen else "in", "n": len(slices)}
    return {**labels, **metrics_of([scores.values], "enhanced")}


def recognition_conditions(cell: Cell) -> dict[str, Any]:
    """What the tables of recognition sort by; all of it follows from the cell's config."""
    campaign = cell.config.campaign
    learn, selfreg = campaign.learn, campaign.selfreg
    masks, diagnoses, words = label_budget(cell.config, cell.unseen)
    return {
        "method": f"{learn.kind}{selfreg.suffix}",
        "objective": "none" if campaign.enhance.kind == "none" else campaign.objective.kind,
        "labels": words,
        "masks": masks,
        "diagnoses": diagnoses,
        "mask_ssl": learn.mask_ssl,
        "mask_ssl_weight": learn.mask_ssl_weight,
        "threshold": learn.threshold,
        "saliency": learn.saliency,
        "selfreg": selfreg.suffix.removeprefix("+") or "none",
        "selfreg_form": selfreg.consistency,
        "unseen": cell.unseen,
    }


def label_budget(config: SimulationConfig, unseen: str = "") -> tuple[int | None, float | None, str]:
    """Masks over all sites that train, share of diagnoses (None: all of them, or sites differ), and both in words."""
    sites = [hospital.name for hospital in config.hospitals.sites[: config.sites] if hospital.name != unseen]
    budgets = [(config.campaign.data.labels or {}).get(site, LabelsConfig()) for site in sites]
    words, masks, share = [], None, None
    if config.campaign.data.masks:
        counts = [budget.masks for budget in budgets]
        known = [count for count in counts if count is not None]
        masks = sum(known) if len(known) == len(counts) else None
        words.append(
            "all masks" if not known else f"{sum(known)} masks" if masks is not None else "masks of some sites"
        )
    if config.campaign.data.diagnoses:
        shares = {None if budget.diagnoses == 1 else budget.diagnoses for budget in budgets}
        share = next(iter(shares)) if len(shares) == 1 else None
        some = f"{100 * share:g} % diagnoses" if share is not None else "diagnoses that differ between sites"
        words.append("all diagnoses" if shares == {None} else some)
    return masks, share, ", ".join(words)
