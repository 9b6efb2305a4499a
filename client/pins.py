"""Whose keys this site believes: `peers.json`, the other sites' public identities as its operator approved them.

The coordinator is the certificate authority and writes the manifest, so neither a certificate nor its signature keeps
it from putting keys of its own in the place of a site's. A pin does: seen once, and compared by telephone, a key is the
site's from then on, in every campaign, and a manifest with another one is refused until the operator says so by name.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.checkpoint import write_atomically
from shared.errors import DataError, RefusedError, WardroundError
from shared.trust.identity import PublicIdentity

PINS = "peers.json"


@dataclass(frozen=True, slots=True)
class Compared:
    """The sites of a manifest against what is pinned, by name."""

    new: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def of(self, site: str) -> str:
        """What to tell the operator about a site's key."""
        if site in self.changed:
            return "CHANGED since it was pinned here: call the site, and ask why"
        return "as pinned here" if site in self.same else "first seen: compare by telephone"


def read_pins(folder: Path) -> dict[str, PublicIdentity]:
    """Name -> public identity; empty where nothing is pinned yet. Raises DataError for a damaged file."""
    try:
        values = json.loads((folder / PINS).read_text())
        pins = {name: PublicIdentity.from_json(one) for name, one in values.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, RecursionError, WardroundError):
        raise DataError(
            f"{PINS} cannot be read; restore it from a backup of the folder, or remove it, approve again, and compare "
            "every site's key by telephone"
        ) from None
    if any(one.name != name for name, one in pins.items()):
        raise DataError(f"{PINS} has the keys of one site under the name of another; restore it from a backup")
    return pins


def same_keys(one: PublicIdentity | None, other: PublicIdentity | None) -> bool:
    """Whether these are one site's keys; the signature over them is another one each time that it is made."""
    if one is None or other is None:
        return False
    return (one.name, one.key, one.exchange) == (other.name, other.key, other.exchange)


def compare(pins: Mapping[str, PublicIdentity], sites: Mapping[str, PublicIdentity], own: str) -> Compared:
    """The other sites of a manifest, by whether their keys are pinned."""
    others = {name: one for name, one in sites.items() if name != own}
    same = tuple(name for name in others if name in pins and same_keys(pins[name], others[name]))
    changed = tuple(name for name in others if name in pins and name not in same)
    return Compared(tuple(name for name in others if name not in pins), same, changed)


def check_pins(compared: Compared, pins: Mapping[str, PublicIdentity], repin: Collection[str]) -> None:
    """RefusedError for keys that changed and that the operator has not named, and for a name that has not changed."""
    for site in compared.changed:
        if site not in repin:
            raise RefusedError(
                f"the keys of {site} are not those pinned here ({pins[site].fingerprint}): call the site, and only if "
                f"it has made new ones, approve with --repin {site}"
            )
    for site in repin:
        if site not in compared.changed:
            raise RefusedError(f"--repin {site}: its keys have not changed, or it is not in the manifest")


def pin(folder: Path, sites: Mapping[str, PublicIdentity], own: str) -> None:
    """Believe these sites' keys from now on; pins of other sites stay."""
    pins = read_pins(folder) | {name: one for name, one in sites.items() if name != own}
    content = json.dumps({name: pins[name].to_json() for name in sorted(pins)}, indent=1)
    write_atomically(folder / PINS, (content + "\n").encode())
