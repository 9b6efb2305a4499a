"""Rows of a study in, its claims out: what GradProm and TOD-Net promise, by targets that were fixed before the run.

A claim is a mean over the seeds that both sides have, and says beside it what the paired interval holds; a claim whose
rows are missing is not made. One that does not hold stays. The kinds stand in server/study/promises.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.study.promises import LARGE_LAMBDA, MARGIN_DB
from server.study.rows import Condition, Model, Sheet, Trained, enriched, sheet_of, tuned
from server.study.statistics import BySeed, Difference, of_differences, paired
from server.study.tables import MERGED, Column, ordered, values_in
from server.study.wording import NETWORKS, SHOWN, label, signed, task_weight_shown, whole_label

Rows = Sequence[Mapping[str, Any]]
Claim = dict[str, Any]

RIVALS = ("plain", "joint", "frozen", "estr")
IMAGE = {"psnr_db": "PSNR", "ssim": "SSIM", "judge_dice": "the judge's Dice", "judge_accuracy": "the judge's accuracy"}
MARKS = {"psnr_db": 1.231, "ssim": 0.009}
COMPOSITE_MARK_DB = 0.384
SMALL_LAMBDA = 0.03
MAIN_LOSS_SHARE = 0.01
POOLED_GAPS = {"psnr_db": -0.2, "dice": -0.01, "judge_dice": -0.01}
TRAFFIC = 1.3
NO_HARM_DICE = -0.005


def claims_of(rows: Rows, cells: Sequence[Mapping[str, Any]] = ()) -> list[Claim]:
    """The claims that the study was set up to examine, for the tables that have rows. `cells` are the sheets of
    report.json: what happened in training (steps uphill, the last loss) and bytes are claimed only with them."""
    full = enriched(rows, cells)
    tables = list(dict.fromkeys(str(row.get("table", "")) for row in full))
    claims: list[Claim] = []
    for name in ("lambda", *(table for table in tables if table.startswith("rivals-"))):
        sheet = sheet_of(full, [name])
        claims += [*_rivals(sheet, name), *_over_lambda(sheet, name)]
    claims += _marks(full)
    claims += _ascent(sheet_of(full, ["adam"]))
    claims += _federated(sheet_of(full, MERGED["federated"]))
    claims += _others_tests(full)
    claims += _region(sheet_of(full, ["todnet"]))
    return claims


def _claim(promise: str, table: str, words: str, found: Difference, target: float, *, metric: str) -> Claim:
    """A mean difference that has to reach `target`, or lie above it where the target is 0."""
    holds = found.mean > 0 if target == 0 else found.mean >= target
    claim: Claim = {"claim": words, "value": found.mean, "target": target, "holds": bool(holds)}
    return {**claim, **_details(promise, table, found, _interval(found, metric), SHOWN[metric].unit)}


def _details(promise: str, table: str, found: Difference, reason: str, unit: str = "") -> Claim:
    details: Claim = {"promise": promise, "table": table, "reason": reason}
    details["per_seed"] = {str(seed): value for seed, value in found.by_seed.items()}
    if found.low is not None:
        details |= {"low": found.low, "high": found.high}
    return details | ({"unit": unit} if unit else {})


def _interval(found: Difference, metric: str) -> str:
    if found.low is None or found.high is None:
        return "one seed, no interval"
    ends = f"{signed(metric, found.low)} to {signed(metric, found.high)}"
    holds = "holds 0: not settled" if found.verdict == "open" else "does not hold 0"
    return f"95 % interval over {len(found.by_seed)} seeds: {ends}, {holds}"


def _one(sheet: Sheet, method: str, condition: Condition, **wanted: Any) -> Model | None:
    """The plainest model of this objective that was tested here."""
    there = {each.model for each in sheet.test if each.condition == condition}
    fitting = [model for model in ordered(sheet.models) if model.method == method and model in there]
    return next((m for m in fitting if all(getattr(m, key) == value for key, value in wanted.items())), None)


def _against(
    sheet: Sheet, ours: Model, other: Model, condition: Condition, metric: str, task_weight: float | None = None
) -> Difference | None:
    column = Column(condition, task_weight, metric)
    return paired(values_in(sheet, ours, column), values_in(sheet, other, column))


def _rivals(sheet: Sheet, table: str) -> Iterator[Claim]:
    for condition in sheet.conditions:
        ours = _one(sheet, "gradprom", condition)
        for rival in RIVALS if ours else ():
            other = _one(sheet, rival, condition)
            for metric, name in IMAGE.items() if other else ():
                assert ours is not None
                assert other is not None
                found = _against(sheet, ours, other, condition, metric)
                if found is not None:
                    words = f"{whole_label(condition)}: {name} of gradprom above {rival}'s"
                    claim = _claim("rivals", table, words, found, 0.0, metric=metric)
                    yield {**claim, "reason": f"{claim['reason']}; {_weights(sheet, condition, ours, other)}"}


def _weights(sheet: Sheet, condition: Condition, *models: Model) -> str:
    chosen = [(model.method, tuned(sheet, model, condition)) for model in models]
    return ", ".join(
        f"{method} at lambda {task_weight_shown(task_weight)}"
        for method, task_weight in chosen
        if task_weight is not None
    )


def _marks(rows: Rows) -> Iterator[Claim]:
    """What the paper reports, on our networks and data: the mark to reach, not a promise that it will be."""
    ladder, composite = sheet_of(rows, ["ladder"]), sheet_of(rows, ["composite"])
    for condition in ladder.conditions:
        if condition.sigma == 0.1:
            ours, frozen = (_one(ladder, name, condition, recognition="supervised") for name in ("gradprom", "frozen"))
            for metric, mark in MARKS.items() if ours and frozen else ():
                assert ours is not None
                assert frozen is not None
                found = _against(ladder, ours, frozen, condition, metric)
                if found is not None:
                    where, name = whole_label(condition), IMAGE[metric]
                    words = f"{where}: {name} of gradprom above frozen's by the paper's margin"
                    yield _claim("mark", "ladder", words, found, mark, metric=metric)
    for condition in composite.conditions:
        ours, frozen = (_one(composite, name, condition) for name in ("gradprom", "frozen"))
        found = _against(composite, ours, frozen, condition, "psnr_db") if ours and frozen else None
        if found is not None:
            words = f"{whole_label(condition)}: PSNR of gradprom above frozen's by the paper's margin"
            yield _claim("composite", "composite", words, found, COMPOSITE_MARK_DB, metric="psnr_db")


def _over_lambda(sheet: Sheet, table: str) -> Iterator[Claim]:
    for condition in sheet.conditions:
        ours = _one(sheet, "gradprom", condition)
        for task_weight in sheet.task_weights(ours, condition) if ours else ():
            assert ours is not None
            for rival in ("joint", "frozen"):
                other = _one(sheet, rival, condition)
                found = _against(sheet, ours, other, condition, "psnr_db", task_weight) if other else None
                if found is not None and task_weight is not None:
                    where = f"{whole_label(condition)}, lambda {task_weight_shown(task_weight)}"
                    yield _no_loss(found, where, rival, table)
                    if found.low is not None:
                        yield _margin(found, found.low, where, rival, table)
                    if task_weight >= LARGE_LAMBDA:
                        words = f"{where}: PSNR of gradprom above {rival}'s"
                        yield _claim("large", table, words, found, 0.0, metric="psnr_db")
        yield from _main_loss(sheet, condition, table)


def _no_loss(found: Difference, where: str, rival: str, table: str) -> Claim:
    """The interval reaches 0: a loss is not shown, which is easier to keep the wider the interval."""
    end = found.mean if found.high is None else found.high
    words = f"{where}: that no PSNR is lost against {rival} is not contradicted (upper end of the interval)"
    claim: Claim = {"claim": words, "value": end, "target": 0.0, "holds": end >= 0}
    return {**claim, **_details("lambda", table, found, _with_mean(found), "dB")}


def _margin(found: Difference, low: float, where: str, rival: str, table: str) -> Claim:
    """Non-inferiority: a loss of the margin or more is ruled out. One seed has no interval and makes no such claim."""
    words = f"{where}: PSNR of gradprom less than {MARGIN_DB:g} dB below {rival}'s (lower end of the interval)"
    claim: Claim = {"claim": words, "value": low, "target": -MARGIN_DB, "holds": low > -MARGIN_DB}
    return {**claim, **_details("margin", table, found, _with_mean(found), "dB")}


def _with_mean(found: Difference) -> str:
    return f"mean {signed('psnr_db', found.mean)} dB; {_interval(found, 'psnr_db')}"


def _main_loss(sheet: Sheet, condition: Condition, table: str) -> Iterator[Claim]:
    ours, plain = (_one(sheet, name, condition) for name in ("gradprom", "plain"))
    if ours is None or plain is None:
        return
    losses = sheet.values(Trained(ours, condition, SMALL_LAMBDA), "loss_enhance")
    base = sheet.values(Trained(plain, condition, None), "loss_enhance")
    by_seed = {seed: losses[seed] / base[seed] - 1 for seed in losses if seed in base}
    if by_seed:
        where = f"{whole_label(condition)}, lambda {SMALL_LAMBDA:g}"
        words = f"{where}: the main loss at the end of training at most 1 % above plain's"
        yield _at_most("main-loss", table, words, by_seed, MAIN_LOSS_SHARE)


def _at_most(promise: str, table: str, words: str, by_seed: BySeed, target: float) -> Claim:
    found = of_differences(by_seed)
    claim: Claim = {"claim": words, "value": found.mean, "target": target, "holds": found.mean <= target}
    seeds = f"{len(by_seed)} seed{'s' * (len(by_seed) > 1)}"
    reason = f"{seeds}: {min(by_seed.values()):+.4f} to {max(by_seed.values()):+.4f}"
    return {**claim, **_details(promise, table, found, reason), "at_most": True}


def _ascent(sheet: Sheet) -> Iterator[Claim]:
    for trained in sheet.test:
        model = trained.model
        by_seed = sheet.values(trained, "ascent_most")
        if by_seed and model.optimiser == "sgd" and model.method == "gradprom":
            where = f"SGD, {whole_label(trained.condition)}"
            words = f"{where}: share of steps uphill to first order in gradprom's worst training record"
            worst = {seed: value for seed, value in by_seed.items() if value == max(by_seed.values())}
            claim = _at_most("ascent", "adam", words, worst, 0.0)
            yield {**claim, "reason": f"the worst of {len(by_seed)} seed{'s' * (len(by_seed) > 1)}"}


def _federated(sheet: Sheet) -> Iterator[Claim]:
    for condition in sheet.conditions:
        ours = _one(sheet, "gradprom", condition, setting="federated", promotion="none")
        if ours is None:
            continue
        where = f"{whole_label(condition)}, scanners {condition.scanners}"
        pooled = _one(sheet, "gradprom", condition, setting="pooled")
        local = _one(sheet, "gradprom", condition, setting="local")
        for metric, gap in POOLED_GAPS.items() if pooled else ():
            found = _against(sheet, ours, pooled, condition, metric) if pooled else None
            if found is not None:
                unit = " dB" if metric == "psnr_db" else ""
                words = f"{where}: {_named(metric)} of federated gradprom within {-gap:g}{unit} of pooled"
                yield _claim("federated", "federated", words, found, gap, metric=metric)
        for metric in POOLED_GAPS if local else ():
            found = _against(sheet, ours, local, condition, metric) if local else None
            if found is not None:
                words = f"{where}: {_named(metric)} of federated gradprom above the mean local model's"
                yield _claim("federated", "federated", words, found, 0.0, metric=metric)
        yield from _promotion(sheet, condition, ours, where)


def _others_tests(rows: Rows) -> Iterator[Claim]:
    """Federated minus each site's own model, on the tests of the other sites; the pair where it is least."""
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in rows:
        mine = row["method"] == "gradprom" and row.get("promotion", "none") == "none"
        if mine and row.get("table") in ("federated", "federated-local") and row["test_site"] != "all":
            for metric in IMAGE:
                if metric in row:
                    found.setdefault((metric, row["site"], row["test_site"]), {})[row["seed"]] = row[metric]
    for metric, name in IMAGE.items():
        gaps = {
            (site, there): difference
            for (kind, site, there), values in found.items()
            if kind == metric and site not in ("all", there)
            and (difference := paired(found.get((metric, "all", there), {}), values)) is not None
        }  # fmt: skip
        if gaps:
            site, there = min(gaps, key=lambda pair: gaps[pair].mean)
            words = f"{name} of federated gradprom above every local model's on the other sites' tests"
            claim = _claim("federated", "federated", words, gaps[site, there], 0.0, metric=metric)
            yield {**claim, "reason": f"least: {site}'s model on {there}'s tests; {claim['reason']}"}


def _named(metric: str) -> str:
    return IMAGE.get(metric, "Dice")


def _promotion(sheet: Sheet, condition: Condition, ours: Model, where: str) -> Iterator[Claim]:
    for model in ordered(sheet.models):
        if model.method != "gradprom" or model.setting != "federated" or model.promotion == "none":
            continue
        found = _against(sheet, model, ours, condition, "psnr_db")
        if found is not None:
            words = f"{where}: PSNR with promotion={model.promotion} above that without"
            yield _claim("promotion", "federated", words, found, 0.0, metric="psnr_db")
        sent, usual = (values_in(sheet, each, Column(condition, None, "bytes_up")) for each in (model, ours))
        ratios = {seed: sent[seed] / usual[seed] for seed in sent if usual.get(seed)}
        if ratios:
            words = f"{where}: bytes up with promotion={model.promotion} over those without"
            yield _at_most("promotion", "federated", words, ratios, TRAFFIC)


def _region(sheet: Sheet) -> Iterator[Claim]:
    for trained in sheet.test:
        model, condition = trained.model, trained.condition
        if model.method not in ("todnet", "todnet-gated") or model.output != "linear":
            continue
        name = label(model, sheet.models)
        gains = {metric: _gain(sheet, trained, metric) for metric in ("psnr_db_region", "psnr_db")}
        if gains["psnr_db_region"] and gains["psnr_db"]:
            found = paired(gains["psnr_db_region"].by_seed, gains["psnr_db"].by_seed)
            assert found is not None
            words = f"{name}: PSNR gained inside the region above that over the whole image"
            yield _claim("region", "todnet", words, found, 0.0, metric="psnr_db")
        for kind, network in NETWORKS.items():
            gain = _gain(sheet, trained, f"dice_{kind}")
            if gain is not None:
                words = f"{name}: Dice of {network} on enhanced images above that on degraded ones"
                yield _claim("downstream", "todnet", words, gain, 0.0, metric="dice")
        for kind, network in NETWORKS.items():
            clean = sheet.of_state("clean", condition, f"dice_{kind}")
            harm = paired(sheet.values(trained, f"no_harm_dice_{kind}"), clean)
            if harm is not None:
                words = f"{name}: Dice of {network} on clean images that were enhanced, within 0.005 of clean ones"
                yield _claim("no-harm", "todnet", words, harm, NO_HARM_DICE, metric="dice")


def _gain(sheet: Sheet, trained: Trained, metric: str) -> Difference | None:
    return paired(sheet.values(trained, metric), sheet.of_state("degraded", trained.condition, metric))
