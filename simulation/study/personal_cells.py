"""One cell of the personalisation study in, its rows out: a release adapted to a new scanner, judged on new and old.

    domain new    test patients of the hospital whose scanner is new (figures=online: single studies of it)
    domain old    test patients of the hospitals that trained the release, and of each of them

The settings degraded and clean are the images themselves; personalised is the release with its adaptation, which for
method=none is the release as it is. `trained_share` is counted in the weights: those that the adaptation has moved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from client.dataset import Slices
from client.evaluate import evaluate
from client.train.adapt import adapt
from server.closing import labels_of
from shared.config import CampaignConfig, DegradeConfig, MachineConfig, to_dict
from shared.networks import Networks
from simulation.rows import metrics_of
from simulation.study.cell import Result, Row, Say, conditions, opened
from simulation.study.grid import Cell
from simulation.study.judges import judge_of
from simulation.study.personal_orders import adapted_to_each, orders_of
from simulation.study.personal_pictures import personal_pictures
from simulation.study.personal_release import (
    Hospitals,
    campaign_of_new,
    hospitals_of,
    learned_from,
    model_of,
    planned_of,
    reference_of,
)

FIGURES = ("psnr_db", "ssim", "rmse", "dice", "accuracy")
STATES = {"degraded": "degraded", "clean": "clean", "enhanced": "personalised"}
"""State of an image -> setting of its row."""


def run_personal_cell(cell: Cell, folder: Path, machine: MachineConfig, say: Say) -> Result:
    """Train, adapt and judge one cell; data, releases and judges are kept in `folder` for the next.

    Raises ConfigError, DataError, RefusedError or PeerError, as a campaign run alone does.
    """
    began = time.perf_counter()
    hospitals = hospitals_of(cell, opened(cell.config, folder))
    release = model_of(cell, hospitals, folder, machine, say)
    campaign = cell.config.campaign
    judge = judge_of(campaign, hospitals.everybody, hospitals.recipe, folder / "judges", machine)
    if cell.figures == "online":
        rows = _online_rows(cell, release, hospitals, machine, say)
        return Result(tuple(rows), (), time.perf_counter() - began)
    adapted, record = adapted_of(cell, release, hospitals, machine, say)
    say("judging")
    rows = _rows(cell, adapted, hospitals, judge, machine)
    found = {"trained_share": moved_share(release, adapted), **_numbers(record, "phi")}
    if cell.figures == "orders":
        orders = orders_of(adapted, hospitals.new.test, campaign_of_new(cell), machine)
        rows = [{**row, **(orders.get(row["setting"], {}) if row["domain"] == "new" else {})} for row in rows]
    rows = [{**row, **(found if row["setting"] == "personalised" else {})} for row in rows]
    pictures = personal_pictures(cell, release, adapted, hospitals, machine) if cell.seed == 0 else []
    rounds = [_numbers(record, "gate_open_rate", "mean_cosine", "ascent_rate")]
    return Result(tuple(rows), tuple(filter(None, rounds)), time.perf_counter() - began, tuple(pictures))


def adapted_of(
    cell: Cell, release: Networks, hospitals: Hospitals, machine: MachineConfig, say: Say
) -> tuple[Networks, Mapping[str, Any]]:
    """The release as it is where nothing is adapted."""
    personal = planned_of(cell)
    if personal.adapt.method == "none":
        return release, {}
    return adapt(
        release,
        learned_from(cell, hospitals.new),
        campaign_of_new(cell),
        personal.adapt,
        machine,
        reference=reference_of(hospitals.old.together, cell.config.campaign),
        on_step=lambda done, total: say(f"{personal.method}: {done}/{total} steps"),
    )


def moved_share(release: Networks, adapted: Networks) -> float:
    """Share of the enhancer's weights that differ from the release's."""
    before, after = (dict(networks.enhancer.named_parameters()) for networks in (release, adapted))
    moved = sum(int((before[name].detach().cpu() != after[name].detach().cpu()).sum()) for name in before)
    return moved / sum(weights.numel() for weights in before.values())


def _numbers(record: Mapping[str, Any], *names: str) -> dict[str, float]:
    """Those that the record has."""
    values = {name: record[name] for name in names if isinstance(record.get(name), int | float)}
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


# --------------------------------------------------------------------------------------------------------------- rows


def _rows(cell: Cell, networks: Networks, hospitals: Hospitals, judge: nn.Module, machine: MachineConfig) -> list[Row]:
    """On the new scanner, then on the old ones together and one by one."""
    old = [each.site for each in hospitals.old.datas]
    new_rows = _judged(cell, networks, hospitals.new.test, judge, campaign_of_new(cell), machine, "new", [])
    return new_rows + _judged(
        cell, networks, hospitals.old.together.test, judge, cell.config.campaign, machine, "old", old
    )


def _judged(
    cell: Cell,
    networks: Networks,
    slices: Slices,
    judge: nn.Module,
    campaign: CampaignConfig,
    machine: MachineConfig,
    domain: str,
    sites: Sequence[str],
) -> list[Row]:
    """A row over all slices per state of the image, and one of the model per site. Every figure is per image but
    accuracy, which is left out of sites' rows."""
    own = evaluate(networks, slices, campaign, machine)
    of_judge = evaluate(Networks(networks.enhancer, judge), slices, campaign, machine).values
    labels = {**personal_labels(cell), "domain": domain, "site": "all"}
    rows = [
        {**labels, "setting": setting, "test_site": "all", "n": len(slices), **_figures(own.values, of_judge, state)}
        for state, setting in STATES.items()
    ]
    for site in sites:
        here_N = np.array([name.startswith(f"{site}/") for name in own.identity], dtype=bool)
        if here_N.any():
            found = _figures(_at(own.values, here_N), _at(of_judge, here_N), "enhanced")
            rows.append({**labels, "setting": "personalised", "test_site": site, "n": int(here_N.sum()), **found})
    return rows


Values = Mapping[str, npt.NDArray[np.float64]]


def _at(values: Values, here_N: npt.NDArray[np.bool_]) -> Values:
    per_image = ("psnr_db", "ssim", "rmse", "dice")
    return {key: value[here_N] for key, value in values.items() if key.partition(".")[2] in per_image}


def _figures(values: Values, of_judge: Values, state: str) -> dict[str, float]:
    own, judge = metrics_of([values], state), metrics_of([of_judge], state)
    figures = {key: own[key] for key in FIGURES if key in own}
    return figures | {f"judge_{key}": judge[key] for key in ("dice", "accuracy") if key in judge}


def _online_rows(cell: Cell, release: Networks, hospitals: Hospitals, machine: MachineConfig, say: Say) -> list[Row]:
    """Each study with the networks that were adapted to it; the old scanners under each of these in turn."""
    labels = {**personal_labels(cell), "site": "all", "test_site": "all"}
    found = adapted_to_each(cell, release, hospitals, machine, say)
    rows = []
    for domain, states in found.figures.items():
        for state, figures in states.items():
            rows.append({**labels, "domain": domain, "setting": state, "n": found.slices[domain], **figures})
    return rows


# -------------------------------------------------------------------------------------------------------------- labels


def personal_labels(cell: Cell) -> Row:
    """All labels of a row but domain, setting and test."""
    return {**labels_of(to_dict(cell.config.campaign)), **conditions(cell), **personal_conditions(cell)}


def personal_conditions(cell: Cell) -> dict[str, Any]:
    """What the tables of personalisation sort by; all of it follows from the cell's config."""
    personal, campaign = planned_of(cell), cell.config.campaign
    adapt_ = personal.adapt
    row: dict[str, Any] = {
        "method": personal.method,
        "release": cell.setting,
        "unseen": cell.unseen,
        "judged": cell.figures,
        "old_degradation": degradation_shown(campaign.degrade),
        "new_degradation": degradation_shown(personal.degrade),
        "studies": personal.studies,
    }
    if adapt_.method != "none":
        row |= {"loss": adapt_.loss, "steer": adapt_.steer, "adapt_steps": adapt_.steps}
        row |= {"labels": adapt_.labels} if adapt_.steer != "none" else {}
        row |= {"adapt_rate": adapt_.learning_rate}
        row |= {"rehearse": adapt_.rehearse} if adapt_.rehearse else {}
    if adapt_.method == "lastblocks":
        row["blocks"] = adapt_.blocks
    if adapt_.method == "tgd":
        row |= {"tgd_form": adapt_.tgd.form, "tgd_first_layer": adapt_.tgd.first_layer}
        row |= {} if adapt_.tgd.phi is None else {"tgd_phi": adapt_.tgd.phi}
    return row


def degradation_shown(degrade: DegradeConfig) -> str:
    """`gaussian, sigma 0.1`; with what else is stronger or weaker than it comes."""
    ends = to_dict(degrade)
    of_kind = {
        "gaussian": ("sigma",),
        "composite": ("blur_sigma_px", "peak", "sigma"),
        "poisson": ("peak",),
        "blur": ("blur_sigma_px",),
        "low_dose": ("dose",),
        "kspace": ("acceleration",),
    }.get(degrade.kind, ())
    words = [f"{_WORDS[name]} {_ends(ends[name])}" for name in of_kind]
    return ", ".join([degrade.kind.replace("_", " "), *words])


_WORDS = {"sigma": "sigma", "blur_sigma_px": "blur", "peak": "peak", "dose": "dose", "acceleration": "acceleration"}


def _ends(values: Sequence[float]) -> str:
    low, high = values
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
