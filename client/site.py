"""What a site lets a campaign use: its name, its store, its machine, and which campaigns it has approved.

In: the path of a site's `site.json`. Out: a frozen value that client/update.py works with. Nothing is approved that
the site's operator did not approve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from client.approvals import approved_files
from client.folder import read
from shared.config import MachineConfig


@dataclass(frozen=True, slots=True)
class SiteSetup:
    """One site, as a campaign meets it. Folders never leave the site, in no message and no error."""

    name: str
    store: Path
    machine: MachineConfig
    approved: Mapping[str, Path]
    """Digest of each approved campaign -> the site's own copy of its file."""

    @property
    def generators(self) -> Path:
        """Where generators that arrived are kept: a folder beside the store."""
        return self.store.with_name(self.store.name + "-generators")


def load_site(path: Path) -> SiteSetup:
    """Read a site's folder by its `site.json`; raises ConfigError, DataError or RefusedError in one line."""
    site = read(path.parent)
    return SiteSetup(site.name, site.store, site.machine, approved_files(site.approvals))
