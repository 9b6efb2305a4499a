"""Rows of the generation study in, its claims out, by rules and targets that were fixed before the run.

A claim is a mean over the seeds that both sides have, and says beside it what the interval holds; a claim whose rows
are missing is not made, and its kind is listed as not examined. One that does not hold stays. The kinds and the rule of
each stand in server/generation/promises.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.generation.page import DOWNSTREAM
from server.generation.promises import GENERATED, LOSS_GAP, MASK_SHARE
from server.generation.rows import Model, Sheet, enriched, sheet_of
from server.generation.tables import MERGED, OVERFITTED, TASKS, best_single, where_of
from server.generation.wording import label, method_shown, ordered
from server.recognition.wording import whole_label
from server.study.statistics import BySeed, Difference, of_differences, paired
from server.study.wording import SHOWN, signed

Rows = Sequence[Mapping[str, Any]]
Claim = dict[str, Any]


def claims_of(rows: Rows, cells: Rows = ()) -> list[Claim]:
    """The claims that the study was set up to examine, for the tables that have rows. `cells` are the sheets of
    report.json."""
    full = enriched(rows, cells)
    tables = list(dict.fromkeys(str(row.get("table", "")) for row in full))
    claims: list[Claim] = []
    generators = sheet_of(full, MERGED["generators"])
    claims += [*_masks(generators), *_loss(generators)]
    for table in tables:
        if table.startswith(DOWNSTREAM):
            claims += _augment(sheet_of(full, [table]), table)
    claims += _scarce(sheet_of(full, MERGED["scarce"]), _scarce_class(full))
    healthy = "memorisation" if "memorisation" in tables else "generators"  # the former are cells of the latter
    claims += _guard(sheet_of(full, [healthy]), "healthy", healthy, refused=False)
    claims += _guard(sheet_of(full, [OVERFITTED]), "overfitted", OVERFITTED, refused=True)
    return claims


def _details(promise: str, table: str, found: Difference, reason: str) -> Claim:
    details: Claim = {"promise": promise, "table": table, "reason": reason}
    details["per_seed"] = {str(seed): value for seed, value in found.by_seed.items()}
    return details | ({} if found.low is None else {"low": found.low, "high": found.high})


def _ends(found: Difference, metric: str) -> str:
    if found.low is None or found.high is None:
        return "one seed, no interval"
    ends = f"{signed(metric, found.low)} to {signed(metric, found.high)}"
    return f"95 % interval over {len(found.by_seed)} seeds: {ends}"


def _above(promise: str, table: str, words: str, found: Difference, metric: str) -> Claim:
    """A mean of paired differences above 0, and with two seeds or more the interval's lower end too."""
    holds = found.mean > 0 and (found.low is None or found.low > 0)
    where = {"above": ", lower end above 0", "below": ", wholly below 0", "open": ", holds 0: no difference shown"}
    reason = _ends(found, metric) + where.get(found.verdict, "")
    claim: Claim = {"claim": words, "value": found.mean, "target": 0.0, "holds": bool(holds)}
    return {**claim, **_details(promise, table, found, reason)}


def _ratios(ours: BySeed, other: BySeed) -> dict[int, float]:
    return {seed: value / other[seed] for seed, value in ours.items() if other.get(seed, 0.0) > 0}


def _in_setting(sheet: Sheet, setting: str) -> list[Model]:
    return [each for each in ordered(sheet.models) if (each.setting, each.site) == (setting, "all")]


def _masks(sheet: Sheet) -> Iterator[Claim]:
    for place in sheet.conditions:
        for model in _in_setting(sheet, "federated"):
            drawn, real = (sheet.values(model, place, key) for key in ("mask_dice", "real_dice"))
            if ratios := _ratios(drawn, real):
                found = of_differences(ratios)
                words = (
                    f"{whole_label(place)}: Dice of a segmenter on images of the federated generator over that on real"
                )
                claim: Claim = {"claim": words, "value": found.mean, "target": MASK_SHARE}
                claim["holds"] = found.mean >= MASK_SHARE
                yield {**claim, **_details("masks", "generators", found, _ends(found, "mask_share"))}


def _loss(sheet: Sheet) -> Iterator[Claim]:
    for place in sheet.conditions:
        for model in _in_setting(sheet, "federated"):
            for pooled in _in_setting(sheet, "pooled"):
                losses = (sheet.values(each, place, "denoiser_loss") for each in (model, pooled))
                if ratios := _ratios(*losses):
                    found = of_differences({seed: ratio - 1 for seed, ratio in ratios.items()})
                    words = f"{whole_label(place)}: loss of the federated denoiser over that of the pooled one, less 1"
                    claim: Claim = {"claim": words, "value": found.mean, "target": LOSS_GAP}
                    claim["holds"] = found.mean <= LOSS_GAP
                    reason = _ends(found, "denoiser_loss")
                    yield {**claim, **_details("loss", "generators", found, reason), "at_most": True}


def _augment(sheet: Sheet, table: str) -> Iterator[Claim]:
    """Each form of EMIT-Diff against the best single classical augmentation, and against all of them together."""
    for place in sheet.conditions:
        for ours in ordered(sheet.models):
            for metric in TASKS if ours.method in GENERATED and ours.site == "all" else ():
                single = best_single(sheet, place, metric, ours.setting)
                stack = next((m for m in _in_setting(sheet, ours.setting) if m.method == "deepstack"), None)
                for promise, rival in (("augment", single), ("deepstack", stack)):
                    found = paired(sheet.values(ours, place, metric), sheet.values(rival, place, metric))
                    if found is not None and rival is not None:
                        name = (
                            f"the best single one's, {method_shown(rival.method)}" if rival == single else "DeepStack's"
                        )
                        words = (
                            f"{where_of(place, ours)}: {SHOWN[metric].heading} of {_named(ours, sheet)} above {name}"
                        )
                        yield _above(promise, table, words, found, metric)


def _named(ours: Model, sheet: Sheet) -> str:
    """The method, and what tells it from the table's other forms of it."""
    same = [each for each in sheet.models if (each.method, each.setting) == (ours.method, ours.setting)]
    return method_shown(ours.method) if len(same) == 1 else f"{method_shown(ours.method)} ({label(ours, same)})"


def _scarce_class(rows: Rows) -> str:
    return next((str(row["scarce"]) for row in rows if row.get("scarce")), "")


def _scarce(sheet: Sheet, scarce: str) -> Iterator[Claim]:
    """F1 of the scarce class on all hospitals' tests: the poor hospital's own have hardly a patient of it."""
    metric = f"f1.{scarce}"
    for place in sheet.conditions if scarce else ():
        for ours in ordered(sheet.models):
            if ours.generator != "federated" or ours.setting != "local" or ours.site == "all":
                continue
            values = sheet.values(ours, place, metric)
            for promise, other, words in _scarce_rivals(sheet, ours):
                found = paired(values, sheet.values(other, place, metric))
                if found is not None:
                    said = f"{whole_label(place)}: F1 of {scarce}, {ours.site} with the federated generator{_how(ours)}"
                    yield _above(promise, "scarce", f"{said}, above {words}", found, metric)


def _how(model: Model) -> str:
    words = ["balanced draws"] if model.classes == "balanced" else []
    words += ["balanced batches"] if model.balance else []
    return f" ({', '.join(words)})" if words else ""


def _scarce_rivals(sheet: Sheet, ours: Model) -> Iterator[tuple[str, Model, str]]:
    """No augmentation with the same batches, and the site's own generator with everything else alike."""
    for other in ordered(sheet.models):
        at_home = (other.setting, other.site) == (ours.setting, ours.site)
        if at_home and other.method == "none" and other.balance == ours.balance:
            yield "scarce-none", other, "that without augmentation"
        alike = (other.method, other.classes, other.balance) == (ours.method, ours.classes, ours.balance)
        if at_home and alike and other.generator == "local":
            yield "scarce-local", other, "that with its own generator"


def _guard(sheet: Sheet, promise: str, table: str, *, refused: bool) -> Iterator[Claim]:
    for place in sheet.conditions:
        for model in ordered(sheet.models):
            values = sheet.values(model, place, "refused")
            if not values:
                continue
            found = of_differences(values)
            what = label(model, sheet.models)
            words = f"{whole_label(place)}, {what}: share of sites at which the guard refuses the generator"
            target = 1.0 if refused else 0.0
            claim: Claim = {"claim": words, "value": found.mean, "target": target, "holds": found.mean == target}
            near = sheet.values(model, place, "memorised_share")
            reason = f"memorised share {', '.join(f'{value:.3f}' for value in near.values())}, one per seed"
            yield {**claim, **_details(promise, table, found, reason), **({} if refused else {"at_most": True})}
