"""Rows in, claims out: did joining pay, by targets that were fixed before the run.

    federated is at least `gain_db` above degraded
    federated is at least the mean of the local models, on all sites' tests
    federated is at least the best of the local models that had labels of the metric's kind
    federated is within `pooled_gap_*` of pooled

Every value is federated minus the other over all sites' tests, mean over seeds; a claim holds when the value is at
least the target. One that does not hold stays in the report with its reason: where it fails most, and in which seeds.
A site without a mask (a diagnosis) to train with has no local model that Dice (accuracy) could be asked of: it is left
out, and the reason names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.summary import at_home
from shared.config import CompareConfig
from simulation.rows import kind_of_label, untaught

Rows = Sequence[Mapping[str, Any]]
_DECIMALS = {"psnr_db": 2, "dice": 3, "accuracy": 3}
_NAMES = {"psnr_db": "PSNR", "dice": "Dice", "accuracy": "accuracy"}
BEST = "best local"


@dataclass(frozen=True, slots=True)
class Promise:
    """`metric` of federated minus that of `other` is at least `target`."""

    metric: str
    other: str
    target: float

    def words(self) -> str:
        name, decimals = _NAMES[self.metric], _DECIMALS[self.metric]
        unit = " dB" if self.metric == "psnr_db" else ""
        if self.other == "degraded":
            return f"federated {name} at least {self.target:g}{unit} above degraded"
        if self.other == "local":
            return f"federated {name} at least the mean of the local models on all sites' tests"
        if self.other == BEST:
            kind = kind_of_label(self.metric)
            return f"federated {name} at least the best of the local models that had {kind}, on all sites' tests"
        return f"federated {name} within {-self.target:.{decimals}g}{unit} of pooled"


def promises(config: CompareConfig, *, masks: bool, enhancer: bool = True) -> list[Promise]:
    """What the run promises; a recogniser without masks is judged by accuracy and not Dice, an enhancer by PSNR."""
    task = "dice" if masks else "accuracy"
    made = [Promise("psnr_db", "degraded", config.gain_db)]
    if config.local:
        made += [Promise("psnr_db", "local", 0.0), Promise(task, "local", 0.0)]
        made += [Promise(metric, BEST, 0.0) for metric in ("dice", "accuracy") if masks or metric == task]
    if config.pooled:
        made += [Promise("psnr_db", "pooled", -config.pooled_gap_db), Promise(task, "pooled", -config.pooled_gap_dice)]
    return [promise for promise in made if enhancer or promise.metric != "psnr_db"]


def claims_of(rows: Rows, config: CompareConfig, *, masks: bool, enhancer: bool = True) -> list[dict[str, Any]]:
    """The claims of every method in `rows`; a promise on a metric that no test image defines is not made."""
    rows = [row for row in rows if at_home(row)]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    claims = []
    for method in methods:
        of_method = [row for row in rows if row["method"] == method]
        for promise in promises(config, masks=masks, enhancer=enhancer):
            by_seed = _differences(of_method, promise, "all")
            if by_seed:
                prefix = f"{method}: " if len(methods) > 1 else ""
                claims.append(_claim(promise, by_seed, of_method, f"{prefix}{promise.words()}", method))
    return claims


def _claim(promise: Promise, by_seed: Mapping[int, float], rows: Rows, words: str, method: str) -> dict[str, Any]:
    value = sum(by_seed.values()) / len(by_seed)
    claim: dict[str, Any] = {"claim": words, "value": value, "target": promise.target, "holds": value >= promise.target}
    claim["method"] = method
    if promise.metric == "psnr_db":
        claim["unit"] = "dB"
    reasons = [*_left_out(promise, rows), *([] if claim["holds"] else [_where(promise, rows)])]
    if len(by_seed) > 1:
        lowest, highest = min(by_seed.values()), max(by_seed.values())
        claim |= {"per_seed": {str(seed): each for seed, each in by_seed.items()}, "lowest": lowest, "highest": highest}
        reasons.append(f"{len(by_seed)} seeds: {_signed(promise, lowest)} to {_signed(promise, highest)}")
    reason = "; ".join(filter(None, reasons))
    return {**claim, "reason": reason} if reason else claim


def _left_out(promise: Promise, rows: Rows) -> list[str]:
    """The sites whose local models are no part of it, for want of labels."""
    if promise.other not in ("local", BEST):
        return []
    sites = list(dict.fromkeys(row["site"] for row in rows if untaught(row, promise.metric)))
    if not sites:
        return []
    one = len(sites) == 1
    return [
        f"without {', '.join(sites)}: {'it' if one else 'they'} had no {kind_of_label(promise.metric)} to train with"
    ]


def _where(promise: Promise, rows: Rows) -> str:
    """The site whose test images fall furthest behind."""
    gaps: dict[str, float] = {}
    for site in dict.fromkeys(row["test_site"] for row in rows if row["test_site"] != "all"):
        by_seed = _differences(rows, promise, site)
        if by_seed:
            gaps[site] = sum(by_seed.values()) / len(by_seed)
    if not gaps:
        return ""
    worst = min(gaps, key=lambda site: gaps[site])
    return f"federated minus {promise.other} is lowest on the tests of {worst}: {_signed(promise, gaps[worst])}"


def _signed(promise: Promise, value: float) -> str:
    return f"{value:+.{_DECIMALS[promise.metric]}f}" + (" dB" if promise.metric == "psnr_db" else "")


def _differences(rows: Rows, promise: Promise, test_site: str) -> dict[int, float]:
    """Federated minus the other on `test_site`, by seed."""
    found: dict[str, dict[int, float]] = {"federated": {}, promise.other: {}}
    for row in rows:
        over_all = row["site"] == "all" and row["test_site"] == test_site
        if over_all and promise.metric in row and row["setting"] in found:
            found[row["setting"]][row["seed"]] = row[promise.metric]
    ours, other = found["federated"], found[promise.other]
    if promise.other == BEST:
        other = _best_local(rows, promise.metric, test_site)
    return {seed: ours[seed] - other[seed] for seed in ours if seed in other}


def _best_local(rows: Rows, metric: str, test_site: str) -> dict[int, float]:
    """The highest figure among the sites' own models that were taught it, by seed."""
    best: dict[int, float] = {}
    for row in rows:
        of_site = row["setting"] == "local" and row["site"] != "all" and row["test_site"] == test_site
        if of_site and metric in row and not untaught(row, metric):
            best[row["seed"]] = max(best.get(row["seed"], row[metric]), row[metric])
    return best
