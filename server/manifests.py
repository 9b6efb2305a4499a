"""A campaign's config and the admitted sites in, the signed manifest that sites approve out (shared/manifest.py)."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path

from server.audit import LOG
from server.folder import Coordinator, release_signer
from shared.audit import START, Anchor, last_head
from shared.config import CampaignConfig, SimulationConfig, load
from shared.errors import ConfigError, DataError, WardroundError
from shared.locks import locked
from shared.manifest import SignedManifest, check_derived, read_manifest, signed_manifest, verified
from shared.trust.identity import PublicIdentity

MANIFEST = "manifest.json"
"""In a run's folder, beside campaign.json."""
_DEFAULTS = {"secagg": "secagg=masked", "round.quorum": "round.quorum=3"}
_FEWEST_MASKED = 3


def composed(overrides: Sequence[str], sites: int) -> CampaignConfig:
    """The campaign of KEY=VALUE words, masked and with a quorum of three where they do not say otherwise.

    Raises ConfigError where so few sites can never keep that, with the ways out.
    """
    keys = {word.lstrip("+~").partition("=")[0] for word in overrides}
    taken = [word for key, word in _DEFAULTS.items() if key not in keys]
    visible = any(word == "secagg=visible_updates" for word in overrides)
    if visible:
        taken = [word for word in taken if not word.startswith("round.quorum")] if sites < _FEWEST_MASKED else taken
    elif sites < _FEWEST_MASKED and "secagg.minimum_cohort" not in keys:
        raise ConfigError(
            f"{sites} sites, and secagg=masked opens no sum of fewer than {_FEWEST_MASKED}: admit more sites, or say "
            "secagg=visible_updates (the coordinator sees the update of each), or with two secagg.minimum_cohort=2 "
            "round.quorum=2 (each learns the other's from the sum)"
        )
    return load("simulation", [*taken, *overrides], SimulationConfig).campaign


def named_sites(coordinator: Coordinator, names: Sequence[str]) -> dict[str, PublicIdentity]:
    """The public keys of these sites, or of all that are admitted; raises ConfigError for one that is not, or that
    has not sent its key.json."""
    admitted = tuple(coordinator.site_keys())
    for site in names:
        if site not in admitted:
            raise ConfigError(f"site {site!r} is not admitted; admitted: {', '.join(admitted) or 'none'} (invite)")
    chosen = tuple(sorted(set(names))) or admitted
    if not chosen:
        raise ConfigError("no site is admitted yet; a campaign names its sites: wardround-coordinator invite")
    return {site: _identity(coordinator, site) for site in chosen}


def _identity(coordinator: Coordinator, site: str) -> PublicIdentity:
    path = coordinator.folder / "sites" / f"{site}.json"
    try:
        identity = PublicIdentity.from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        raise ConfigError(
            f"site {site} was admitted by its key.pub, and a campaign names exchange keys too; revoke it, and admit "
            "it by its key.json (add-site), or invite it"
        ) from None
    except (OSError, ValueError, WardroundError):
        raise DataError(f"sites/{path.name} cannot be used; ask site {site} for its key.json again") from None
    if identity.name != site or identity.key != coordinator.site_keys()[site].read_text().strip():
        raise DataError(f"sites/{path.name} is not of the key that site {site} was admitted with; ask it for key.json")
    return identity


def make_manifest(
    coordinator: Coordinator, campaign: CampaignConfig, sites: dict[str, PublicIdentity], now: dt.datetime
) -> SignedManifest:
    """Signed with what releases are signed with; raises ConfigError where so many sites cannot run it."""
    check_number(campaign, len(sites))
    with locked(coordinator.folder / "ca" / ".lock"):
        signer = release_signer(coordinator, now)
    head = last_head(coordinator.folder / LOG) or Anchor(0, START)
    return signed_manifest(campaign, sites, coordinator.authority.read_bytes(), signer, now, head)


def check_number(campaign: CampaignConfig, sites: int) -> None:
    """ConfigError for fewer sites than the quorum, or more than secure aggregation takes."""
    if sites < campaign.rounds.quorum:
        raise ConfigError(
            f"round.quorum={campaign.rounds.quorum} can never be met by {sites} sites; admit more (invite), or lower "
            "the quorum in a new campaign"
        )
    if campaign.secagg.masked:
        from shared.secagg.messages import LARGEST_COHORT

        if sites > LARGEST_COHORT:
            raise ConfigError(
                f"secagg=masked adds up {LARGEST_COHORT} sites at most, and {sites} are named; name fewer (--sites)"
            )


def own_manifest(coordinator: Coordinator, path: Path, now: dt.datetime) -> SignedManifest:
    """The manifest of a file that this coordinator signed for this version; raises in one line otherwise. Its sites
    must still be in, by the keys that it names."""
    signed = read_manifest(path)
    check_derived(verified(signed, coordinator.authority.read_bytes(), now))
    admitted = coordinator.site_keys()
    for name, identity in signed.manifest.sites.items():
        if name not in admitted or admitted[name].read_text().strip() != identity.key:
            raise ConfigError(
                f"site {name} is not in this federation any more, or by another key; make a new campaign of the sites "
                "that are: wardround-coordinator campaign new"
            )
    return signed


def manifest_of(run_dir: Path) -> SignedManifest | None:
    """What a run is under; None in a simulation."""
    path = run_dir / MANIFEST
    return read_manifest(path) if path.is_file() else None
