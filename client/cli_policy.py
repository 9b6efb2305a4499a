"""Commands of `wardround-site` for what this site itself decides: pause, resume, leave, rules."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import shutil
import sys
from dataclasses import asdict
from typing import Any

from client import approvals, folder
from client.audit import record
from client.folder import SiteFolder
from client.rules import changed, has_left, is_paused, mark_left, pause, read_rules, resume, write_rules
from client.terminal import OUT, command, json_option, two_columns
from shared.errors import ConfigError, RefusedError, WardroundError

SESSIONS = "secagg"
_MEANS = {
    "minimum_cohort": "fewest sites whose sum this site helps to open",
    "minimum_patients": "fewest patients to take part with, and fewest values behind a figure that leaves",
    "allow_visible_updates": "whether campaigns may be approved that show this site's own update",
    "epsilon_total": "most epsilon of a campaign, and of all together",
    "quantiles": "whether quantiles of metrics may leave",
    "max_rounds": "most rounds of one campaign",
}


def add(commands: Any) -> None:
    """Register the parsers of these commands."""
    command(commands, "pause", _pause, "answer nothing from the next message on, until `resume`")
    command(commands, "resume", _resume, "answer again")
    leave = command(commands, "leave", _leave, "end all participation for good; data and releases stay here")
    leave.add_argument("--yes", action="store_true", help="leave without a question")
    rules = command(commands, "rules", _rules, "what this site asks of every campaign, whatever the campaign says")
    rules.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=", ".join(_MEANS))
    json_option(rules)


def _pause(arguments: argparse.Namespace) -> int:
    site = folder.read(arguments.folder)
    if is_paused(site.folder):
        raise ConfigError(f"site {site.name} {'has left' if has_left(site.folder) else 'is paused already'}")
    pause(site.folder, dt.datetime.now(dt.UTC))
    record(site, "admin.paused")
    OUT.print(f"Site {site.name} is paused: the coordinator is told so at its next message, and nothing is computed.")
    OUT.print("A round that is being trained now is not sent. Go on with: wardround-site resume")
    return 0


def _resume(arguments: argparse.Namespace) -> int:
    site = folder.read(arguments.folder)
    if not resume(site.folder):
        raise ConfigError(f"site {site.name} is not paused")
    record(site, "admin.resumed")
    OUT.print(f"Site {site.name} answers again, within what is approved here.")
    return 0


def _rules(arguments: argparse.Namespace) -> int:
    site = folder.read(arguments.folder)
    rules = read_rules(site.folder)
    if arguments.overrides:
        rules = changed(rules, arguments.overrides)
        write_rules(site.folder, rules)
        record(site, "admin.rules", rules=json.dumps(asdict(rules), sort_keys=True))
    if arguments.json:
        print(json.dumps(asdict(rules), indent=1))
        return 0
    table = two_columns(f"Rules of site {site.name}")
    for key, value in asdict(rules).items():
        table.add_row(f"{key}={json.dumps(value)}", _MEANS[key])
    OUT.print(table)
    return 0


# ------------------------------------------------------------------------------------------- leaving


def _leave(arguments: argparse.Namespace) -> int:
    site = folder.read(arguments.folder)
    if has_left(site.folder):
        raise ConfigError(f"site {site.name} has left already")
    OUT.print(f"What site {site.name} has had a part in, and what outlives its leaving:")
    for line in contributions(site) or ["nothing that this folder knows of"]:
        OUT.print(f"  - {line}")
    OUT.print("Weights that were averaged with this site's cannot be taken back; ask the coordinator to train anew.")
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody there to ask; read the list, then give --yes to leave")
        if input("Leave the federation for good? Type yes: ").strip() != "yes":
            raise RefusedError("the answer was not yes, so nothing was changed")
    end_participation(site, dt.datetime.now(dt.UTC))
    record(site, "admin.left")
    OUT.print(f"Site {site.name} has left. {_tell(site)}")
    OUT.print("Images, keys, the audit log and installed releases stay in this folder; remove it when you need none.")
    return 0


def end_participation(site: SiteFolder, now: dt.datetime) -> None:
    """First the mark, which stops everything by itself; then what could be used without it."""
    mark_left(site.folder, now)
    for dated in site.approvals.glob("*.approved"):
        approvals.revoke(site.approvals, dated.stem)
    shutil.rmtree(site.folder / SESSIONS, ignore_errors=True)


def contributions(site: SiteFolder) -> list[str]:
    """Campaigns that were approved here, with how many updates left by the audit log; generators and releases that are
    made of such campaigns. As far as this folder knows; the coordinator's audit log knows the rest."""
    left = _updates_left(site)
    names = {*left, *_campaigns(site)}
    lines = [f"campaign {name}: {left.get(name, 0) or 'no'} updates left this site" for name in sorted(names)]
    return lines + _generators(site) + _releases(site)


def _campaigns(site: SiteFolder) -> set[str]:
    from shared.manifest import read_manifest

    names = set()
    for path in (*site.approvals.glob("*.json"), *(site.approvals / approvals.WITHDRAWN).glob("*.json")):
        with contextlib.suppress(WardroundError):
            names.add(read_manifest(path).campaign.name)
    return names


def _updates_left(site: SiteFolder) -> dict[str, int]:
    """By the name of the campaign, as far back as the audit log goes."""
    from client.audit import log_path
    from shared.audit import read

    counts: dict[str, int] = {}
    for entry in read(log_path(site)) if log_path(site).exists() else ():
        if entry.event == "round.left" and entry.facts.get("kind") in ("update", "masked"):
            name = str(entry.facts.get("campaign", ""))
            counts[name] = counts.get(name, 0) + 1
    return counts


def _generators(site: SiteFolder) -> list[str]:
    from client.generate.arrived import arrived
    from client.site import SiteSetup

    kept = SiteSetup(site.name, site.store, site.machine, {}).generators
    return [f"generator of campaign {one.campaign.name}, held by every site of it" for one in arrived(kept)]


def _releases(site: SiteFolder) -> list[str]:
    from client.releases import releases

    try:
        return [f"release {row.name} v{row.version}, installed here" for row in releases(site)]
    except WardroundError:
        return ["releases that cannot be read"]


def _tell(site: SiteFolder) -> str:
    """The coordinator, where it can be reached; else it learns at its next message to this site."""
    from client.join import say_leaving

    try:
        say_leaving(site)
    except WardroundError:
        return "The coordinator is told at its next message, while `wardround-site run` still runs; stop it after that."
    return "The coordinator was told."
