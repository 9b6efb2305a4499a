"""What a site lets a campaign use: its name, its store, its machine, and which campaigns it has approved.

In: the path of a site's `site.json`. Out: a frozen value that client/update.py works with. Nothing is approved that
the site's operator did not approve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from client.approvals import approved_files
from client.folder import read
from shared.config import MachineConfig

if TYPE_CHECKING:
    from client.rules import SiteRules
    from shared.audit import AuditLog
    from shared.manifest import SignedManifest
    from shared.trust.identity import Identity, PublicIdentity


@dataclass(frozen=True, slots=True)
class SiteSetup:
    """One site, as a campaign meets it. Folders never leave the site, in no message and no error."""

    name: str
    store: Path
    machine: MachineConfig
    approved: Mapping[str, Path]
    """Digest of each approved campaign -> the site's own copy of its file."""
    home: Path | None = None
    """Folder (0700) of what a site keeps between messages: sessions of secure aggregation, the ledger of privacy."""
    identity: Identity | None = None
    """The site's own keys; None where it takes part in no masked campaign."""
    peers: Mapping[str, PublicIdentity] = field(default_factory=dict)
    """The other sites' public keys as they were pinned when the operator approved."""
    manifests: Mapping[str, SignedManifest] = field(default_factory=dict)
    """Campaign digest -> the manifest that was approved; empty in a simulation."""
    rules: SiteRules | None = None
    audit: AuditLog | None = None
    paused: bool = False
    simulation: bool = False
    """Whether this is a rehearsal on one machine, where more may be looked at than at a hospital (client/privacy.py);
    no site folder can say so."""

    @property
    def generators(self) -> Path:
        """Where generators that arrived are kept: a folder beside the store."""
        return self.store.with_name(self.store.name + "-generators")


def load_site(path: Path) -> SiteSetup:
    """Read a site's folder by its `site.json`; raises ConfigError, DataError or RefusedError in one line."""
    site = read(path.parent)
    return SiteSetup(site.name, site.store, site.machine, approved_files(site.approvals), home=site.folder)
