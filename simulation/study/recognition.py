"""Rows of the recognition study in, its claims out, by rules and targets that were fixed before the run.

A claim is a mean of paired differences over the seeds that both sides have, and says beside it what the interval holds;
a claim whose rows are missing is not made, and its kind is listed as not examined. One that does not hold stays. The
kinds and the rule of each stand in server/recognition/promises.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from server.recognition.promises import DROP_SHARE, MARKS, POOLED_GAP
from server.recognition.rows import Model, Place, Sheet, enriched, mean_by_seed, sheet_of, sites_without
from server.recognition.tables import LOCAL, MERGED, rows_for, supervised_like, without_untrained
from server.recognition.unseen import Drop, drops
from server.recognition.wording import label, method_shown, ordered, whole_label
from server.study.statistics import Difference, mean, of_differences, paired
from server.study.wording import SHOWN, signed

Rows = Sequence[Mapping[str, Any]]
Cells = Sequence[Mapping[str, Any]]
Claim = dict[str, Any]

TASKS = ("dice", "accuracy")
SELFREG = ("selfreg", "selfreg-hippocampus", "selfreg-attention", "ablation")
"""Tables with SelfReg as published; that of its weights searches them, and promises nothing."""
SUPERVISED = {"dice": "unet", "accuracy": "enc"}
"""The paper's baseline of each task."""


def claims_of(rows: Rows, cells: Cells = ()) -> list[Claim]:
    """The claims that the study was set up to examine, for the tables that have rows. `cells` are the sheets of
    report.json: they tell which sites train without masks or without diagnoses."""
    full = enriched(rows, cells)
    tables = list(dict.fromkeys(str(row.get("table", "")) for row in full))
    claims: list[Claim] = []
    for table in tables:
        sheet = sheet_of(full, [table])
        if table.startswith("few"):
            claims += _few(sheet, table)
        if table in SELFREG:
            claims += _selfreg(sheet_of(rows_for(full, [table]), [table]), table)
    claims += _mask_ssl(sheet_of(full, ["mask-ssl"]))
    for table in ("mask-ssl", "thirds"):
        claims += _federated_prior(sheet_of(full, [table]), table, cells)
    claims += _thirds(without_untrained(sheet_of(full, MERGED["thirds"]), cells))
    claims += _unseen(sheet_of(full, MERGED["unseen"]))
    claims += _whole(sheet_of(full, ["whole"]))
    return claims


def _claim(
    promise: str, table: str, words: str, found: Difference, metric: str, target: float = 0.0, *, strict: bool = False
) -> Claim:
    """A mean difference that has to lie above 0, or to reach another target; `strict`: the interval's lower end too."""
    reached = found.mean > 0 if target == 0 else found.mean >= target
    settled = not strict or found.low is None or found.low > target
    claim: Claim = {"claim": words, "value": found.mean, "target": target, "holds": bool(reached and settled)}
    reason = _interval(found, metric) if target == 0 else _ends(found, metric)
    return {**claim, **_details(promise, table, found, reason)}


def _details(promise: str, table: str, found: Difference, reason: str) -> Claim:
    details: Claim = {"promise": promise, "table": table, "reason": reason}
    details["per_seed"] = {str(seed): value for seed, value in found.by_seed.items()}
    return details | ({} if found.low is None else {"low": found.low, "high": found.high})


def _interval(found: Difference, metric: str) -> str:
    where = {"above": ", lower end above 0", "below": ", wholly below 0", "open": ", holds 0: no difference shown"}
    return _ends(found, metric) + where.get(found.verdict, "")


def _ends(found: Difference, metric: str) -> str:
    if found.low is None or found.high is None:
        return "one seed, no interval"
    ends = f"{signed(metric, found.low)} to {signed(metric, found.high)}"
    return f"95 % interval over {len(found.by_seed)} seeds: {ends}"


def _values(sheet: Sheet, model: Model | None, place: Place, metric: str) -> dict[int, float]:
    return sheet.values(model, place, metric) if model else {}


def _one(sheet: Sheet, place: Place, metric: str, method: str, **wanted: Any) -> Model | None:
    """The plainest model of this method that was measured here."""
    fitting = (model for model in ordered(sheet.models) if model.method == method and model.site == "all")
    fitting = (model for model in fitting if all(getattr(model, key) == value for key, value in wanted.items()))
    return next((model for model in fitting if sheet.values(model, place, metric)), None)


def _few(sheet: Sheet, table: str) -> Iterator[Claim]:
    for place in sheet.conditions:
        for metric, supervised in SUPERVISED.items():
            ours = _one(sheet, place, metric, "multimix", selfreg="none")
            other = _one(sheet, place, metric, supervised, selfreg="none")
            found = paired(_values(sheet, ours, place, metric), _values(sheet, other, place, metric))
            if found is None or other is None:
                continue
            name = SHOWN[metric].heading
            words = f"{whole_label(place)}: {name} of MultiMix above the supervised {method_shown(other)}'s"
            yield _claim(f"few-{metric}", table, words, found, metric, strict=True)
            words = (
                f"{whole_label(place)}: {name} of MultiMix above the supervised {method_shown(other)}'s by the paper's"
            )
            yield _claim(f"mark-{metric}", table, f"{words} margin", found, metric, MARKS[metric])


def _selfreg(sheet: Sheet, table: str) -> Iterator[Claim]:
    """One per network and data set: in Dice, or in accuracy where nothing is segmented."""
    for place in sheet.conditions:
        for model in ordered(sheet.models):
            if model.selfreg != "selfreg" or model.site != "all":
                continue
            without = sheet.like(model, selfreg="none")
            for metric in TASKS:
                found = paired(sheet.values(model, place, metric), sheet.values(without, place, metric))
                if found is not None:
                    name, network = SHOWN[metric].heading, label(without, sheet.models)
                    words = f"{whole_label(place)}: {name} of {network} with SelfReg above that without"
                    yield _claim("selfreg", table, words, found, metric, strict=True)
                    break


def _mask_ssl(sheet: Sheet) -> Iterator[Claim]:
    for place in sheet.conditions:
        for model in ordered(sheet.models):
            none = sheet.like(model, mask_ssl="none")
            found = paired(sheet.values(model, place, "dice"), sheet.values(none, place, "dice"))
            if found is not None and model.mask_ssl == "prior":
                words = (
                    f"{whole_label(place)}: Dice of {method_shown(model)} with the divergence to the prior above none"
                )
                yield _claim("mask-ssl", "mask-ssl", words, found, "dice")


def _federated_prior(sheet: Sheet, table: str, cells: Cells) -> Iterator[Claim]:
    """Against none, or against a prior of each site's own, which a site without masks does not have."""
    without_masks = sites_without("masks", cells)
    for place in sheet.conditions:
        for model in ordered(sheet.models):
            if (model.mask_ssl, model.setting, model.site) != ("federated", "federated", "all"):
                continue
            keys = {row.get("cell", "") for row in sheet.test.get((model, place), {}).values()}
            sites = sorted(set().union(*(without_masks.get(key, frozenset()) for key in keys)))
            tests = [replace(place, test_site=site) for site in sites]
            for kind in ("none", "prior"):
                other = sheet.like(model, mask_ssl=kind)
                found = paired(_over(sheet, model, tests), _over(sheet, other, tests))
                if found is not None:
                    own = "no divergence" if kind == "none" else "each site's own prior"
                    words = (
                        f"{whole_label(place)}: Dice of {method_shown(model)} with the federated prior above that with "
                        f"{own}, on the tests of {', '.join(sites)}, without masks in training"
                    )
                    yield _claim("federated-prior", table, words, found, "dice")
                    break


def _over(sheet: Sheet, model: Model, places: Sequence[Place]) -> dict[int, float]:
    return mean_by_seed([sheet.values(model, place, "dice") for place in places])


def _thirds(sheet: Sheet) -> Iterator[Claim]:
    for place in sheet.conditions:
        for ours in ordered(sheet.models):
            for metric in TASKS if ours.setting == "federated" else ():
                values, name = sheet.values(ours, place, metric), SHOWN[metric].heading
                prior = " with the federated prior" if ours.mask_ssl == "federated" else ""
                where = f"{whole_label(place)}: {name} of federated {method_shown(ours)}{prior}"
                for other in ordered(sheet.models):
                    found = paired(values, sheet.values(other, place, metric)) if _alike(ours, other) else None
                    if found is None or (other.setting, other.site) == LOCAL:
                        continue
                    if other.setting == "local":
                        words = f"{where} above the model of {other.site} alone, on the pooled test"
                        yield _claim("thirds-local", "thirds", words, found, metric)
                    if other.setting == "pooled":
                        words = f"{where} within {POOLED_GAP:g} of pooled"
                        yield _claim("thirds-pooled", "thirds", words, found, metric, -POOLED_GAP)


def _alike(ours: Model, other: Model) -> bool:
    return ours != other and (ours.method, ours.selfreg) == (other.method, other.selfreg)


def _unseen(sheet: Sheet) -> Iterator[Claim]:
    for metric in TASKS:
        found = list(drops(sheet, metric))
        for ours in found:
            local = next((other for other in found if _local_of(ours, other)), None)
            if ours.model.setting == "federated" and local is not None:
                yield from _drop_claim(ours, local, metric)


def _local_of(ours: Drop, other: Drop) -> bool:
    one, two = ours.model, other.model
    same = (one.method, one.selfreg) == (two.method, two.selfreg) and ours.condition == other.condition
    return same and (two.setting, two.site) == LOCAL


def _drop_claim(ours: Drop, local: Drop, metric: str) -> Iterator[Claim]:
    mine, theirs = ours.by_seed, local.by_seed
    by_seed = {seed: mine[seed] - DROP_SHARE * theirs[seed] for seed in mine if seed in theirs}
    if not by_seed:
        return
    difference = of_differences(by_seed)
    means = [mean({seed: each[seed] for seed in by_seed}) for each in (mine, theirs)]
    words = (
        f"{whole_label(ours.condition)}: drop in {SHOWN[metric].heading} of federated {method_shown(ours.model)}, "
        "minus half of the local models' drop"
    )
    claim: Claim = {"claim": words, "value": difference.mean, "target": 0.0, "holds": difference.mean <= 0}
    reason = f"federated {signed(metric, -means[0])}, local {signed(metric, -means[1])} on the never-seen hospital"
    if means[1] <= 0:
        reason += " (the local models do not drop: there is nothing to halve)"
    reason += f"; of the value: {_ends(difference, metric)}"
    yield {**claim, **_details("unseen", "unseen", difference, reason), "at_most": True}


def _whole(sheet: Sheet) -> Iterator[Claim]:
    for place in sheet.conditions:
        for ours in ordered(sheet.models):
            if (ours.method, ours.selfreg, ours.objective) != ("multimix", "selfreg", "gradprom"):
                continue
            other = supervised_like(sheet, ours)
            for metric in TASKS if other and other.objective == ours.objective else ():
                found = paired(sheet.values(ours, place, metric), _values(sheet, other, place, metric))
                if found is not None:
                    words = (
                        f"{whole_label(place)}: {SHOWN[metric].heading} on enhanced images of GradProm with MultiMix "
                        "and SelfReg above that with a supervised recogniser"
                    )
                    yield _claim("whole", "whole", words, found, metric)
