"""The coordinator's rounds.jsonl in, the record of a deployed campaign out: rows pooled exactly from sites' moments.

Sites send counts, sums and quantiles, never scores of single images; a sum over sites of those is the exact mean over
all images. What cannot be pooled from sums (AUC, F1, quantiles) stays per site.

A campaign with a generator has a rounds.jsonl for each of its phases; they are part of what it cost. One that has
nothing else has rows of the generator (server/generator.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from server.about import read_about
from server.generator import generator_rows
from server.private import of_row
from server.records import FILE, PHASES
from shared.config import Phase, SelfRegConfig, build, without_places
from shared.errors import DataError
from shared.metrics import one_per_test, pool
from shared.types import Metrics
from shared.wire.messages import read_metrics

_STATES: Mapping[str, str] = {"clean": "clean", "degraded": "degraded", "enhanced": "federated"}


def closing_record(run_dir: Path) -> dict[str, Any]:
    """The record of a deployed run: as record.json, with rows from the last evaluation and no comparators; `phases`
    holds the records of a generator's phases."""
    campaign, about = _campaign(run_dir / "campaign.json"), read_about(run_dir)
    phases = [record for path in phase_files(run_dir) for record in _rounds(path)]
    rounds = _rounds(run_dir / FILE) if (run_dir / FILE).is_file() else []
    everything = [*phases, *rounds]
    judged = [record for record in rounds or phases if record["evaluation"]]
    if not judged:
        raise DataError("rounds.jsonl holds no evaluation; resume the campaign until a round with one is finished")
    if rounds:
        rows, method = rows_of(judged[-1], everything, campaign), campaign["objective"]["kind"]
    else:
        method = str(campaign.get("generate", {}).get("kind", "generator"))
        rows = _with_cost(generator_rows(phases, {**_labels(campaign), "method": method}), everything)
    return {
        "experiment": campaign["name"],
        "seeds": [campaign["seed"]],
        "config_digest": about.get("config_digest", _digest(campaign)),
        "versions": about.get("versions", {}),
        "wall_s": sum(float(record["seconds"]) for record in everything),
        "rows": rows,
        "claims": [],
        "config": campaign,
        "sites": {site: about["sites"].get(site, {}) for site in sorted(judged[-1]["evaluation"])},
        "method": method,
        "rounds": rounds,
        "phases": phases,
    }


def phase_files(run_dir: Path) -> list[Path]:
    """The files of a generator's phases that have begun, in their order."""
    paths = (run_dir / PHASES / phase / FILE for phase in get_args(Phase))
    return [path for path in paths if path.is_file()]


def rows_of(
    judged: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], campaign: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows for degraded, clean and federated: one per site, one over all sites, with the cost of all `rounds`."""
    by_site = {site: _moments(metrics) for site, metrics in judged["evaluation"].items()}
    both = [*((site, [metrics]) for site, metrics in sorted(by_site.items())), ("all", list(by_site.values()))]
    rows = []
    for test_site, metrics in both:
        for state, setting in _STATES.items():
            figures = _pooled(metrics, state, test_site)
            if figures:
                protected = of_row(campaign) if setting == "federated" else {}
                rows.append({**labels_of(campaign), **protected, "setting": setting, "test_site": test_site, **figures})
    return _with_cost(rows, rounds)


def _with_cost(rows: Sequence[Mapping[str, Any]], rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What all rounds cost, phases of a generator included, in the federated row over all sites."""
    cost = {
        "bytes_up": sum(int(record["bytes_up"]) for record in rounds),
        "samples_seen": int(sum(site.get("samples", 0) for r in rounds for site in r["training"].values())),
        "seconds": sum(float(record["seconds"]) for record in rounds),
    }
    federated = ("all", "federated")
    return [{**row, **(cost if (row["test_site"], row["setting"]) == federated else {})} for row in rows]


def labels_of(campaign: Mapping[str, Any]) -> dict[str, Any]:
    """What every row of a campaign (given as plain values) carries.

    `gate`: off (recognition never steers), on (always), or the gate's name (client/train/gates.py).
    """
    objective = campaign["objective"]
    steered = {} if _gate(objective) == "off" else {"lambda": objective["task_weight"]}
    return {"method": _method(campaign), **_labels(campaign), **steered, "gate": _gate(objective)}


def _labels(campaign: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "seed": campaign["seed"],
        "data": campaign["data"]["kind"],
        "degradation": campaign["degrade"]["kind"],
        "split": "test",
        "site": "all",
    }


def _method(campaign: Mapping[str, Any]) -> str:
    """The objective; of a recogniser alone, what it learns from: unet, multimix+selfreg, ..."""
    if campaign.get("enhance", {}).get("kind") != "none":
        return str(campaign["objective"]["kind"])
    return f"{campaign['learn']['kind']}{build(SelfRegConfig, campaign['selfreg']).suffix}"


def _gate(objective: Mapping[str, Any]) -> str:
    if objective["kind"] in ("gradprom", "todnet-gated"):
        return str(objective.get("gate", "global"))
    return "off" if objective["kind"] in ("plain", "mse-wgan", "vgg-wgan") else "on"


def _pooled(metrics: Sequence[Metrics], state: str, test_site: str) -> dict[str, Any]:
    """Means over all images of the sites in `metrics`, for the keys of one state of the image, with n (of images) and
    the patients that accuracy is a share of."""
    figures: dict[str, Any] = {}
    for key, moments in sorted(pool(metrics).items()):
        name = key.removeprefix(state + ".")
        if name == key or not moments.count or (one_per_test(name) and test_site == "all"):
            continue
        figures[name] = moments.mean
        figures["n"] = max(figures.get("n", 0), moments.count)
        if name == "accuracy":
            figures["patients"] = moments.count
    return figures


def _moments(metrics: Mapping[str, Any]) -> Metrics:
    try:
        return read_metrics(metrics)
    except DataError:
        raise DataError("rounds.jsonl has an evaluation without count, total and total_sq; restore the file") from None


def _rounds(path: Path) -> list[dict[str, Any]]:
    """The finished rounds in order. A last line that was cut by a crash is not a finished round."""
    records = []
    lines = path.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line, parse_constant=lambda _: None)
            whole = {"round", "seconds", "bytes_up", "training", "evaluation"} <= record.keys()
        except (ValueError, AttributeError):
            if number == len(lines):
                break
            whole = False
        if not whole:
            raise DataError(f"rounds.jsonl line {number} is not a round record; restore the file from a copy")
        records.append(record)
    return records


def _campaign(path: Path) -> dict[str, Any]:
    """The agreed campaign as plain values: an old report must not fail because a newer config has more keys."""
    try:
        campaign = json.loads(path.read_text())
        known = {"name", "seed", "data", "degrade", "objective"} <= campaign.keys()
    except (OSError, ValueError, AttributeError):
        known = False
    if not known:
        raise DataError("run folder has rounds.jsonl but no readable campaign.json; copy the agreed campaign into it")
    return dict(campaign)


def _digest(campaign: Mapping[str, Any]) -> str:
    """The digest that the sites agreed on: as shared.config.campaign_digest, over the file's own keys."""
    values = without_places(campaign)
    values["data"].pop("test", None)
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
