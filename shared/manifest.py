"""A campaign's manifest: what the coordinator signs, sites approve, and every plan names by its digest.

    {"format": 1, "manifest": {...}, "signer": PEM, "signature": base64}

The manifest holds the campaign, its digest and those of the networks that it builds, the version of Wardround, the
federation, every site with its public keys, the list of what may leave (shared/leaving.py), and what protects it in
words. Signed are its canonical bytes (sorted keys, no blanks) behind a line that is of campaigns alone, so that no
release's signature can stand under a campaign. A manifest is read before it is believed: `verified` says whether it is.

The coordinator is the authority that the signer's certificate is of. The signature says that this file is the
coordinator's; that the keys in it are the sites' is said by their pins (client/pins.py), compared by telephone.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.audit import START, Anchor
from shared.config import CampaignConfig, build, campaign_digest, to_dict
from shared.config.digest import require_whole
from shared.errors import ConfigError, DataError, RefusedError, WardroundError

if TYPE_CHECKING:
    from shared.trust.certificates import Pair
    from shared.trust.identity import PublicIdentity

FORMAT = 1
MAX_BYTES = 16 * 2**20
MOST_SITES = 1000
_SIGNED = b"wardround campaign manifest 1\n"
_FIELDS = {
    *("campaign", "config_digest", "architecture_digests", "wardround", "federation", "sites", "leaves", "secagg"),
    *("privacy", "made_at", "audit"),
}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_AGAIN = "ask the coordinator for the file again"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Manifest:
    """What is agreed."""

    campaign: CampaignConfig
    config_digest: str
    architecture_digests: Mapping[str, str]
    """Phase ("" where there are none) -> digest of the names and shapes of what travels."""
    wardround: str
    """Version of Wardround that all of its rounds run on."""
    federation: str
    """SHA-256 of the certificate of the federation's authority."""
    sites: Mapping[str, PublicIdentity]
    """Every site that takes part, by name."""
    leaves: Mapping[str, Any]
    """shared.leaving.Leaves of each phase, as JSON values."""
    secagg: str
    privacy: str
    made_at: str
    """ISO 8601, UTC."""
    audit: Anchor
    """The coordinator's audit log as it then was: a signed promise that sites keep in their own."""


@dataclass(frozen=True, slots=True, eq=False)
class SignedManifest:
    """A manifest with the bytes that are signed."""

    manifest: Manifest
    content: bytes
    signer: bytes
    """The signer's certificate, PEM."""
    signature: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes: what plans carry."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def campaign(self) -> CampaignConfig:
        return self.manifest.campaign

    def to_json(self) -> bytes:
        """The file."""
        values = {
            "format": FORMAT,
            "manifest": json.loads(self.content),
            "signer": self.signer.decode(),
            "signature": base64.b64encode(self.signature).decode(),
        }
        return (json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def derived(campaign: CampaignConfig) -> dict[str, Any]:
    """What follows from a campaign under this version, as the values of a manifest: the coordinator writes it there,
    and a site works it out again. Builds the networks."""
    from shared.leaving import leaving
    from shared.weights import shapes_digest

    leaves = leaving(campaign)
    values = {
        "campaign": to_dict(campaign),
        "config_digest": campaign_digest(campaign),
        "architecture_digests": {phase: shapes_digest(one.arrays) for phase, one in leaves.items()},
        "wardround": version("wardround"),
        "leaves": {phase: one.to_json() for phase, one in leaves.items()},
        "secagg": secagg_in_words(campaign),
        "privacy": privacy_in_words(campaign),
    }
    return dict(json.loads(_canonical(values)))


def signed_manifest(
    campaign: CampaignConfig, sites: Mapping[str, PublicIdentity], authority: bytes, signer: Pair, now: dt.datetime,
    audit: Anchor | None = None,
) -> SignedManifest:  # fmt: skip
    """A manifest of this version, signed by the coordinator's signer; `audit` is the head of the coordinator's log."""
    from shared.trust import certificates, signing

    values = {
        **derived(campaign),
        "federation": certificates.fingerprint(authority),
        "sites": {name: dict(sites[name].to_json()) for name in sorted(sites)},
        "made_at": now.isoformat(timespec="seconds"),
        "audit": list(audit or (0, START)),
    }
    content = _canonical(values)
    return SignedManifest(_parsed(values), content, signer.certificate, signing.sign(signer.key, _SIGNED + content))


def read_manifest(path: Path) -> SignedManifest:
    """The manifest of a file, whoever signed it; raises ConfigError, DataError or RefusedError in one line."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError:
        raise ConfigError(f"no campaign file named {path.name!r}; {_AGAIN}") from None
    return parse_manifest(content)


def parse_manifest(content: bytes) -> SignedManifest:
    if len(content) > MAX_BYTES:
        raise DataError(f"the campaign file must be at most {MAX_BYTES} bytes; {_AGAIN}")
    try:
        values = json.loads(content.decode())
    except (ValueError, RecursionError):
        raise DataError(f"the campaign file is not readable JSON; {_AGAIN}") from None
    if isinstance(values, dict) and "manifest" not in values:
        raise RefusedError(
            "the campaign file is not signed: it is of an older form, or was made by hand; ask the coordinator for one "
            "made with: wardround-coordinator campaign new"
        )
    if not isinstance(values, dict) or values.keys() != {"format", "manifest", "signer", "signature"}:
        raise DataError(f"the campaign file is not one of wardround-coordinator campaign new; {_AGAIN}")
    if values["format"] != FORMAT:
        raise DataError(
            f"the campaign file is of format {str(values['format'])[:20]}, this Wardround reads {FORMAT}; install the "
            "version that the coordinator uses"
        )
    try:
        signed = _canonical(values["manifest"])
        signer, signature = values["signer"].encode(), base64.b64decode(values["signature"], validate=True)
    except (ValueError, TypeError, AttributeError, RecursionError, binascii.Error):
        raise DataError(f"the campaign file is damaged; {_AGAIN}") from None
    return SignedManifest(_parsed(values["manifest"]), signed, signer, signature)


def verified(signed: SignedManifest, ca_pem: bytes, now: dt.datetime) -> Manifest:
    """The manifest, where it is signed for the federation of `ca_pem`; RefusedError with the reason otherwise."""
    from shared.trust import certificates, signing

    signing.verify(ca_pem, signed.signer, _SIGNED + signed.content, signed.signature, now)
    if signed.manifest.federation != certificates.fingerprint(ca_pem):
        raise RefusedError("the campaign is of another federation than this folder's ca.crt; ask your own coordinator")
    return signed.manifest


def check_version(theirs: str, ours: str) -> None:
    """Which versions may meet: those that are equal, and no others. Another version may train, round and list what
    leaves in another way than was approved; an upgrade is between campaigns, not within one."""
    if theirs != ours:
        raise RefusedError(
            f"the campaign runs on Wardround {theirs}, this is {ours}; only equal versions meet in a campaign: install "
            f"{theirs} here, or ask the coordinator for a campaign of {ours}"
        )


def check_derived(manifest: Manifest) -> None:
    """RefusedError unless what the manifest says of its campaign is what this version says of it: the version itself,
    both digests, everything that may leave, and the words on its protection."""
    check_version(manifest.wardround, version("wardround"))
    ours = derived(manifest.campaign)
    for field, what in (
        ("config_digest", "digest of its campaign"),
        ("architecture_digests", "networks"),
        ("leaves", "list of what may leave"),
        ("secagg", "words on secure aggregation"),
        ("privacy", "words on privacy"),
    ):
        if ours[field] != _plain(getattr(manifest, field)):
            raise RefusedError(
                f"the manifest's {what} is not what this version of Wardround derives from its campaign; nothing "
                "beyond that list may leave, so it is not approved: ask the coordinator which program wrote it"
            )


def _plain(value: Any) -> Any:
    return json.loads(_canonical(value))


def _canonical(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _parsed(values: Any) -> Manifest:
    if not isinstance(values, dict) or values.keys() != _FIELDS:
        raise DataError(f"the manifest lacks a field or has one that is none; {_AGAIN}")
    campaign = build(CampaignConfig, values["campaign"], "campaign")
    require_whole(campaign)
    digests = values["architecture_digests"]
    texts = [values[name] for name in ("wardround", "federation", "secagg", "privacy", "made_at")]
    if not isinstance(digests, dict) or not all(
        _is_digest(one) for one in (values["config_digest"], *digests.values())
    ):
        raise DataError(f"the manifest's digests are not SHA-256 in hexadecimal; {_AGAIN}")
    if not all(isinstance(text, str) and len(text) <= 4000 and text.isprintable() for text in texts):
        raise DataError(f"the manifest's words are not words; {_AGAIN}")
    if not isinstance(values["leaves"], dict):
        raise DataError(f"the manifest has no list of what may leave; {_AGAIN}")
    return Manifest(
        campaign=campaign,
        config_digest=values["config_digest"],
        architecture_digests=digests,
        wardround=values["wardround"],
        federation=values["federation"],
        sites=_sites(values["sites"]),
        leaves=values["leaves"],
        secagg=values["secagg"],
        privacy=values["privacy"],
        made_at=values["made_at"],
        audit=_audit(values["audit"]),
    )


def _audit(values: Any) -> Anchor:
    number, head = values if isinstance(values, list) and len(values) == 2 else (None, None)
    if type(number) is not int or not 0 <= number < 2**53 or not _is_digest(head):
        raise DataError(f"the manifest's head of the coordinator's audit log is none; {_AGAIN}")
    return Anchor(number, str(head))


def _sites(values: Any) -> dict[str, PublicIdentity]:
    from shared.trust.identity import PublicIdentity

    if not isinstance(values, dict) or not 1 <= len(values) <= MOST_SITES:
        raise DataError(f"the manifest must name 1 to {MOST_SITES} sites; {_AGAIN}")
    sites = {}
    for name, one in values.items():
        try:
            sites[name] = PublicIdentity.from_json(one)
        except WardroundError as error:
            raise type(error)(f"the manifest's keys of a site are not in order: {error}") from None
        if sites[name].name != name:
            raise DataError(f"the manifest has the keys of one site under the name of another; {_AGAIN}")
    keys = {key for one in sites.values() for key in (one.key, one.exchange)}
    if len(keys) != 2 * len(sites):
        raise RefusedError("the manifest gives two of its sites the same key; every site makes its own")
    return sites


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and bool(_DIGEST.fullmatch(value))


# ------------------------------------------------------------------------------------------- words


def secagg_in_words(campaign: CampaignConfig) -> str:
    secagg = campaign.secagg
    if not secagg.masked:
        return (
            "VISIBLE UPDATES: the coordinator sees the update of every single site; who has it may learn about that "
            "site's training images"
        )
    alone = " With two sites each learns the other's update from the sum." if secagg.minimum_cohort == 2 else ""
    return (
        f"masked: the coordinator learns the sum of the updates of {secagg.minimum_cohort} sites or more, no single "
        "one; but a part of the networks that one site alone has labels for (outlines: the decoder, diagnoses: the "
        f"class head) is that site's in the sum, too. Counts, losses and scores are seen site by site.{alone}"
    )


def privacy_in_words(campaign: CampaignConfig) -> str:
    privacy = campaign.privacy
    if not privacy.on:
        return (
            "no differential privacy: no noise is added to what leaves, and who has the weights may learn about "
            "training images"
        )
    unit = "one patient (all of its images)" if privacy.kind == "patient" else "one site's update"
    return (
        f"differential privacy of {unit}, epsilon {privacy.epsilon:g}, delta {privacy.delta:g} in all; "
        f"clipped to {privacy.clip_norm:g}; scores on test patients and counts are not covered by it"
    )
