"""Commands of `wardround-site` for what may run here: approve, approvals, revoke-approval."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from client import approvals, folder, pins
from client.audit import record
from client.terminal import OUT, command, json_option, two_columns
from shared.audit import ANCHOR
from shared.errors import ConfigError, RefusedError


def add(commands: Any) -> None:
    """Register the parsers of these commands."""
    approve = command(commands, "approve", _approve, "read a campaign in words and let it run here")
    approve.add_argument("campaign", type=Path, metavar="FILE", help="the coordinator's signed campaign file")
    approve.add_argument("--yes", action="store_true", help="approve without a question")
    visible = "let the coordinator see this site's own update, where the campaign has secagg=visible_updates"
    approve.add_argument("--allow-visible-updates", action="store_true", help=visible)
    repin = "believe the new keys of this site, after a call; may be given again"
    approve.add_argument("--repin", action="append", default=[], metavar="SITE", help=repin)

    json_option(command(commands, "approvals", _approvals, "what may run here"))
    revoke = command(commands, "revoke-approval", _revoke, "withdraw an approval")
    revoke.add_argument("digest", metavar="DIGEST", help="as `approvals` shows it")


def _approve(arguments: argparse.Namespace) -> int:
    from client.approving import approvable
    from client.describe import describe
    from client.describe_manifest import describe_manifest
    from shared.manifest import read_manifest

    site = folder.read(arguments.folder)
    signed = read_manifest(arguments.campaign)
    now = dt.datetime.now(dt.UTC)
    asked = approvable(site, signed, now, allow_visible_updates=arguments.allow_visible_updates, repin=arguments.repin)
    table = two_columns(f"Campaign {escape(signed.campaign.name)}")
    for question, answer in (
        *describe(signed.campaign),
        *describe_manifest(signed, asked.compared, site.name, asked.rules),
    ):
        table.add_row(escape(question), escape(answer))
    OUT.print(table)
    _print_differences(site.approvals, signed)
    _print_new_keys(asked.compared, arguments.repin)
    _ask(f"May this run at site {site.name}? Type yes: ", signed.campaign.name, yes=arguments.yes)
    record(  # before it is in force: a kill in between leaves an entry too many, never an approval without one
        site,
        "campaign.approved",
        campaign=signed.campaign.name,
        digest=signed.manifest.config_digest,
        manifest=signed.digest,
        secagg=signed.campaign.secagg.kind,
        sites=", ".join(signed.manifest.sites),
        repinned=", ".join(arguments.repin),
    )
    if signed.manifest.audit.number:
        record(site, ANCHOR, of="coordinator", number=signed.manifest.audit.number, head=signed.manifest.audit.head)
    pins.pin(site.folder, signed.manifest.sites, site.name)
    given = approvals.approve(site.approvals, signed, now)
    OUT.print(f"Approved at site {site.name}: {given.campaign}, digest {given.digest}")
    return 0


def _print_differences(folder: Path, signed: Any) -> None:
    from client.describe_manifest import differences

    before = approvals.last_approved(folder, signed.campaign.name)
    if before is None:
        OUT.print("Nothing was approved here before.")
        return
    found = differences(before, signed)
    OUT.print(f"Against what was approved last (campaign {escape(before.campaign.name)}):")
    for line in found or ["no difference"]:
        OUT.print(f"  - {escape(line)}")


def _print_new_keys(compared: pins.Compared, repin: Collection[str]) -> None:
    new = (*compared.new, *repin)
    if new:
        OUT.print(
            f"Keys of {', '.join(new)} are pinned with this approval: compare their fingerprints by telephone with "
            "those sites, not with the coordinator. Each site reads its own out with: wardround-site check"
        )


def _ask(question: str, campaign: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError("nobody there to ask; read the table, then give --yes to approve it")
    if input(question).strip() != "yes":
        raise RefusedError(f"campaign {campaign}: the answer was not yes, so nothing was approved")


def _approvals(arguments: argparse.Namespace) -> int:
    given = approvals.approvals(folder.read(arguments.folder).approvals)
    if arguments.json:
        rows = [
            {
                "digest": one.digest,
                "campaign": one.campaign,
                "approved_at": one.approved_at,
                "manifest": one.manifest or None,
            }
            for one in given
        ]
        print(json.dumps(rows, indent=1))
        return 0
    table = Table("campaign", "approved at", title="Campaigns that may run here")
    table.add_column("digest", overflow="fold")
    for one in given:
        when = one.approved_at if one.manifest else "in an older form, without a signed manifest: approve it again"
        table.add_row(one.campaign, when, one.digest)
    OUT.print(table if given else "Nothing is approved at this site.")
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    site = folder.read(arguments.folder)
    gone = approvals.revoke(site.approvals, arguments.digest)
    record(site, "campaign.revoked", campaign=gone.campaign, digest=gone.digest)
    OUT.print(f"No longer approved: {gone.campaign}, digest {gone.digest}")
    return 0
