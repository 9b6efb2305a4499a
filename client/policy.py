"""What this site does and tells, whatever it is asked and whatever its own training code hands over: two doors.

`admitted` stands before anything is read or computed: a plan that is not within what the operator approved and the
site's own rules (client/rules.py) changes nothing here. `permitted` stands behind everything, where an answer is bytes
already: it is taken apart and put together anew from the closed list of shared/leaving.py, so that what is not on the
list is not left out but cannot be said. Neither reads a field of the campaign that could open it wider: the list
follows from the campaign by the site's own code, and the approved manifest may only agree with it.

A figure of too few values is withheld, as client/acceptance.py does with its own; anything else that is wrong refuses
the whole answer. Refusals cross the border themselves, so they never quote a name that is not on the list.

What this cannot see: whether the numbers in an array, a count or a random share are what they are called. That is for
secure aggregation, privacy noise, and the code that was installed here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client import privacy
from client.approvals import approvals, check_bundle
from client.folder import read
from client.pins import same_keys
from client.rules import SiteRules, check_rounds, is_paused, why_silent
from client.update import agreed_of, check_round
from shared.config import CampaignConfig, campaign_digest
from shared.errors import RefusedError
from shared.leaving import DIGITS, Figure, Leaves, counts, leaving_in
from shared.manifest import SignedManifest, check_version
from shared.metrics import one_per_test
from shared.secagg.fixed_point import BYTES
from shared.types import Plan
from shared.wire.arrays import npy_header
from shared.wire.messages import ADDED, MASKED, MAX_COUNT, Record, header_bytes

if TYPE_CHECKING:
    from client.site import SiteSetup

_ANSWERS = {
    "handshake": ("card",),
    "offer": ("offer",),
    "train": ("update", "masked"),
    "unmask": ("reveal",),
    "evaluate": ("update",),
}
_FIELDS = {
    "card": ("site", "config_digest", "architecture_digest", "version", "counts", "audit_number", "audit_head"),
    "update": ("site", "round", "num_samples", "images", "training", "evaluation", "shapes"),
    "masked": ("site", "round", "num_samples", "images", "training", "evaluation", "shapes", "session", "stands_for"),
    "offer": ("site", "round", "offer"),
    "reveal": ("site", "round", "reveal"),
}

# ------------------------------------------------------------------------------------------- the door in


def check_delivered(bundle: bytes, folder: Path) -> None:
    """Before a message is even read: RefusedError unless the site of this folder answers, and the bundle that came
    with the run is that of an approved manifest."""
    site = read(folder)
    _check_not_paused(folder, site.name)
    check_bundle(bundle, {one.digest: one.manifest for one in approvals(site.approvals)})


def admitted(plan: Plan, setup: SiteSetup) -> None:
    """Raises RefusedError, in this order, unless

    (1) the site is not paused and has not left     (2) the campaign, or the phase of it, is approved
    (3) under this very manifest, this version, this site's key and its peers' as they were pinned
    (4) the round is within the budget   (5) the site has patients enough
    (6) the cohort is named in the manifest, holds this site, and is no smaller than agreed and than the site's rules.
    """
    if setup.paused:  # (1)
        raise RefusedError(why_silent(setup.home or setup.store.parent, setup.name))
    agreed, campaign = agreed_of(plan, setup)  # (2)
    whole = campaign_digest(agreed)
    manifest = setup.manifests.get(whole)
    if manifest is None and setup.rules is not None:
        raise RefusedError(f"campaign {whole[:12]} was approved without a signed manifest; approve the signed file")
    if manifest is not None:  # (3)
        _check_manifest(plan, setup, manifest)
    check_round(plan, campaign)  # (4)
    if setup.rules is not None:
        check_rounds(agreed.total_rounds, setup.rules)
        _check_patients(setup.store, setup.rules)  # (5)
    _check_cohort(plan, campaign, setup, manifest)  # (6)


def still_answers(setup: SiteSetup) -> None:
    """The door out: RefusedError where the operator has paused the site, or left, while the answer was worked out."""
    _check_not_paused(setup.home or setup.store.parent, setup.name)


def _check_not_paused(folder: Path, site: str) -> None:
    if is_paused(folder):
        raise RefusedError(why_silent(folder, site))


def _check_manifest(plan: Plan, setup: SiteSetup, signed: SignedManifest) -> None:
    if plan.manifest_digest != signed.digest:
        raise RefusedError(
            f"the run is under manifest {plan.manifest_digest[:12] or '(none)'}, and {setup.name} approved "
            f"{signed.digest[:12]} for this campaign; approve the coordinator's present file, if you agree with it"
        )
    check_version(signed.manifest.wardround, version("wardround"))
    own = signed.manifest.sites.get(setup.name)
    if own is None:
        raise RefusedError(f"{setup.name} is not among the sites that the manifest names")
    if setup.identity is not None and not same_keys(own, setup.identity.public):
        raise RefusedError(f"the manifest has other keys for {setup.name} than this site's own; ask for a new manifest")


@lru_cache(maxsize=8)
def _patients(store: Path, changed_ns: int) -> int:
    from client.ingest.store import Store

    return len({series.patient for series in Store.open(store).series})


def _check_patients(store: Path, rules: SiteRules) -> None:
    from client.ingest.store import index_file

    index = index_file(store)
    if index is None or _patients(store, index.stat().st_mtime_ns) < rules.minimum_patients:
        raise RefusedError("this site holds fewer patients than its own rules ask for to take part (minimum_patients)")


def _check_cohort(plan: Plan, campaign: CampaignConfig, setup: SiteSetup, signed: SignedManifest | None) -> None:
    if plan.action not in ("offer", "train", "unmask"):
        return
    if not campaign.secagg.masked:
        if plan.secagg or plan.action != "train":
            raise RefusedError("the approved campaign has visible updates, and the plan asks for masked ones")
        return
    terms = plan.secagg.get("terms")
    cohort = terms.get("cohort") if isinstance(terms, Mapping) else None
    if not isinstance(cohort, list) or not all(isinstance(name, str) for name in cohort):
        raise RefusedError("the approved campaign is masked, and the plan names no cohort; no single update is sent")
    floor = max(campaign.secagg.minimum_cohort, setup.rules.minimum_cohort if setup.rules else 0)
    _check_floor(cohort, floor, "cohort")
    if setup.name not in cohort:
        raise RefusedError(f"the cohort does not hold {setup.name} itself")
    survivors = plan.secagg.get("survivors")
    if plan.action == "unmask" and isinstance(survivors, list):
        _check_floor([name for name in survivors if name in cohort], floor, "number of sites whose sum is opened")
    if signed is not None:
        _check_names(cohort, setup, signed)


def _check_floor(names: Sequence[Any], floor: int, what: str) -> None:
    if len(set(names)) < floor or len(set(names)) != len(names):
        raise RefusedError(f"the {what} is below the floor: expected {floor} different sites or more, got {len(names)}")


def _check_names(cohort: Sequence[str], setup: SiteSetup, signed: SignedManifest) -> None:
    sites = signed.manifest.sites
    strangers = sum(name not in sites for name in cohort)
    if strangers:
        raise RefusedError(f"the cohort holds {strangers} sites that the approved manifest does not name")
    for name in cohort:
        if name != setup.name and not same_keys(setup.peers.get(name), sites[name]):
            raise RefusedError(
                f"the keys of {name} are not those that were pinned here; compare them by telephone, then approve again"
            )


# ------------------------------------------------------------------------------------------- the door out


def permitted(record: Record, plan: Plan, setup: SiteSetup) -> Record:
    """The answer, put together anew from what the list allows; numbers have DIGITS significant digits.

    Raises RefusedError where anything in it is not on the list, of another type or shape, or out of its range.
    """
    header = json.loads(record.header)
    kind = header.pop("kind")
    header.pop("format")
    if kind not in _ANSWERS[plan.action]:
        raise RefusedError(f"withheld: an answer of another kind than {' or '.join(_ANSWERS[plan.action])}")
    promoted = "added" in header
    wanted = {*_FIELDS[kind], *(("added",) if kind == "update" and promoted else ())}
    if header.keys() != wanted:
        raise RefusedError("withheld: the answer has a field that is not on the list, or lacks one")
    agreed, campaign = agreed_of(plan, setup)
    if header["site"] != setup.name or header.get("round", plan.round) != plan.round:
        raise RefusedError("withheld: the answer bears another site's name, or another round")
    if kind == "card":
        return Record(header_bytes(kind, _card(header, plan, campaign)), _no_arrays(record))
    if kind in ("offer", "reveal"):
        return Record(header_bytes(kind, header | {kind: _exchanged(kind, header[kind])}), _no_arrays(record))
    leaves = leaving_in(campaign, {name: values.shape for name, values in plan.weights.items()})
    signed = setup.manifests.get(campaign_digest(agreed))
    if signed is not None and not _is_listed(leaves, signed, campaign):
        raise RefusedError(
            "withheld: what this version lets leave is not what was approved; approve the campaign again"
        )
    if privacy.compares(setup):  # a rehearsal alone may tell how far noise turned its update
        leaves = replace(leaves, training={**leaves.training, privacy.COSINE: Figure(-1.001, 1.001)})
    closing = plan.action == "evaluate"
    told = _update(header, leaves, setup.rules, closing=closing)
    if kind == "masked":
        return Record(header_bytes(kind, _masked(told, header, record, plan, campaign, leaves)), dict(record.arrays))
    if campaign.secagg.masked and not closing:
        raise RefusedError("withheld: the approved campaign is masked, and this update is not")
    return Record(header_bytes(kind, _visible(told, header, record, leaves, closing=closing)), dict(record.arrays))


def _is_listed(leaves: Leaves, signed: SignedManifest, campaign: CampaignConfig) -> bool:
    phase = campaign.generate.phase if campaign.generate.on and campaign.generate.phase != "all" else ""
    return bool(json.loads(json.dumps(leaves.to_json())) == signed.manifest.leaves.get(phase))


def _no_arrays(record: Record) -> dict[str, bytes]:
    if record.arrays:
        raise RefusedError("withheld: an array in an answer that has none")
    return {}


def _card(header: dict[str, Any], plan: Plan, campaign: CampaignConfig) -> dict[str, Any]:
    named = counts(campaign)
    if header["counts"].keys() != set(named) or not all(_is_count(header["counts"][name]) for name in named):
        raise RefusedError("withheld: a count that is not on the list, or is no whole number")
    if header["config_digest"] != plan.config_digest or header["version"] != version("wardround"):
        raise RefusedError("withheld: the card is of another campaign or version")
    if not isinstance(header["architecture_digest"], str) or len(header["architecture_digest"]) != 64:
        raise RefusedError("withheld: the card's architecture is no digest")
    if not _is_count(header["audit_number"]) or not re.fullmatch("[0-9a-f]{64}", str(header["audit_head"])):
        raise RefusedError("withheld: the head of the audit log on the card is none")
    return header | {"counts": {name: header["counts"][name] for name in named}}


def _exchanged(kind: str, values: Any) -> dict[str, Any]:
    """An offer or a reveal of shared/secagg, with the fields that it has and no others."""
    from shared.secagg.protocol import Offer, Reveal

    read = Offer.from_json(values) if kind == "offer" else Reveal.from_json(values)
    return dict(read.to_json())


def _update(header: Mapping[str, Any], leaves: Leaves, rules: SiteRules | None, *, closing: bool) -> dict[str, Any]:
    """The fields that visible and masked updates share."""
    expected = () if closing else leaves.images
    images = header["images"]
    if images.keys() != set(expected):
        raise RefusedError("withheld: images are counted for a part that is not on the list, or for too few parts")
    for count in (header["num_samples"], *images.values()):
        if not _is_count(count) or count > leaves.most_images:
            raise RefusedError(f"withheld: a count of images is not a whole number from 0 to {leaves.most_images}")
    if closing and (header["training"] or header["num_samples"]):
        raise RefusedError("withheld: an evaluation tells of training")
    metrics = {**leaves.metrics, **(leaves.closing if closing else {})}
    return {
        "site": header["site"],
        "round": header["round"],
        "num_samples": header["num_samples"],
        "images": {part: images[part] for part in expected},
        "training": {name: _number(name, value, leaves.training) for name, value in header["training"].items()},
        "evaluation": _evaluation(header["evaluation"], metrics, rules),
    }


def _number(name: str, value: object, listed: Mapping[str, Figure]) -> float:
    if name not in listed:
        raise RefusedError("withheld: a training figure that is not on the list of what may leave")
    if isinstance(value, bool) or not isinstance(value, int | float) or not listed[name].holds(value):
        raise RefusedError(
            f"withheld: training figure {name} must be a number from {listed[name].low:g} to {listed[name].high:g}"
        )
    return rounded(value)


def rounded(value: float) -> float:
    """DIGITS significant digits: further ones could carry anything."""
    return float(f"{value:.{DIGITS}g}")


def _evaluation(
    group: Mapping[str, Any], listed: Mapping[str, Figure], rules: SiteRules | None
) -> dict[str, dict[str, Any]]:
    told = {}
    for name, values in group.items():
        if name not in listed:
            raise RefusedError("withheld: a metric that is not on the list of what may leave")
        told[name] = _moments(name, values, listed[name])
    return told if rules is None else _enough(told, listed, rules)


def _moments(name: str, values: Any, figure: Figure) -> dict[str, Any]:
    """One metric whose sums can be those of `count` values within the figure's range."""
    wrong = RefusedError(f"withheld: metric {name} is not the count, sums and quantiles of values from {figure.low:g} "
                         f"to {figure.high:g}")  # fmt: skip
    if not isinstance(values, dict) or values.keys() != {"count", "total", "total_sq", "quantiles"}:
        raise wrong
    count, points = values["count"], values["quantiles"]
    numbers = (values["total"], values["total_sq"], *points)
    if not _is_count(count) or not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
        raise wrong
    if any(isinstance(x, bool) for x in numbers) or len(points) not in (0, 5) or points != sorted(points):
        raise wrong
    if points and not figure.quantiles:
        raise RefusedError(f"withheld: quantiles of metric {name} are not on the list of what may leave")
    mean, square = (sum_ / count if count else 0.0 for sum_ in numbers[:2])
    largest = max(abs(figure.low), abs(figure.high)) ** 2
    within = not count or all(figure.holds(x) for x in (mean, *points))
    if not within or not mean**2 - 1e-6 * (1 + largest) <= square <= largest * (1 + 1e-5):
        raise wrong
    if one_per_test(name.partition(".")[2]) and count > 1:
        raise wrong
    total, total_sq, *quantiles = map(rounded, numbers)
    return {"count": count, "total": total, "total_sq": total_sq, "quantiles": quantiles}


def _enough(
    told: Mapping[str, dict[str, Any]], listed: Mapping[str, Figure], rules: SiteRules
) -> dict[str, dict[str, Any]]:
    """Without what too few values are behind, by the list and by the site's rules."""
    kept = {}
    for name, values in told.items():
        state, _, metric = name.partition(".")
        behind = told.get(f"{state}.accuracy", values) if one_per_test(metric) else values
        if behind["count"] < max(listed[name].least, rules.minimum_patients):
            continue
        tell = rules.quantiles and values["count"] >= listed[name].quantiles
        kept[name] = values if tell else values | {"quantiles": []}
    return kept


def _visible(
    told: dict[str, Any], header: Mapping[str, Any], record: Record, leaves: Leaves, *, closing: bool
) -> dict[str, Any]:
    arrays = {} if closing else dict(leaves.arrays)
    added = {} if closing else {ADDED + name: leaves.arrays[name] for name in leaves.added}
    shapes = arrays | added
    if record.arrays.keys() != shapes.keys() or header["shapes"].keys() != shapes.keys():
        raise RefusedError("withheld: an array that is not on the list of what may leave, or one is missing")
    for name, shape in shapes.items():
        before = npy_header(tuple(shape), "<f2" if name in added else "<f4")
        size = math.prod(shape) * (2 if name in added else 4)
        data = record.arrays[name]
        if (
            list(header["shapes"][name]) != list(shape)
            or len(data) != len(before) + size
            or data[: len(before)] != before
        ):
            raise RefusedError(f"withheld: array {name} is not one of shape {list(shape)} in the agreed type")
    scales = header.get("added", {})
    if scales.keys() != ({name.removeprefix(ADDED) for name in added}):
        raise RefusedError("withheld: scales of arrays that are not on the list of what may leave")
    if not all(isinstance(scale, int | float) and math.isfinite(scale) for scale in scales.values()):
        raise RefusedError("withheld: a scale that is no number")
    return (
        told | {"shapes": {name: list(shape) for name, shape in shapes.items()}} | ({"added": scales} if added else {})
    )


def _masked(
    told: dict[str, Any],
    header: Mapping[str, Any],
    record: Record,
    plan: Plan,
    campaign: CampaignConfig,
    leaves: Leaves,
) -> dict[str, Any]:
    if not campaign.secagg.masked:
        raise RefusedError("withheld: the approved campaign has visible updates, and this one is masked")
    shapes = dict(leaves.arrays) | {ADDED + name: leaves.arrays[name] for name in leaves.added}
    stands_for = header["stands_for"]
    if {name: tuple(shape) for name, shape in stands_for.items()} != {name: tuple(s) for name, s in shapes.items()}:
        raise RefusedError("withheld: the masked values stand for arrays that are not on the list of what may leave")
    if record.arrays.keys() != {MASKED}:
        raise RefusedError("withheld: an array beside the masked values")
    size = BYTES * sum(math.prod(shape) for shape in shapes.values())
    if len(record.arrays[MASKED]) != size or header["shapes"] != {MASKED: [size]}:
        raise RefusedError(f"withheld: the masked values must be {size} bytes, as many as the arrays take")
    if header["session"] != plan.secagg["terms"].get("session"):
        raise RefusedError("withheld: the masked values are of another session than the plan's")
    return told | {
        "session": header["session"],
        "stands_for": {name: list(shape) for name, shape in shapes.items()},
        "shapes": {MASKED: [size]},
    }


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT
