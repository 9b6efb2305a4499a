"""Rows of the personalisation study in, its claims out, by rules and targets that were fixed before the run.

A claim is a mean over the seeds that both sides have, and says beside it what the interval holds; a claim whose rows
are missing is not made, and its kind is listed as not examined. One that does not hold stays. The kinds and the rule of
each stand in server/personal/promises.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.personal.page import share_of_gain
from server.personal.promises import GAIN_SHARE, MOST_LOST_DB
from server.personal.rows import Model, Place, Sheet, enriched, sheet_of
from server.personal.tables import gains
from server.personal.wording import label, method_shown, ordered, whole_label
from server.study.statistics import Difference, mean, of_differences, paired
from server.study.wording import signed

Rows = Sequence[Mapping[str, Any]]
Claim = dict[str, Any]

BALANCED = ("main", "hippocampus", "few", "noise2noise")
"""The first letters of tables that promise something of gain and loss; others search settings, and promise nothing."""
ORDERS: Mapping[str, tuple[str, ...]] = {
    "lesion_bias": ("tgd", "alone", "lastblocks", "none"),
    "noise_cov": ("none", "tgd", "lastblocks", "alone"),
}
"""From the smallest; table 1 of the paper: bias -3.77, -4.07, -4.71, -6.30 %; CoV 6.02, 6.46, 7.87, 8.56 %."""
_PROMISE = {"lesion_bias": "bias", "noise_cov": "noise"}
_WORDS = {"lesion_bias": "size of the lesion bias", "noise_cov": "noise"}


def claims_of(rows: Rows, cells: Rows = ()) -> list[Claim]:
    """The claims that the study was set up to examine, for the tables that have rows. `cells` are the sheets of
    report.json."""
    full = enriched(rows, cells)
    claims: list[Claim] = []
    for table in dict.fromkeys(str(row.get("table", "")) for row in full):
        sheet = sheet_of(full, [table])
        for place in sheet.places:
            if table.startswith(BALANCED):
                claims += _balance(sheet, place, table)
            if place.judged == "orders":
                claims += [claim for metric in ORDERS for claim in _order(sheet, place, table, metric)]
            if place.judged == "online":
                claims += _online(sheet, place, table)
    return claims


def _details(promise: str, table: str, found: Difference, reason: str) -> Claim:
    details: Claim = {"promise": promise, "table": table, "reason": reason}
    details["per_seed"] = {str(seed): value for seed, value in found.by_seed.items()}
    return details | ({} if found.low is None else {"low": found.low, "high": found.high})


def _ends(found: Difference, metric: str = "psnr_db") -> str:
    if found.low is None or found.high is None:
        return "one seed, no interval"
    ends = f"{signed(metric, found.low)} to {signed(metric, found.high)}"
    return f"95 % interval over {len(found.by_seed)} seeds: {ends}"


def _balance(sheet: Sheet, place: Place, table: str) -> Iterator[Claim]:
    """Each form of TGD, and whatever is rehearsed, against the release and against the full fine-tuning without
    rehearsal that is like it in everything else."""
    for ours in ordered(sheet.models):
        if ours.method != "tgd" and not ours.rehearse:
            continue
        where = f"{whole_label(place)}: {_named(ours, sheet)}"
        kept = gains(sheet, ours, place, "old")
        if kept:
            lost = of_differences({seed: -value for seed, value in kept.items()})
            claim: Claim = {"claim": f"{where}: PSNR lost on the old scanners, dB", "value": lost.mean}
            claim |= {"target": MOST_LOST_DB, "holds": lost.mean <= MOST_LOST_DB, "at_most": True}
            yield {**claim, **_details("kept", table, lost, _ends(lost))}
        other = next((each for each in ordered(sheet.models) if _alike(ours, each, "finetune")), None)
        if other is not None:
            yield from _against(sheet, place, table, ours, other, where)


def _against(sheet: Sheet, place: Place, table: str, ours: Model, other: Model, where: str) -> Iterator[Claim]:
    mine, theirs = (gains(sheet, each, place, "new") for each in (ours, other))
    by_seed = {seed: mine[seed] - GAIN_SHARE * theirs[seed] for seed in mine if seed in theirs}
    if by_seed:
        found = of_differences(by_seed)
        share = share_of_gain(sheet, ours, other, place)
        means = [mean({seed: each[seed] for seed in by_seed}) for each in (mine, theirs)]
        reason = f"{signed('psnr_db', means[0])} dB, full fine-tuning {signed('psnr_db', means[1])} dB"
        reason += f", a share of {share:.2f}" if share is not None else " (it gains nothing: there is no share)"
        words = f"{where}: gain in PSNR on the new scanner, less {GAIN_SHARE:g} of full fine-tuning's, dB"
        claim: Claim = {"claim": words, "value": found.mean, "target": 0.0, "holds": found.mean >= 0}
        yield {**claim, **_details("gain", table, found, f"{reason}; of the value: {_ends(found)}")}
    forgot = paired(sheet.values(ours, place, "old", "psnr_db"), sheet.values(other, place, "old", "psnr_db"))
    if forgot is not None:
        words = f"{where}: PSNR on the old scanners above full fine-tuning's, dB"
        claim = {"claim": words, "value": forgot.mean, "target": 0.0, "holds": forgot.mean > 0}
        yield {**claim, **_details("forgets", table, forgot, _ends(forgot))}


def _named(ours: Model, sheet: Sheet) -> str:
    same = [each for each in sheet.models if each.method == ours.method]
    return method_shown(ours.method) if len(same) == 1 else label(ours, same)


def _alike(ours: Model, other: Model, method: str) -> bool:
    def what(model: Model) -> tuple[Any, ...]:
        return model.loss, model.steer, model.labels, model.studies

    return other.method == method and not other.rehearse and what(ours) == what(other)


def _order(sheet: Sheet, place: Place, table: str, metric: str) -> Iterator[Claim]:
    """Each two neighbours of the paper's order; where one of them was not run, the next one that was."""
    found = [next((each for each in ordered(sheet.models) if each.method == name), None) for name in ORDERS[metric]]
    there = [(each, _sizes(sheet, each, place, metric)) for each in found if each is not None]
    there = [(model, values) for model, values in there if values]
    for (smaller, low), (larger, high) in itertools.pairwise(there):
        difference = paired(high, low)
        if difference is None:
            continue
        words = (
            f"{whole_label(place)}: {_WORDS[metric]} of {method_shown(larger.method)} above that of "
            f"{method_shown(smaller.method)}, percentage points"
        )
        means = ", ".join(
            f"{method_shown(model.method)} {signed(metric, mean(sheet.values(model, place, 'new', metric)))} %"
            for model in (larger, smaller)
        )
        reason = f"{means}; of the value: {_ends(difference, metric)}"
        claim: Claim = {"claim": words, "value": difference.mean, "target": 0.0, "holds": difference.mean > 0}
        yield {**claim, **_details(_PROMISE[metric], table, difference, reason)}


def _sizes(sheet: Sheet, model: Model, place: Place, metric: str) -> dict[int, float]:
    """A bias may lie on either side of 0; noise does not."""
    return {seed: abs(value) for seed, value in sheet.values(model, place, "new", metric).items()}


def _online(sheet: Sheet, place: Place, table: str) -> Iterator[Claim]:
    for ours in ordered(sheet.models):
        values = gains(sheet, ours, place, "new") if ours.method == "tgd" else {}
        if values:
            found = of_differences(values)
            words = f"{whole_label(place)}: PSNR that {_named(ours, sheet)} brings on the study that it adapts to, dB"
            claim: Claim = {"claim": words, "value": found.mean, "target": 0.0, "holds": found.mean > 0}
            yield {**claim, **_details("online", table, found, _ends(found))}
