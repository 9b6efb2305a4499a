"""A manifest in words, beside its campaign's (client/describe.py): sites, keys, protection, and what is new in it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any

from client.pins import Compared
from client.rules import SiteRules
from shared.config import to_dict
from shared.manifest import Manifest, SignedManifest

_LONGEST = 12
"""Differences that are told one by one."""
_UNTOLD = ("name",)


def describe_manifest(signed: SignedManifest, compared: Compared, own: str, rules: SiteRules) -> list[tuple[str, str]]:
    """Rows of (question, answer) on what the campaign's own words do not say."""
    manifest = signed.manifest
    made = dt.datetime.fromisoformat(manifest.made_at)
    figures = [len(one[group]) for one in manifest.leaves.values() for group in ("training", "metrics", "closing")]
    withheld = f"; of fewer than {rules.minimum_patients} values none" + ("" if rules.quantiles else ", no quantiles")
    return [
        ("manifest", f"{signed.digest}, signed for this federation, made {made:%Y-%m-%d %H:%M}"),
        ("version", f"Wardround {manifest.wardround}; sites of another version are refused"),
        ("secure aggregation", manifest.secagg),
        ("privacy", manifest.privacy),
        ("nothing else leaves", f"a closed list of {sum(figures)} named figures, each with its range, to six digits; "
         f"an answer with anything else in it is refused here{withheld}"),
        *((f"site {name}", _site(manifest, compared, name, own)) for name in manifest.sites),
    ]  # fmt: skip


def _site(manifest: Manifest, compared: Compared, name: str, own: str) -> str:
    key = manifest.sites[name].fingerprint
    return f"{key} (this site)" if name == own else f"{key} ({compared.of(name)})"


# ------------------------------------------------------------------------------------------- what is new


def differences(before: SignedManifest, now: SignedManifest) -> list[str]:
    """What a person who has approved `before` must read in `now`, in words; empty where they agree."""
    old, new = before.manifest, now.manifest
    return [*_sites(old, new), *_leaves(old, new), *_words(old, new), *_settings(old, new)]


def _sites(old: Manifest, new: Manifest) -> Iterator[str]:
    for name in new.sites.keys() - old.sites.keys():
        yield f"site {name} takes part now"
    for name in old.sites.keys() - new.sites.keys():
        yield f"site {name} does not take part any more"
    for name in sorted(old.sites.keys() & new.sites.keys()):
        if old.sites[name].key != new.sites[name].key:
            yield f"site {name} has another key"


def _leaves(old: Manifest, new: Manifest) -> Iterator[str]:
    was, is_ = set(_listed(old)), set(_listed(new))
    for verb, names in (("may leave now, and did not before", is_ - was), ("no longer leaves", was - is_)):
        if names:
            told = ", ".join(sorted(names)[:_LONGEST])
            more = f" and {len(names) - _LONGEST} more" if len(names) > _LONGEST else ""
            yield f"{verb}: {told}{more}"


def _listed(manifest: Manifest) -> Iterator[str]:
    for phase, one in manifest.leaves.items():
        where = f"{phase}: " if phase else ""
        arrays = {name.partition(".")[0] for name in one["arrays"]}
        yield from (f"{where}weights of {part}" for part in arrays)
        yield from (f"{where}what recognition added to the enhancer" for _ in one["added"][:1])
        for group in ("training", "metrics", "closing"):
            yield from (f"{where}{name}" for name in one[group])
        yield from (f"count {name}" for name in one["counts"])


def _words(old: Manifest, new: Manifest) -> Iterator[str]:
    for what in ("wardround", "secagg", "privacy"):
        was, is_ = getattr(old, what), getattr(new, what)
        if was != is_:
            yield f"{'version of Wardround' if what == 'wardround' else what}: was {was!r}, is {is_!r}"


def _settings(old: Manifest, new: Manifest) -> Iterator[str]:
    was, is_ = dict(_flat(to_dict(old.campaign))), dict(_flat(to_dict(new.campaign)))
    for key in sorted(was.keys() | is_.keys()):
        if was.get(key) != is_.get(key) and key not in _UNTOLD:
            yield f"{key}: was {_told(was.get(key))}, is {_told(is_.get(key))}"


def _flat(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{where}.{key}" if where else key
        if isinstance(value, dict):
            yield from _flat(value, name)
        else:
            yield name, value


def _told(value: Any) -> str:
    if value is None:
        return "not set"
    return ", ".join(map(str, value)) or "empty" if isinstance(value, list) else str(value)
