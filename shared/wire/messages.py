"""Plan, update and site card in, plain records out, and back through checks: what crosses a site's border, and no more.

A record is one JSON header and named arrays as .npy bytes; it knows nothing of Flower. Every number that a peer could
abuse is a named limit. Arrays of an update stay bytes here: the coordinator decodes them one at a time. Arrays are
float32; what recognition added (names under `added.`) is float16 with a scale in the header, half as many bytes. A
masked update is one array of bytes, which tells nothing without those of the other sites (shared/secagg).

Why JSON and not Flower's typed records: one header can be read by a person, checked field by field in one place, and
carried by another transport (the site's worker, a file) unchanged.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast, get_args

from shared.errors import DataError
from shared.types import Action, Metrics, Moments, Offered, Plan, Revealed, SiteCard, Update
from shared.weights import PARTS, parts_of
from shared.wire.arrays import Half, decode_array, encode_array, encode_half

FORMAT = 5
"""5: secure aggregation (plans to offer and to unmask, offers, masked updates, reveals) and the digest of a manifest;
4: a plan says by a digest what a generator's phase does not train, and a handshake may bring it; 3: an update counts
images per part of the network; 2: what recognition added may stand beside a difference."""
ADDED = "added."
MASKED = "masked"
"""Name of the one array of a masked update: the bytes of shared.secagg.fixed_point.pack, without an .npy header."""
MAX_HEADER_BYTES = 4 * 1024**2
MAX_ARRAYS = 20_000
MAX_NAME_CHARS = 300
MAX_REASON_CHARS = 300
MAX_METRICS = 1_000
MAX_COUNT = 2**53
MAX_SITES = 1_000
"""Most sites that the groups of secure aggregation name."""

_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SESSION = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One message: a JSON object and .npy arrays (or MASKED) whose shapes stand in it under `shapes`."""

    header: bytes
    arrays: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return len(self.header) + sum(len(name) + len(data) for name, data in self.arrays.items())


@dataclass(frozen=True, slots=True, eq=False)
class ReceivedUpdate:
    """An update whose header is checked and whose arrays are still bytes; `shapes` is what the sender says they are."""

    site: str
    round: int
    num_samples: int
    images: Mapping[str, int]
    """By names of shared.weights.PARTS; whether they are the weights' own is for the coordinator to check."""
    training: Mapping[str, float]
    evaluation: Metrics
    shapes: Mapping[str, tuple[int, ...]]
    arrays: Mapping[str, bytes]
    added: Mapping[str, Half] = field(default_factory=dict)
    """By the name of the array in `shapes` that it is a part of, and of the same shape."""


@dataclass(frozen=True, slots=True, eq=False)
class ReceivedMasked:
    """A masked update: a checked header beside a vector that tells nothing alone."""

    head: ReceivedUpdate
    """Without arrays; its `shapes` are those of the arrays that the vector stands for, in the vector's order. What
    recognition added has the prefix ADDED there."""
    session: str
    masked: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """A site's no: the class of the error at the site, and its reason in one line."""

    error: str
    reason: str


Answer: TypeAlias = SiteCard | ReceivedUpdate | ReceivedMasked | Offered | Revealed | Refusal


# ------------------------------------------------------------------------------------------------------------ writing


def plan_record(plan: Plan) -> Record:
    header = {
        "campaign": plan.campaign,
        "action": plan.action,
        "round": plan.round,
        "config_digest": plan.config_digest,
        "architecture_digest": plan.architecture_digest,
        "frozen_digest": plan.frozen_digest,
        "manifest_digest": plan.manifest_digest,
        "secagg": dict(plan.secagg),
        "shapes": {name: values.shape for name, values in plan.weights.items()},
    }
    return Record(header_bytes("plan", header), {name: encode_array(values) for name, values in plan.weights.items()})


def update_record(update: Update) -> Record:
    halves = {name: encode_half(name, values) for name, values in update.added.items()}
    header = update_header(update)
    if halves:
        header["added"] = {name: half.scale for name, half in halves.items()}
        header["shapes"] |= {ADDED + name: values.shape for name, values in update.added.items()}
    arrays = {name: encode_array(values) for name, values in update.difference.items()}
    return Record(header_bytes("update", header), arrays | {ADDED + name: half.data for name, half in halves.items()})


def masked_record(update: Update, session: str, masked: bytes) -> Record:
    """An update whose arrays have gone into `masked`: its differences, then what was added, in their order."""
    header = update_header(update)
    added = {ADDED + name: values.shape for name, values in update.added.items()}
    header |= {"session": session, "stands_for": header["shapes"] | added, "shapes": {MASKED: [len(masked)]}}
    return Record(header_bytes("masked", header), {MASKED: masked})


def offer_record(offered: Offered) -> Record:
    header = {"site": offered.site, "round": offered.round, "offer": dict(offered.offer)}
    return Record(header_bytes("offer", header))


def reveal_record(revealed: Revealed) -> Record:
    header = {"site": revealed.site, "round": revealed.round, "reveal": dict(revealed.reveal)}
    return Record(header_bytes("reveal", header))


def update_header(update: Update) -> dict[str, Any]:
    """Everything but the arrays. Measurements that are not numbers (a mean over nothing) stay at the site."""
    return {
        "site": update.site,
        "round": update.round,
        "num_samples": update.num_samples,
        "images": {part: update.images[part] for part in parts_of(update.difference)},
        "training": {key: value for key, value in update.training.items() if math.isfinite(value)},
        "evaluation": {key: _moments_json(value) for key, value in update.evaluation.items() if _is_finite(value)},
        "shapes": {name: values.shape for name, values in update.difference.items()},
    }


def card_record(card: SiteCard) -> Record:
    header = {
        "site": card.site,
        "config_digest": card.config_digest,
        "architecture_digest": card.architecture_digest,
        "version": card.version,
        "counts": dict(card.counts),
        "audit_number": card.audit[0],
        "audit_head": card.audit[1],
    }
    return Record(header_bytes("card", header))


def refusal_record(error: str, reason: str) -> Record:
    return Record(header_bytes("refusal", {"error": error, "reason": one_line(reason)}))


def one_line(text: str) -> str:
    """Printable, on one line, bounded: fit for a terminal, a log and a page."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printable.split())[:MAX_REASON_CHARS]


def metrics_json(metrics: Metrics) -> dict[str, dict[str, Any]]:
    """Metrics as plain JSON values: the form of the wire, of rounds.jsonl and of checkpoints."""
    return {key: _moments_json(value) for key, value in metrics.items()}


def _moments_json(value: Moments) -> dict[str, Any]:
    return {
        "count": value.count,
        "total": value.total,
        "total_sq": value.total_sq,
        "quantiles": list(value.quantiles),
    }


def _is_finite(value: Moments) -> bool:
    return all(map(math.isfinite, (value.total, value.total_sq, *value.quantiles)))


def header_bytes(kind: str, values: Mapping[str, Any]) -> bytes:
    text = json.dumps({"format": FORMAT, "kind": kind, **values}, allow_nan=False, separators=(",", ":")).encode()
    assert len(text) <= MAX_HEADER_BYTES, len(text)
    return text


# ------------------------------------------------------------------------------------------------------------ reading


def read_plan(record: Record) -> Plan:
    """A plan as a site may act on it; DataError otherwise. The weights are read-only views into the record."""
    header = _header(record)
    if header["kind"] != "plan":
        raise DataError(f"expected a plan, got a {header['kind']!r} message")
    action = _text(header, "action", 20)
    if action not in get_args(Action):
        raise DataError(f"a plan's action must be one of {', '.join(get_args(Action))}; got {one_line(action)!r}")
    shapes = _shapes(header, record)
    return Plan(
        campaign=_text(header, "campaign", MAX_NAME_CHARS),
        action=cast(Action, action),
        round=_count(header, "round"),
        config_digest=_digest(header, "config_digest"),
        architecture_digest=_digest(header, "architecture_digest"),
        weights={name: decode_array(name, record.arrays[name], shape) for name, shape in shapes.items()},
        frozen_digest=_digest(header, "frozen_digest") if header.get("frozen_digest") else "",
        manifest_digest=_digest(header, "manifest_digest") if header.get("manifest_digest") else "",
        secagg=_group(header, "secagg", 3),
    )


def read_answer(record: Record) -> Answer:
    """What a site replied, by its kind; DataError when it is none of them or a field is out of bounds."""
    header = _header(record)
    if header["kind"] == "update":
        return _update(header, record)
    if header["kind"] == "masked":
        return _masked(header, record)
    if header["kind"] == "offer":
        return Offered(_site(header), _count(header, "round"), _group(header, "offer", MAX_SITES))
    if header["kind"] == "reveal":
        return Revealed(_site(header), _count(header, "round"), _group(header, "reveal", MAX_SITES))
    if header["kind"] == "card":
        return SiteCard(
            site=_site(header),
            config_digest=_digest(header, "config_digest"),
            architecture_digest=_digest(header, "architecture_digest"),
            version=one_line(_text(header, "version", 60)),
            counts={key: _count(_group(header, "counts"), key) for key in _group(header, "counts")},
            audit=(_count(header, "audit_number"), _digest(header, "audit_head")),
        )
    if header["kind"] == "refusal":
        return Refusal(one_line(_text(header, "error", 60)), one_line(_text(header, "reason", MAX_REASON_CHARS)))
    raise DataError("expected a site card, an update, an offer, a reveal or a refusal, got another kind of message")


def _update(header: dict[str, Any], record: Record) -> ReceivedUpdate:
    shapes = _shapes(header, record)
    added = _added(header, shapes, record)
    for name in added:
        del shapes[ADDED + name]
    return _received(header, shapes, {name: record.arrays[name] for name in shapes}, added)


def _masked(header: dict[str, Any], record: Record) -> ReceivedMasked:
    if _shapes(header, record) != {MASKED: (len(record.arrays.get(MASKED, b"")),)}:
        raise DataError("a masked update holds one array of bytes and no other")
    session = _text(header, "session", 32)
    if not _SESSION.fullmatch(session):
        raise DataError("field 'session' must be 32 hexadecimal digits")
    head = _received(header, _sizes(_group(header, "stands_for", MAX_ARRAYS)), {}, {})
    return ReceivedMasked(head, session, record.arrays[MASKED])


def _received(
    header: dict[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Mapping[str, bytes],
    added: Mapping[str, Half],
) -> ReceivedUpdate:
    training = _group(header, "training")
    return ReceivedUpdate(
        site=_site(header),
        round=_count(header, "round"),
        num_samples=_count(header, "num_samples"),
        images=_images(header),
        training={key: _number(training, key) for key in training},
        evaluation=read_metrics(_group(header, "evaluation")),
        shapes=shapes,
        arrays=arrays,
        added=added,
    )


def _images(header: Mapping[str, Any]) -> dict[str, int]:
    counts = _group(header, "images", len(PARTS))
    for part in counts:
        if part not in PARTS:
            raise DataError(f"images are counted for {', '.join(PARTS)}, not for {one_line(part)!r}")
    return {part: _count(counts, part) for part in counts}


def _added(header: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], record: Record) -> dict[str, Half]:
    """The halves under the names of the arrays that they are parts of."""
    scales = _group(header, "added", MAX_ARRAYS) if "added" in header else {}
    for name in scales:
        if name not in shapes or ADDED + name not in shapes:
            raise DataError(f"what was added to {one_line(name)!r} has no array in the message")
        if shapes[ADDED + name] != shapes[name]:
            raise DataError(f"what was added to {one_line(name)!r} must have the shape of that array")
    return {name: Half(_number(scales, name), record.arrays[ADDED + name]) for name in scales}


def read_metrics(values: Mapping[str, Any]) -> Metrics:
    """The inverse of `metrics_json`, with checks."""
    return {key: _moments(_group(values, key)) for key in values}


def _moments(values: Mapping[str, Any]) -> Moments:
    quantiles = values.get("quantiles", [])
    if not isinstance(quantiles, list) or len(quantiles) not in (0, 5):
        raise DataError("a metric's quantiles must be five numbers or none")
    return Moments(
        count=_count(values, "count"),
        total=_number(values, "total"),
        total_sq=_number(values, "total_sq"),
        quantiles=tuple(_finite("quantiles", value) for value in quantiles),
    )


def _header(record: Record) -> dict[str, Any]:
    if len(record.header) > MAX_HEADER_BYTES:
        raise DataError(f"message header must be at most {MAX_HEADER_BYTES} bytes, got {len(record.header)}")
    try:
        header = json.loads(record.header, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise DataError("message header is not JSON; is the peer running another version?") from None
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise DataError("message header is not an object with a kind")
    if header.get("format") != FORMAT:
        raise DataError(f"expected a message of format {FORMAT}; install the same version of Wardround on both sides")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers of one name that occurs twice could believe different values."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError
    return values


def _shapes(header: Mapping[str, Any], record: Record) -> dict[str, tuple[int, ...]]:
    shapes = _group(header, "shapes", MAX_ARRAYS)
    if set(shapes) != set(record.arrays):
        raise DataError("the arrays of a message are not those that its header names")
    return _sizes(shapes)


def _sizes(shapes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    for name, shape in shapes.items():
        if len(name) > MAX_NAME_CHARS or not isinstance(shape, list) or len(shape) > 8:
            raise DataError("an array's name or number of dimensions is out of bounds")
        if not all(type(size) is int and 0 <= size < MAX_COUNT for size in shape):
            raise DataError("an array's shape must be whole numbers")
    return {name: tuple(shape) for name, shape in shapes.items()}


def _group(values: Mapping[str, Any], key: str, limit: int = MAX_METRICS) -> dict[str, Any]:
    group = values.get(key)
    if not isinstance(group, dict) or len(group) > limit or any(len(name) > MAX_NAME_CHARS for name in group):
        raise DataError(f"field {one_line(key)!r} must be a group of at most {limit} names")
    return group


def _text(values: Mapping[str, Any], key: str, limit: int) -> str:
    value = values.get(key)
    if not isinstance(value, str) or len(value) > limit:
        raise DataError(f"field {key!r} must be a text of at most {limit} characters")
    return value


def _site(values: Mapping[str, Any]) -> str:
    return site_name(_text(values, "site", MAX_NAME_CHARS))


def site_name(text: str) -> str:
    """A name fit for a folder, a table and a log line; DataError otherwise."""
    if not _SITE_NAME.fullmatch(text):
        raise DataError("a site's name must be 1 to 64 letters, digits, dots, dashes or underscores")
    return text


def _digest(values: Mapping[str, Any], key: str) -> str:
    value = _text(values, key, 64)
    if not _DIGEST.fullmatch(value):
        raise DataError(f"field {key!r} must be a SHA-256 in hexadecimal")
    return value


def _count(values: Mapping[str, Any], key: str) -> int:
    value = values.get(key)
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise DataError(f"field {one_line(key)!r} must be a whole number from 0 to 2^53")
    return value


def _number(values: Mapping[str, Any], key: str) -> float:
    return _finite(key, values.get(key))


def _finite(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise DataError(f"field {one_line(key)!r} must be a finite number")
    return float(value)
