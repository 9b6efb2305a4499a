"""What sites may fetch: signed manifests of campaigns that name them, and every release. The folder is the list."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.folder import Coordinator
from shared.checkpoint import write_atomically
from shared.errors import ConfigError, DataError, RefusedError
from shared.trust import keystore
from shared.trust.names import checked_name
from shared.wire.enrol.limits import MAX_CAMPAIGN

BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Shelved:
    kind: str  # campaign or release
    name: str
    size: int
    sha256: bytes
    path: Path


def publish(coordinator: Coordinator, name: str, manifest: bytes) -> Path:
    """Put a signed manifest where its sites can fetch it: campaigns/NAME.json. One that was published never changes."""
    keystore.private_folder(coordinator.campaigns)
    path = coordinator.campaigns / f"{checked_name('campaign name', name)}.json"
    if path.exists() and path.read_bytes() != manifest:
        raise ConfigError(f"campaigns/{path.name} was published already, with another content; choose another name=")
    if len(manifest) > MAX_CAMPAIGN:
        raise DataError(f"the manifest has {len(manifest)} bytes, expected at most {MAX_CAMPAIGN}")
    write_atomically(path, manifest)
    return path


class Shelf:
    """Sums of files are kept while their size and time stay."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._sums: dict[Path, tuple[int, int, bytes]] = {}

    def files(self, site: str) -> list[Shelved]:
        """All that this site may fetch, campaigns first."""
        campaigns = [path for path in sorted(self._coordinator.campaigns.glob("[!.]*.json")) if _names(path, site)]
        releases = sorted((self._coordinator.folder / "releases").glob("[!.]*/v*.release"))
        listed = [self._shelved("campaign", path.name, path) for path in campaigns]
        return listed + [self._shelved("release", f"{path.parent.name}-{path.name}", path) for path in releases]

    def file(self, site: str, kind: str, name: str, sha256: bytes) -> Path:
        """The file of a listed name, as it was listed; RefusedError otherwise. A path is never made of the name."""
        for one in self.files(site):
            if (one.kind, one.name) == (kind, name):
                if one.sha256 != sha256:
                    raise RefusedError("the file is not the one that was listed; list again")
                return one.path
        raise RefusedError(f"there is no such file for site {site}; list again")

    def _shelved(self, kind: str, name: str, path: Path) -> Shelved:
        status = path.stat()
        known = self._sums.get(path)
        if known is None or known[:2] != (status.st_size, status.st_mtime_ns):
            known = self._sums[path] = (status.st_size, status.st_mtime_ns, _sum(path))
        return Shelved(kind, name, status.st_size, known[2], path)


def _names(path: Path, site: str) -> bool:
    """Whether a manifest names a site; what is no manifest names nobody."""
    try:
        values: Any = json.loads(path.read_bytes()[:MAX_CAMPAIGN])
        return site in values["manifest"]["sites"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _sum(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.digest()
