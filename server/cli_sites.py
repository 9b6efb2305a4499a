"""Commands of `wardround-coordinator` for sites: invite, admit, revoke; and for the gateway that they come in by."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from server import folder, registry
from server.audit import record
from server.folder import Coordinator, Ports
from server.terminal import OUT, command, now
from shared.errors import ConfigError, RefusedError
from shared.supervise import read_record

GATEWAY_PORT = 9443
UNREGISTER_S = 60.0


def add(commands: Any) -> None:
    """Register the parsers of these commands."""
    invite = command(commands, "invite", _invite, "an invitation by which one site can join, once")
    invite.add_argument("site", metavar="SITE")
    invite.add_argument("--days", type=int, default=7, help="how long it counts (default 7)")
    invite.add_argument("--out", type=Path, metavar="FILE", help="default: the terminal")
    command(commands, "invitations", _invitations, "every invitation and what became of it").add_argument(
        "--json", action="store_true", help="for programs"
    )
    add_site = command(commands, "add-site", _add_site, "admit a site by its public key, without an invitation")
    add_site.add_argument("site", metavar="SITE")
    add_site.add_argument("public_key", type=Path, metavar="KEY", help="the site's key.json, or key.pub")
    revoke = command(commands, "revoke", _revoke, "end one site's part: certificate, key and open invitations")
    revoke.add_argument("site", metavar="SITE")
    revoke.add_argument("--yes", action="store_true", help="revoke without a question")
    command(commands, "check", _check, "keys, certificates, invitations, gateway")
    gateway = command(commands, "gateway", _gateway, "an nginx configuration that lets sites in and nothing else")
    gateway.add_argument("--out", type=Path, metavar="FILE", help="default: gateway/nginx.conf, which serve uses")
    gateway.add_argument("--host", metavar="NAME", help="the name that sites dial; default: the first of init --host")
    gateway.add_argument("--listen", default="0.0.0.0", metavar="ADDRESS")
    gateway.add_argument("--port", type=int, default=GATEWAY_PORT, help=f"training messages ({GATEWAY_PORT})")
    gateway.add_argument("--join-port", type=int, help="joins (PORT + 1)")
    gateway.add_argument("--services-port", type=int, help="renewals, campaigns, releases (PORT + 2)")


def _invite(arguments: argparse.Namespace) -> int:
    from server.invitations import invite

    coordinator = folder.read(arguments.folder)
    if arguments.out is not None and arguments.out.exists():
        raise ConfigError(f"{arguments.out.name} exists already; choose another --out")
    invitation = invite(coordinator, arguments.site, arguments.days, now())
    record(coordinator, "admin.site_invited", site=arguments.site, expires=invitation.expires)
    if arguments.out is None:
        print(invitation.to_text(), end="")
        return 0
    _write_private(arguments.out, invitation.to_text())
    OUT.print(f"Invitation for {arguments.site}, once, until {invitation.expires[:10]}: {arguments.out}")
    OUT.print("Who holds this file can join in the site's name: send it as you would send a password.")
    if coordinator.gateway is None:
        OUT.print("There is no gateway: it is good on this machine alone; see wardround-coordinator gateway.")
    OUT.print(f"The site compares by telephone: authority SHA-256 {invitation.authority_fingerprint}")
    return 0


def _write_private(path: Path, text: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        raise ConfigError(f"{path.name} cannot be written there; choose another --out") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _invitations(arguments: argparse.Namespace) -> int:
    from server.invitations import invitations

    found = invitations(folder.read(arguments.folder))
    if arguments.json:
        rows = [{**asdict(one), "state": one.state(now())} for one in found]
        print(json.dumps([{key: it for key, it in row.items() if key != "secret_hash"} for row in rows], indent=1))
        return 0
    table = Table("site", "made", "state", title="Invitations")
    for one in found:
        table.add_row(one.site, one.made_at[:10], one.state(now()))
    OUT.print(table if found else "Nobody was invited yet; see: wardround-coordinator invite")
    return 0


def _add_site(arguments: argparse.Namespace) -> int:
    coordinator = folder.read(arguments.folder)
    fingerprint = folder.admit(coordinator, arguments.site, arguments.public_key)
    record(coordinator, "admin.site_admitted", site=arguments.site, key=fingerprint)
    OUT.print(f"Site {arguments.site} is admitted with key {fingerprint}")
    OUT.print("Compare that with what the site reads out by telephone.")
    if not (coordinator.folder / "sites" / f"{arguments.site}.json").exists():
        OUT.print("Without its key.json the site can take part in no campaign with secure aggregation.")
    OUT.print(f"The site needs: {coordinator.authority}")
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    from server import gateway
    from server.invitations import void_of

    coordinator = folder.read(arguments.folder)
    if arguments.site not in coordinator.site_keys():
        raise ConfigError(f"site {arguments.site!r} is not in this federation; see: wardround-coordinator status")
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody there to ask; give --yes to revoke it")
        if input(f"End the part of site {arguments.site} in {coordinator.name}? Type yes: ").strip() != "yes":
            raise RefusedError("the answer was not yes, so nothing was revoked")
    void_of(coordinator, arguments.site, "the site was revoked", now())  # first: a site that is out is not asked for
    gone = registry.revoke(coordinator, arguments.site, now())
    record(coordinator, "admin.site_revoked", site=arguments.site, certificates=gone.certificates)
    OUT.print(f"Revoked: site {arguments.site}; certificates that count no more: {gone.certificates}")
    if coordinator.gateway is not None and not gateway.reload(coordinator):
        OUT.print("Let the gateway read its list again, at once: nginx -s reload")
    _unregistered(coordinator, arguments.site)
    OUT.print("It comes back with a new invitation only. What it sent in earlier rounds stays in the weights.")
    return 0


def _unregistered(coordinator: Coordinator, site: str) -> None:
    """Say when the SuperLink has forgotten the key, which `serve` sees to."""
    from server.processes import registered

    if not read_record(coordinator.folder)["running"]:
        OUT.print("The coordinator does not serve now; the SuperLink forgets the key in the first seconds of serve.")
        return
    deadline = time.monotonic() + UNREGISTER_S
    while site in registered(coordinator):
        if time.monotonic() > deadline:
            OUT.print("The SuperLink has not unregistered the key yet; look at what serve says.")
            return
        time.sleep(0.2)
    OUT.print("The SuperLink knows its key no more.")


def _check(arguments: argparse.Namespace) -> int:
    from server.check import check

    rows = check(folder.read(arguments.folder), now())
    table = Table("", "what", title="Is this coordinator well?")
    table.add_column("answer", overflow="fold")  # the fingerprint is there to be compared
    for row in rows:
        table.add_row("NO" if row.exit_code else "soon" if row.warning else "ok", row.what, row.answer)
    OUT.print(table)
    wrong = [row for row in rows if row.exit_code]
    if wrong:
        print(f"wardround-coordinator: {wrong[0].what}: {wrong[0].answer}", file=sys.stderr)
    return wrong[0].exit_code if wrong else 0


def _gateway(arguments: argparse.Namespace) -> int:
    from server.gateway import configure

    coordinator = folder.read(arguments.folder)
    port = arguments.port
    ports = Ports(port, arguments.join_port or port + 1, arguments.services_port or port + 2)
    path = configure(coordinator, arguments.host or coordinator.hosts[0], arguments.listen, ports, arguments.out)
    record(coordinator, "admin.gateway_configured", host=arguments.host or coordinator.hosts[0], port=port)
    OUT.print(f"Written: {path}")
    OUT.print(
        f"Sites dial {ports.fleet} for training, {ports.join} to join once, {ports.services} for everything else."
    )
    run = "wardround-coordinator serve DIR --gateway" if arguments.out is None else f"nginx -c {path}"
    OUT.print(f"Run it: {run}; invitations name it from now on.")
    return 0
