"""A signed manifest and a site's folder in, whether its operator may say yes to it at all, out.

Raises RefusedError with the first that does not hold: (1) signed for this federation (2) of this version, and saying of
its campaign what this version says of it (3) this site named, by its own keys (4) within the site's own rules (5) the
other sites' keys as they were pinned.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from client.folder import SiteFolder
from client.pins import Compared, check_pins, compare, read_pins, same_keys
from client.rules import SiteRules, check_rounds, has_left, read_rules
from shared.errors import RefusedError
from shared.manifest import Manifest, SignedManifest, check_derived, verified
from shared.trust.identity import PublicIdentity, load_identity


@dataclass(frozen=True, slots=True, eq=False)
class Approvable:
    """What may be approved, and what is known of its sites."""

    manifest: Manifest
    rules: SiteRules
    pins: Mapping[str, PublicIdentity]
    compared: Compared


def approvable(
    site: SiteFolder,
    signed: SignedManifest,
    now: dt.datetime,
    *,
    allow_visible_updates: bool = False,
    repin: Collection[str] = (),
) -> Approvable:
    """Nothing is written; builds the networks once."""
    if has_left(site.folder):
        raise RefusedError("this site has left the federation; nothing can be approved in its folder any more")
    manifest = verified(signed, site.authority.read_bytes(), now)  # (1)
    check_derived(manifest)  # (2)
    _check_own(site, manifest)  # (3)
    rules = read_rules(site.folder)
    check_rules(manifest, rules, visible=allow_visible_updates)  # (4)
    pins = read_pins(site.folder)
    compared = compare(pins, manifest.sites, site.name)
    check_pins(compared, pins, repin)  # (5)
    return Approvable(manifest, rules, pins, compared)


def _check_own(site: SiteFolder, manifest: Manifest) -> None:
    if site.name not in manifest.sites:
        named = ", ".join(manifest.sites)
        raise RefusedError(f"the campaign is for {named}; {site.name} is not among them: ask the coordinator")
    own = load_identity(site.name, site.key, site.exchange_key).public
    if not same_keys(own, manifest.sites[site.name]):
        raise RefusedError(
            f"the manifest has keys for {site.name} that are not this site's ({own.fingerprint}): somebody else would "
            "take part under its name; tell the coordinator, and send it key.json again"
        )


def check_rules(manifest: Manifest, rules: SiteRules, *, visible: bool = False) -> None:
    """The site's own rules; `visible`: its operator allows visible updates for this campaign."""
    campaign, sites = manifest.campaign, len(manifest.sites)
    if not campaign.secagg.masked and not (visible or rules.allow_visible_updates):
        raise RefusedError(
            "the coordinator would see this site's own update (secagg=visible_updates), which its rules do not allow; "
            "ask for a campaign with secagg=masked, or allow it: --allow-visible-updates, for good "
            "wardround-site rules DIR allow_visible_updates=true"
        )
    if campaign.secagg.masked and sites < rules.minimum_cohort:
        raise RefusedError(
            f"the campaign has {sites} sites, and this site's rules open no sum of fewer than {rules.minimum_cohort} "
            "(minimum_cohort); ask for a campaign of more sites"
        )
    check_rounds(campaign.total_rounds, rules)
    total = rules.epsilon_total
    if total is not None and not (campaign.privacy.on and campaign.privacy.epsilon <= total):
        asked = f"epsilon {campaign.privacy.epsilon:g}" if campaign.privacy.on else "no differential privacy"
        raise RefusedError(f"the campaign has {asked}, and this site's rules allow epsilon {total:g} (epsilon_total)")
