"""A federation of a test's own: an authority, its signer, sites with keys, and the manifests that it signs for them."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from client.folder import SiteFolder
from shared.config import CampaignConfig, build, to_dict
from shared.manifest import SignedManifest, parse_manifest, signed_manifest
from shared.trust import certificates, signing
from shared.trust.certificates import Pair
from shared.trust.identity import Identity, PublicIdentity, create_identity, load_identity
from tests.client.release_files import NOW, site_of

SITES = ("north", "south", "west")


@dataclass
class Federation:
    authority: Pair = field(default_factory=lambda: certificates.create_authority("test", NOW))
    identities: dict[str, Identity] = field(default_factory=lambda: {name: create_identity(name) for name in SITES})

    @cached_property
    def signer(self) -> Pair:
        return signing.create_signer(self.authority, NOW)

    @property
    def public(self) -> dict[str, PublicIdentity]:
        return {name: identity.public for name, identity in self.identities.items()}

    def site(self, place: Path, name: str = "north") -> SiteFolder:
        """A site's folder; its keys are those of the federation from then on."""
        site = site_of(place, self.authority, name)
        self.identities[name] = load_identity(name, site.key, site.exchange_key)
        return site

    def signed(
        self, campaign: CampaignConfig, sites: Mapping[str, PublicIdentity] | None = None, now: dt.datetime = NOW
    ) -> SignedManifest:
        whole = build(CampaignConfig, to_dict(campaign))
        return signed_manifest(whole, sites or self.public, self.authority.certificate, self.signer, now)

    def forged(self, signed: SignedManifest, **changed: Any) -> SignedManifest:
        """With other fields, and signed anew by the same signer: what a hostile coordinator can make."""
        values = json.loads(signed.content) | changed
        content = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        signature = signing.sign(self.signer.key, b"wardround campaign manifest 1\n" + content)
        file = {
            "format": 1,
            "manifest": values,
            "signer": self.signer.certificate.decode(),
            "signature": base64.b64encode(signature).decode(),
        }
        return parse_manifest(json.dumps(file).encode())


def write(signed: SignedManifest, path: Path) -> Path:
    path.write_bytes(signed.to_json())
    return path
