"""What a site lets a campaign use: its name, its store, its machine, and which campaigns it has approved.

In: the path of a site's `site.json`. Out: a frozen value that client/update.py works with. Nothing is approved that
the site's operator did not approve, and no key is believed that was not pinned then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from client.approvals import approved_files, approved_manifests
from client.folder import read
from client.pins import read_pins
from client.rules import SiteRules, is_paused, read_rules
from shared.config import MachineConfig

if TYPE_CHECKING:
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
    """What the site itself asks of every campaign; None in a simulation."""
    audit: AuditLog | None = None
    """Where what left and what was refused is written down first."""
    paused: bool = False
    """By its operator, or for good."""
    simulation: bool = False
    """Whether this is a rehearsal on one machine, where more may be looked at than at a hospital (client/privacy.py);
    no site folder can say so."""

    @property
    def generators(self) -> Path:
        """Where generators that arrived are kept: a folder beside the store."""
        return self.store.with_name(self.store.name + "-generators")


def load_site(path: Path) -> SiteSetup:
    """Read a site's folder by its `site.json`; raises ConfigError, DataError or RefusedError in one line."""
    from client.audit import site_audit
    from shared.trust.identity import load_identity

    site = read(path.parent)
    # A folder of an earlier version has no exchange key: masked campaigns are refused there (client/protect.py).
    identity = load_identity(site.name, site.key, site.exchange_key) if site.exchange_key.exists() else None
    return SiteSetup(
        site.name,
        site.store,
        site.machine,
        approved_files(site.approvals),
        home=site.folder,
        identity=identity,
        peers=read_pins(site.folder),
        manifests=approved_manifests(site.approvals),
        rules=read_rules(site.folder),
        audit=site_audit(site),
        paused=is_paused(site.folder),
    )
