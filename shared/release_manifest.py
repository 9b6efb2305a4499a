"""The manifest of a release: canonical JSON in, a frozen value out, and back; every field is checked for its kind.

Bytes in and out are equal (sorted keys, no blanks, UTF-8 without escapes), so there is one manifest for one signature.
A manifest is read before its signature is believed: nothing in it is used but after these checks.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.errors import DataError

FORMAT = 1
RESEARCH = "Research only: not a medical device, not for diagnosis or treatment."
LARGEST = 1e15
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[^\x00-\x1f\x7f]{1,100}")
_TEXT = re.compile(r"[^\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]{0,4000}")

Kind = Callable[[Any], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a release says about itself. All values are plain JSON."""

    format: int = FORMAT
    name: str
    version: int
    """1, 2, ... of its name."""
    made_at: str
    """ISO 8601, UTC."""
    federation: Mapping[str, str]
    """`name`, and `authority`: SHA-256 of the DER of the authority's certificate."""
    campaign_digest: str
    architecture_digest: str
    wardround: str
    """Version of Wardround that made it."""
    versions: Mapping[str, str]
    """Of what the run was trained with, package -> version."""
    files: Mapping[str, Mapping[str, str | int]]
    """File -> `sha256` and `bytes`."""
    intended_use: str = RESEARCH
    sites: Mapping[str, Mapping[str, int | float]]
    """The data sheet: site -> counts, as in its card (shared.types.SiteCard)."""
    rows: Sequence[Mapping[str, Any]]
    """Site x model matrix, as rows of a report."""
    gates: Sequence[Mapping[str, Any]]
    """`gate`, `site` ("all": over all sites), `value` (None: nothing to measure), `limit`, `holds`, `decides`, `n`."""
    privacy: Mapping[str, Any]
    """`epsilon` (None: no differential privacy) and `words`."""
    calibration: Mapping[str, Any] | None = None
    """`bins`: ten of equal width over the top probability, 0 to 1, each with the `count` of patients, their mean top
    probability `confidence` and the share `correct`; both 0 where there is no patient."""
    descriptors: Mapping[str, Mapping[str, Mapping[str, int | float]]] | None = None
    """Descriptor of input images -> site -> `count`, `mean`, `std` over its test images."""
    lesion: str | None = None
    """The mask class whose connected components the gates count as lesions."""
    gates_config: Mapping[str, int | float]
    """shared.config.ReleaseConfig, as plain values."""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise DataError(
                f"the release is of format {str(self.format)[:20]}, this Wardround reads {FORMAT}; install the version "
                "that the coordinator uses"
            )
        for field, holds in _FIELDS.items():
            if not holds(getattr(self, field)):
                raise DataError(
                    f"{field} of the release's manifest is not what it should be; fetch the release from the "
                    "coordinator again"
                )

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest's bytes: the release digest that images and reports carry."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        values = dataclasses.asdict(self)
        return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Manifest:
        """Raises DataError unless these are the very bytes that `to_json` writes for a manifest."""
        damaged = "the release's manifest is not readable; fetch the release from the coordinator again"
        try:
            values = json.loads(content.decode())
        except (ValueError, RecursionError):
            raise DataError(damaged) from None
        if not isinstance(values, dict):
            raise DataError(damaged)
        if values.get("format") != FORMAT:
            raise DataError(
                f"the release is of format {str(values.get('format'))[:20]}, this Wardround reads {FORMAT}; install "
                "the version that the coordinator uses"
            )
        known = {field.name for field in dataclasses.fields(cls)}
        if values.keys() != known:
            wrong = sorted(values.keys() ^ known)[0][:60]
            raise DataError(f"the release's manifest lacks {wrong!r}, or has it and should not; fetch it again")
        try:
            manifest = cls(**values)
            whole = manifest.to_json() == content
        except (ValueError, TypeError, RecursionError):  # NaN, a lone surrogate
            raise DataError(damaged) from None
        if not whole:
            raise DataError(
                "the release's manifest is not in its canonical form; fetch the release from the coordinator again"
            )
        return manifest


# ----------------------------------------------------------------------------------------------------- kinds of values


def _matches(pattern: re.Pattern[str]) -> Kind:
    return lambda value: isinstance(value, str) and bool(pattern.fullmatch(value))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _truth(value: Any) -> bool:
    return isinstance(value, bool)


def _none_or(kind: Kind) -> Kind:
    return lambda value: value is None or kind(value)


def _any_of(*kinds: Kind) -> Kind:
    return lambda value: any(kind(value) for kind in kinds)


def _group(key: Kind, kind: Kind, most: int = 1000) -> Kind:
    return lambda value: (
        isinstance(value, Mapping) and len(value) <= most and all(key(k) and kind(v) for k, v in value.items())
    )


def _exactly(kinds: Mapping[str, Kind]) -> Kind:
    return lambda value: (
        isinstance(value, Mapping) and value.keys() == kinds.keys() and all(kinds[k](v) for k, v in value.items())
    )


def _list(kind: Kind, most: int) -> Kind:
    return lambda value: isinstance(value, list | tuple) and len(value) <= most and all(map(kind, value))


def _time(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > 40:
        return False
    try:
        return dt.datetime.fromisoformat(value).utcoffset() == dt.timedelta(0)
    except ValueError:
        return False


_text, _key, _name, _site, _digest = map(_matches, (_TEXT, _KEY, _NAME, _SITE, _DIGEST))
_moments = _exactly({"count": _whole, "mean": _number, "std": _number})
_gate = _exactly(
    {
        "gate": _key,
        "site": _site,
        "value": _none_or(_number),
        "limit": _number,
        "holds": _truth,
        "decides": _truth,
        "n": _whole,
    }
)
_bin = _exactly({"count": _whole, "confidence": _share, "correct": _share})
_FIELDS: Mapping[str, Kind] = {
    "format": _whole,
    "name": _name,
    "version": lambda value: _whole(value) and 1 <= value <= 10**6,
    "made_at": _time,
    "federation": _exactly({"name": _name, "authority": _digest}),
    "campaign_digest": _digest,
    "architecture_digest": _digest,
    "wardround": _key,
    "versions": _group(_key, _key),
    "files": _group(_key, _exactly({"sha256": _digest, "bytes": _whole}), 10),
    "intended_use": _text,
    "sites": _group(_site, _group(_key, _any_of(_whole, _number))),
    "rows": _list(_group(_key, _any_of(_none_or(_text), _truth, _number), 200), 10_000),
    "gates": _list(_gate, 50_000),
    "privacy": _exactly({"epsilon": _none_or(_number), "words": _text}),
    "calibration": _none_or(_exactly({"bins": lambda value: _list(_bin, 10)(value) and len(value) == 10})),
    "descriptors": _none_or(_group(_key, _group(_site, _moments), 100)),
    "lesion": _none_or(_key),
    "gates_config": _group(_key, _number, 100),
}
