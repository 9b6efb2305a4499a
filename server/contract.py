"""A record out of a file in, the same one out if every value in it is of its kind: what a page may then rely on.

record.json (simulation/compare.py, simulation/study/run.py), the record that server/closing.py puts together, and
report.json are one shape; the last lacks `runs`, `config`, `sites` and `timings`. What is not named here may be there
and is not looked at. A file may be old, cut, or of somebody else's making: all that it can say wrongly is a DataError.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from server.study.wording import SHOWN
from shared.errors import DataError

Kind = Callable[[Any], bool]
SETTINGS = ("clean", "degraded", "local", "pooled", "federated", "personalised")
LARGEST = 1e100
"""Of a number: squares and sums of such still are numbers."""


def text(value: Any) -> bool:
    return isinstance(value, str)


def truth(value: Any) -> bool:
    return isinstance(value, bool)


def whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float)


def group(value: Any) -> bool:
    return isinstance(value, dict)


def figure(value: Any) -> bool:
    """A number, or none: what could not be measured, or is not finite."""
    return value is None or number(value) or (isinstance(value, float) and not math.isfinite(value))


def lists(kind: Kind) -> Kind:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def groups(kind: Kind) -> Kind:
    return lambda value: isinstance(value, dict) and all(map(kind, value.values()))


def optional(kind: Kind) -> Kind:
    return lambda value: value is None or kind(value)


def setting(value: Any) -> bool:
    return text(value) and value in SETTINGS


def moments(value: Any) -> bool:
    """One metric of an evaluation."""
    if not isinstance(value, dict):
        return figure(value)
    quantiles = value.get("quantiles", [])
    return all(figure(value.get(key)) for key in ("count", "total")) and lists(number)(quantiles)


def kind_of_study(value: Any) -> bool:
    return text(value) and value in ("enhancement", "recognition", "generation", "personalise", "trust")


def look(value: Any) -> bool:
    """A picture of a cell, as server/recognition/pictures.py shows it."""
    return isinstance(value, dict) and all(text(value.get(key)) for key in ("kind", "caption", "uri"))


_REPORT: Mapping[str, Kind] = {
    "experiment": text,
    "seeds": lists(whole),
    "config_digest": text,
    "versions": groups(text),
    "wall_s": number,
    "rows": lists(group),
    "claims": lists(group),
}
_REST: Mapping[str, tuple[type, Kind]] = {
    "runs": (list, lists(group)),
    "config": (dict, group),
    "sites": (dict, groups(group)),
    "timings": (dict, groups(number)),
}
_TEXTS = ("method", "data", "degradation", "split", "site", "test_site")
_ROW: Mapping[str, Kind] = {**dict.fromkeys(_TEXTS, text), "setting": setting, "seed": whole, "n": number}
_ROW_MORE: Mapping[str, Kind] = {
    **dict.fromkeys(SHOWN, figure),
    **dict.fromkeys(("lambda", "sigma", "norm_cap", "adversarial_weight", "mask_weight", "diagnosis_weight"), figure),
    **dict.fromkeys(("learning_rate", "warmup", "rounds", "local_steps", "server_learning_rate"), figure),
    **dict.fromkeys(("table", "test_data", "domain", "cell", "gate", "recognition", "auxiliaries"), optional(text)),
    **dict.fromkeys(("adam_states", "optimiser", "promotion", "enhancer", "output", "recogniser"), optional(text)),
    **dict.fromkeys(("scanners", "tuning"), optional(text)),
    **dict.fromkeys(("labels", "mask_ssl", "selfreg", "selfreg_form", "objective", "unseen"), optional(text)),
    **dict.fromkeys(("masks", "diagnoses", "mask_ssl_weight", "threshold", "train_masks", "train_diagnoses"), figure),
    "patients": figure,
    **dict.fromkeys(("attack", "robust", "secagg", "privacy", "trained"), optional(text)),
    **dict.fromkeys(("hospitals", "epsilon_budget", "delta"), figure),
    **dict.fromkeys(("generator", "prediction", "text", "edges", "contour", "sampler", "classes"), optional(text)),
    **dict.fromkeys(("task_gate", "scarce"), optional(text)),
    **dict.fromkeys(("steps", "guidance", "task_weight"), figure),
    **dict.fromkeys(("box", "balance"), optional(truth)),
    **dict.fromkeys(("relative", "data_consistency", "saliency"), optional(truth)),
    **dict.fromkeys(("release", "judged", "old_degradation", "new_degradation", "loss", "steer"), optional(text)),
    **dict.fromkeys(("tgd_form", "tgd_first_layer"), optional(text)),
    **dict.fromkeys(("studies", "blocks", "tgd_phi", "adapt_steps", "adapt_rate", "rehearse"), figure),
}
_CLAIM: Mapping[str, Kind] = {"claim": text, "value": number, "target": number, "holds": truth}
_CLAIM_MORE: Mapping[str, Kind] = {
    **dict.fromkeys(("reason", "unit", "promise", "table", "method"), text),
    **dict.fromkeys(("low", "high"), number),
}
_RUN: Mapping[str, Kind] = {"method": text, "seed": whole, "rounds": lists(group)}
_RUN_MORE: Mapping[str, Kind] = {"pseudo_labels": groups(groups(whole)), "phases": lists(group)}
_ROUND: Mapping[str, Kind] = {"round": whole}
_ROUND_MORE: Mapping[str, Kind] = {
    **dict.fromkeys(("seconds", "bytes_up", "bytes_down"), number),
    "dropped": group,
    "training": groups(group),
    "evaluation": groups(groups(moments)),
}
_PHASE_ROUND: Mapping[str, Kind] = {"phase": text}
"""A round of a generator's phases says which."""
_LOSSES: Mapping[str, Kind] = dict.fromkeys(("loss_enhance", "loss_recognise"), figure)
_STUDY: Mapping[str, Kind] = {"budget": text, "planned": whole, "tables": lists(group), "cells": lists(group)}
_TABLE: Mapping[str, Kind] = {
    **dict.fromkeys(("name", "title", "question"), text),
    **dict.fromkeys(("common", "missing"), lists(text)),
    **dict.fromkeys(("planned", "done"), whole),
}
_CELL: Mapping[str, Kind] = {
    **dict.fromkeys(("tables", "overrides"), lists(text)),
    "setting": text,
    "seed": whole,
    "seconds": number,
    "rounds": lists(group),
}
_CELL_ROUND: Mapping[str, Kind] = dict.fromkeys(
    ("gate_open_rate", "mean_cosine", "added_share", "ascent_rate", "loss_enhance", "bytes_up"), number
)
_CELL_ROUND_MORE: Mapping[str, Kind] = {
    **dict.fromkeys(("loss_masks", "loss_diagnosis", "loss_mask_ssl", "loss_diagnosis_ssl", "loss_selfreg"), figure),
    **dict.fromkeys(("pseudo_accept_rate", "pseudo_offered", "feature_rank"), figure),
}
_PARTED = {**_ROW_MORE, "pseudo_accepted": figure, "privacy": figure}
"""`<metric>.<class>` is of the kind of `<metric>`; privacy.multiplier and privacy.cosine are figures."""


def read_json(path: Path) -> Any:
    """What the file holds; numbers that are not finite are None. DataError where it is no JSON in UTF-8."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None, parse_float=_finite)
        json.dumps(values, ensure_ascii=False).encode()  # halves of characters (\\ud800) could not be written
    except (OSError, ValueError, RecursionError):
        raise DataError(f"{path.name} is not readable JSON; run the simulation again, or restore the file") from None
    return values


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


def checked(record: Any, name: str) -> dict[str, Any]:
    """The record, with what may be left out filled in empty; DataError names the first thing that cannot be used."""
    if not isinstance(record, dict):
        raise DataError(f"{name} must hold a JSON object, got {type(record).__name__}; restore the file")
    whole_record = {**{key: empty() for key, (empty, _) in _REST.items()}, **record}
    _has(whole_record, {**_REPORT, **{key: kind for key, (_, kind) in _REST.items()}}, {}, name)
    for row in whole_record["rows"]:
        _has(row, _ROW, _ROW_MORE, f"{name} has a row that")
        if not all(map(scalar, row.values())):
            raise DataError(f"{name} has a row with a group or a list in it; {_WAY_OUT}")
    for claim in whole_record["claims"]:
        _has(claim, _CLAIM, _CLAIM_MORE, f"{name} has a claim that")
        if ("low" in claim) != ("high" in claim):
            raise DataError(f"{name} has a claim with one end of an interval; {_WAY_OUT}")
    for run in whole_record["runs"]:
        _has(run, _RUN, _RUN_MORE, f"{name} has a run that")
        _check_rounds(run["rounds"], name)
        _check_rounds(run.get("phases", []), name, _PHASE_ROUND)
    _check_rounds(whole_record.get("rounds", []), name)
    _check_rounds(whole_record.get("phases", []), name, _PHASE_ROUND)
    _check_config(whole_record["config"], name)
    if whole_record.get("study") is not None:
        _check_study(whole_record, name)
    return whole_record


_WAY_OUT = "run the campaign again, or restore the file"


def _has(values: Mapping[str, Any], needed: Mapping[str, Kind], more: Mapping[str, Kind], what: str) -> None:
    for key, kind in needed.items():
        if not kind(values.get(key)):
            raise DataError(f"{what} has no usable {key!r}; {_WAY_OUT}")
    for key, kind in more.items():
        if key in values and not kind(values[key]):
            raise DataError(f"{what} has no usable {key!r}; {_WAY_OUT}")
    for key, value in values.items():
        head, dot, _ = key.partition(".")
        if dot and head in _PARTED and not _PARTED[head](value):
            raise DataError(f"{what} has no usable {key!r}; {_WAY_OUT}")


def _check_rounds(rounds: Any, name: str, needed: Mapping[str, Kind] | None = None) -> None:
    if not lists(group)(rounds):
        raise DataError(f"{name} has no usable 'rounds'; {_WAY_OUT}")
    for record in rounds:
        _has(record, {**_ROUND, **(needed or {})}, _ROUND_MORE, f"{name} has a round that")
        for site in record.get("training", {}).values():
            _has(site, {}, _LOSSES, f"{name} has a round whose training")


def _check_config(config: Mapping[str, Any], name: str) -> None:
    campaign = config.get("campaign", config)
    data = campaign.get("data", {}) if isinstance(campaign, dict) else None
    if not isinstance(data, dict) or not all(lists(scalar)(data.get(key, [])) for key in ("masks", "diagnoses")):
        raise DataError(f"{name} has no usable 'config'; {_WAY_OUT}")


def _check_study(record: Mapping[str, Any], name: str) -> None:
    study = record["study"]
    if not isinstance(study, dict):
        raise DataError(f"{name} has no usable 'study'; {_WAY_OUT}")
    _has(study, _STUDY, {"earlier_code": whole, "kind": kind_of_study}, f"{name} has a study that")
    for table in study["tables"]:
        _has(table, _TABLE, {}, f"{name} has a table that")
    for cell in study["cells"]:
        _has(cell, _CELL, {"key": text, "pictures": optional(lists(look))}, f"{name} has a cell that")
        for training in cell["rounds"]:
            _has(training, {}, {**_CELL_ROUND, **_CELL_ROUND_MORE}, f"{name} has a cell whose training")
    for claim in record["claims"]:
        _has(claim, {"reason": text}, {}, f"{name} has a claim that")


def contract_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of report.json, with what is not a finite number left out of the rows: JSON has no NaN."""
    report = {key: record[key] for key in _REPORT}
    report["rows"] = [{key: value for key, value in row.items() if _there(value)} for row in record["rows"]]
    if record.get("study") is not None:
        report["study"] = record["study"]
    return report


def _there(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))
