"""Rows of the trust study in, its claims out, by rules and targets that were fixed before the run.

A claim is a mean over the seeds that both sides have, and says beside it what the interval holds; a claim whose rows
are missing is not made, and its kind is listed as not examined. One that does not hold stays. The kinds and the rule of
each stand in server/trust/promises.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from server.study.statistics import BySeed, Difference, of_differences, paired
from server.study.wording import signed
from server.trust.promises import COLLAPSED_DICE, MOST_BYTES, MOST_LOST_DB, MOST_LOST_DICE
from server.trust.rows import PLAIN, Model, Place, Sheet, sheet_of
from server.trust.tables import is_attacked
from server.trust.wording import AGGREGATIONS, ATTACKS, label, ordered, place_label

Rows = Sequence[Mapping[str, Any]]
Claim = dict[str, Any]
PROMISING = ("trimmed_mean", "multi_krum")
"""The others are shown, and nothing is promised of them."""
COLLAPSING = ("scaled", "flipped", "labels")
"""A backdoor is made to leave Dice as it is."""


def claims_of(rows: Rows, cells: Rows = ()) -> list[Claim]:
    """The claims that the study was set up to examine, for the tables that have rows. `cells` are not needed."""
    claims: list[Claim] = []
    for table in dict.fromkeys(str(row.get("table", "")) for row in rows):
        sheet = sheet_of(rows, [table])
        for place in sheet.places:
            if is_attacked(table):
                claims += _robust(sheet, place, table)
            if table.startswith("privacy"):
                claims += _private(sheet, place, table)
            if table.startswith("masked"):
                claims += _masked(sheet, place, table)
    return claims


def _claim(words: str, found: Difference, target: float, promise: str, table: str, metric: str, **more: Any) -> Claim:
    """`holds`: at most the target where `at_most` is given, else above it."""
    holds = found.mean <= target if "at_most" in more else found.mean > target
    claim: Claim = {"claim": words, "value": found.mean, "target": target, "holds": holds, **more}
    claim |= {"promise": promise, "table": table, "reason": _ends(found, metric)}
    claim["per_seed"] = {str(seed): value for seed, value in found.by_seed.items()}
    return claim | ({} if found.low is None else {"low": found.low, "high": found.high})


def _ends(found: Difference, metric: str) -> str:
    if found.low is None or found.high is None:
        return "one seed, no interval"
    ends = f"{signed(metric, found.low)} to {signed(metric, found.high)}"
    return f"95 % interval over {len(found.by_seed)} seeds: {ends}"


def _lost(sheet: Sheet, model: Model, place: Place, metric: str) -> Difference | None:
    return paired(sheet.values(PLAIN, place, metric), sheet.values(model, place, metric))


def _robust(sheet: Sheet, place: Place, table: str) -> Iterator[Claim]:
    where = place_label(place)
    for attack, words in ATTACKS.items():
        if attack == "none":
            continue
        of_mean = Model(attack, "none")
        for robust in PROMISING:
            lost = _lost(sheet, Model(attack, robust), place, "dice")
            if lost is not None:
                text = f"{where}: Dice lost with {AGGREGATIONS[robust]} against {words}"
                yield _claim(text, lost, MOST_LOST_DICE, "kept", table, "dice", at_most=True)
            if attack == "backdoor":
                yield from _hidden(sheet, place, table, robust)
        lost = _lost(sheet, of_mean, place, "dice") if attack in COLLAPSING else None
        if lost is not None:
            text = f"{where}: Dice lost with FedAvg against {words}"
            yield _claim(text, lost, COLLAPSED_DICE, "collapse", table, "dice")


def _hidden(sheet: Sheet, place: Place, table: str, robust: str) -> Iterator[Claim]:
    metric = "backdoor_success"
    mine, mean = (sheet.values(Model("backdoor", kind), place, metric) for kind in (robust, "none"))
    found = paired(mean, mine)
    if found is not None:
        text = f"{place_label(place)}: rate of the backdoor's success with FedAvg less that with {AGGREGATIONS[robust]}"
        yield _claim(text, found, 0.0, "backdoor", table, metric)


def _private(sheet: Sheet, place: Place, table: str) -> Iterator[Claim]:
    for model in ordered(sheet.models):
        spent = sheet.values(model, place, "epsilon")
        if spent:
            text = f"{place_label(place)}: epsilon spent with {label(model)}"
            yield _claim(text, _most(spent), model.epsilon_budget, "budget", table, "epsilon", at_most=True)
        whole = replace(model, trained="all")
        if model.privacy == "none" or model == whole:
            continue
        gained = paired(sheet.values(model, place, "psnr_db"), sheet.values(whole, place, "psnr_db"))
        if gained is not None:
            text = f"{place_label(place)}: PSNR with {label(model)} above that with all weights trained, dB"
            yield _claim(text, gained, 0.0, "smaller", table, "psnr_db")


def _most(values: BySeed) -> Difference:
    """A budget is kept by every seed or not at all: the largest stands for them."""
    return of_differences({max(values, key=lambda seed: values[seed]): max(values.values())})


def _masked(sheet: Sheet, place: Place, table: str) -> Iterator[Claim]:
    for model in ordered(sheet.models):
        if model.secagg != "masked":
            continue
        visible = replace(model, secagg=PLAIN.secagg)
        quality = [sheet.values(each, place, "psnr_db") for each in (model, visible)]
        changed = {seed: abs(quality[0][seed] - quality[1][seed]) for seed in quality[0] if seed in quality[1]}
        if changed:
            text = f"{place_label(place)}: size of the change in PSNR by {label(model)}, dB"
            yield _claim(text, of_differences(changed), MOST_LOST_DB, "masked", table, "psnr_db", at_most=True)
        sent = [sheet.values(each, place, "bytes_up") for each in (model, visible)]
        ratio = {seed: sent[0][seed] / sent[1][seed] for seed in sent[0] if sent[1].get(seed)}
        if ratio:
            text = f"{place_label(place)}: bytes sent by {label(model)}, over those of visible updates"
            yield _claim(text, of_differences(ratio), MOST_BYTES, "bytes", table, "epsilon", at_most=True)
