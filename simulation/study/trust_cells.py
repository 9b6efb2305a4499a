"""One cell of the trust study in, its rows out: a federation that is attacked or protected, judged on true labels.

Every hospital's test patients count, those of the malicious ones too, with what really is in their images. `seconds`
and `bytes_up` are of all training rounds; epsilon is what the ledgers of the sites say was spent, at the site that
spent most; `privacy_cosine` is the mean over sites and rounds of what a simulated site measures (client/privacy.py).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from client.dataset import SiteData
from client.evaluate import evaluate
from server.closing import labels_of
from shared.config import CampaignConfig, MachineConfig, to_dict
from shared.events import Event, RoundFinished
from shared.networks import Networks, build_networks
from shared.weights import load_arrays
from simulation.adversaries import backdoor_success, run_poisoned
from simulation.hospitals.cohort import hospitals_of
from simulation.rows import metrics_of
from simulation.run import FederationResult
from simulation.study.cell import Result, Row, Say, conditions, opened
from simulation.study.grid import Cell

FIGURES = ("psnr_db", "ssim", "rmse", "dice", "accuracy")
STATES = {"degraded": "degraded", "clean": "clean", "enhanced": "federated"}
"""State of an image -> setting of its row."""
COSINE = "privacy.cosine"


def run_trust_cell(cell: Cell, folder: Path, machine: MachineConfig, say: Say) -> Result:
    """Train and judge one federation; data are kept in `folder` for the next.

    Raises ConfigError, DataError or PeerError, as a campaign run alone does.
    """
    began = time.perf_counter()
    campaign, adversaries = cell.config.campaign, cell.config.adversaries or {}
    data = opened(cell.config, folder)
    place = folder / "federations" / cell.key
    shutil.rmtree(place, ignore_errors=True)  # of a run that was interrupted: its seconds would be lost

    def told(event: Event) -> None:
        if isinstance(event, RoundFinished):
            say(f"round {event.round} of {campaign.rounds.rounds}")

    result = run_poisoned(campaign, data.stores, place, adversaries, cell.config.transport, machine, told)
    found = {**_costs(result), **_privacy(campaign, place, list(data.stores), result)}
    shutil.rmtree(place, ignore_errors=True)
    networks = build_networks(campaign)
    load_arrays(networks, result.weights)
    say("judging")
    if set(adversaries.values()) <= {"backdoor"} and not campaign.privacy.on:  # without it: what a patch alone hides
        found |= backdoor_success(networks, data.together.test, campaign, machine)
    rows = _rows(cell, networks, data.together, machine)
    rows = [{**row, **(found if row["setting"] == "federated" else {})} for row in rows]
    honest = [site for site in data.stores if site not in adversaries]
    rounds = [_round(record, honest) for record in result.records]
    return Result(tuple(rows), tuple(rounds), time.perf_counter() - began)


def _rows(cell: Cell, networks: Networks, data: SiteData, machine: MachineConfig) -> list[Row]:
    values = evaluate(networks, data.test, cell.config.campaign, machine).values
    labels = {**labels_of(to_dict(cell.config.campaign)), **conditions(cell), **trust_conditions(cell)}
    rows = []
    for state, setting in STATES.items():
        metrics = metrics_of([values], state)
        figures = {key: metrics[key] for key in FIGURES if key in metrics}
        rows.append({**labels, "setting": setting, "test_site": "all", "n": len(data.test), **figures})
    return rows


def _costs(result: FederationResult) -> dict[str, float]:
    trained = [record for record in result.records if record["training"]]
    return {key: float(sum(record[key] for record in trained)) for key in ("seconds", "bytes_up")}


def _privacy(
    campaign: CampaignConfig, run_dir: Path, sites: Sequence[str], result: FederationResult
) -> dict[str, float]:
    """What was spent, with which noise, and how far the noise turned the updates."""
    if not campaign.privacy.on:
        return {}
    from shared.privacy.ledger import read_ledger, spent_on

    ledgers = [charges for site in sites if (charges := read_ledger(run_dir / "sites" / site))]
    found = {"delta": campaign.privacy.delta, "epsilon": max(spent_on(charges) for charges in ledgers)}
    found["noise_multiplier"] = float(np.mean([charge.multiplier for charges in ledgers for charge in charges]))
    told = [site for record in result.records for site in record["training"].values() if COSINE in site]
    return found | ({"privacy_cosine": float(np.mean([site[COSINE] for site in told]))} if told else {})


def _round(record: Mapping[str, Any], honest: Sequence[str]) -> dict[str, float]:
    """Dice and PSNR of the weights that came in with the round, over the honest sites' test images."""
    row = {"round": float(record["round"]), "dropped": float(len(record.get("dropped", {})))}
    for key in ("dice", "psnr_db"):
        there = [record["evaluation"][site].get(f"enhanced.{key}") for site in honest if site in record["evaluation"]]
        count = sum(moments["count"] for moments in there if moments)
        if count:
            row[key] = float(sum(moments["total"] for moments in there if moments) / count)
    return row


def trust_conditions(cell: Cell) -> dict[str, Any]:
    """What the tables of trust sort by; all of it follows from the cell's config."""
    config, campaign = cell.config, cell.config.campaign
    attacks = sorted(set((config.adversaries or {}).values()))
    row: dict[str, Any] = {
        "attack": ", ".join(attacks) or "none",
        "robust": campaign.strategy.robust,
        "secagg": campaign.secagg.kind,
        "privacy": campaign.privacy.kind,
        "hospitals": config.sites,
        "patients": sum(hospital.patients for hospital in hospitals_of(config)),
    }
    if campaign.privacy.on:
        row |= {"epsilon_budget": campaign.privacy.epsilon, "trained": campaign.privacy.trained}
    return row
