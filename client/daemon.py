"""A site's processes: Flower's SuperNode (outbound only) and a SuperExec that can start one program, ours; at a gateway
or behind a proxy also the forwarder (client/forward.py).

In: a site's folder. Out: running processes until stopped. The SuperNode's own interface for the SuperExec is on
loopback, under TLS with a certificate made at each start. The SuperExec's PATH holds a single executable,
`flwr-clientapp`, which runs the installed `client.app` and never the code of a bundle; no other program of Flower can
be started from there.
"""

from __future__ import annotations

import datetime as dt
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from client.approvals import approvals
from client.audit import record
from client.folder import SiteFolder
from client.forward import is_needed
from shared.errors import ConfigError, DataError, WardroundError
from shared.reach import free_port
from shared.supervise import Program, environment_of, read_record, script, supervise
from shared.trust import certificates, keystore
from shared.trust.site_certificates import read_site_certificate

LOOPBACK = "127.0.0.1"
RENEW_LOOK_S = 3600.0
RENEW_AGAIN_S = 300.0
MAX_SHEBANG = 120  # Linux cuts the first line of a script at 127 or 255 bytes


def run(site: SiteFolder, say: Callable[[str], None]) -> None:
    """Keep this site's programs up and its certificate in force until told to stop."""
    stop = threading.Event()
    renewing = threading.Thread(target=_keep_certificate, args=(site, stop, say), daemon=True)
    renewing.start()
    try:
        supervise(lambda: programs(site, dt.datetime.now(dt.UTC)), site.folder)
    finally:
        stop.set()


def _keep_certificate(site: SiteFolder, stop: threading.Event, say: Callable[[str], None]) -> None:
    """Renew in the last third of the certificate's life; says each new trouble once, and goes on."""
    if not site.certificate.exists():
        return
    trouble = ""
    while not stop.is_set():
        try:
            if is_due(site, dt.datetime.now(dt.UTC)):
                from client.join import renew

                ends = renew(site, dt.datetime.now(dt.UTC)).ends
                record(site, "admin.certificate_renewed", until=ends.isoformat())
                say(f"The certificate of site {site.name} is renewed; it is in force until {ends:%Y-%m-%d}.")
            trouble = ""
        except WardroundError as error:
            if str(error) != trouble:
                trouble = str(error)
                say(f"The certificate of site {site.name} is not renewed yet: {trouble}")
        stop.wait(RENEW_AGAIN_S if trouble else RENEW_LOOK_S)


def is_due(site: SiteFolder, now: dt.datetime) -> bool:
    """Whether the last third of the certificate's life has begun; RefusedError once it is over."""
    return read_site_certificate(site.certificate.read_bytes(), site.authority.read_bytes(), now).renews(now)


def programs(site: SiteFolder, now: dt.datetime) -> tuple[Program, ...]:
    """SuperNode and SuperExec of this site, and last the forwarder where it needs one."""
    node_home = keystore.private_folder(site.flower / "node")
    exec_home = keystore.private_folder(site.flower / "exec")
    authority, certificate, key = _loopback_certificate(site.flower / "loopback", now)
    secret = site.flower / "superexec.secret"
    if not secret.exists():
        keystore.create_secret(secret)
    port = free_port()
    forwarder = (_forwarder(site, free_port()),) if is_needed(site) else ()
    superlink, roots = (f"{LOOPBACK}:{forwarder[0].command[-1]}", authority) if forwarder else (
        site.coordinator, site.authority
    )  # fmt: skip
    supernode = (
        *(script("flower-supernode"), "--superlink", superlink, "--root-certificates", str(roots)),
        *("--auth-supernode-private-key", str(site.key), "--isolation", "process"),
        *("--host", LOOPBACK, "--port", str(port), "--superexec-auth-secret-file", str(secret)),
        *("--ssl-ca-certfile", str(authority), "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)),
        *("--node-config", f'site-file="{_quotable(site.folder / "site.json")}"'),
    )
    superexec = (
        *(script("flower-superexec"), "--runtime-api-address", f"{LOOPBACK}:{port}"),
        *("--root-certificates", str(authority), "--superexec-auth-secret-file", str(secret)),
    )
    only_ours = str(write_executable(site.flower / "bin"))
    threads = site.machine.threads
    executing = environment_of(exec_home, threads=threads, path=only_ours)
    executing |= {"WARDROUND_SITE": str(site.folder), "WARDROUND_PATH": os.environ.get("PATH", os.defpath)}
    return (
        Program("supernode", supernode, environment_of(node_home)),
        Program("superexec", superexec, executing),
        *forwarder,
    )


def _forwarder(site: SiteFolder, port: int) -> Program:
    """Isolated: a file in the folder is nobody's module. It alone may see the proxy of the environment."""
    command = (sys.executable, "-I", "-m", "client.forward", str(site.folder), str(port))
    return Program("forwarder", command, environment_of(keystore.private_folder(site.flower / "forward")))


def _quotable(path: Path) -> str:
    text = str(path)
    if any(character in text for character in "\"'\\"):
        raise ConfigError("the site's folder must not have quotes or backslashes in its name; move it")
    return text


def write_executable(folder: Path) -> Path:
    """Write the folder that is the SuperExec's whole PATH: one executable, isolated from the caller's environment."""
    first_line = f"#!{sys.executable} -I"
    if len(first_line) > MAX_SHEBANG or " " in sys.executable:
        raise ConfigError("this Python's path is too long or has spaces; install wardround in a shorter path")
    keystore.private_folder(folder)
    for other in folder.iterdir():
        other.unlink()
    program = folder / "flwr-clientapp"
    program.write_text(f"{first_line}\nfrom client.app import run_message_process\n\nrun_message_process()\n")
    program.chmod(0o700)
    return folder


def _loopback_certificate(folder: Path, now: dt.datetime) -> tuple[Path, Path, Path]:
    """A throw-away authority and a certificate for loopback alone; its authority's key is not kept."""
    keystore.private_folder(folder)
    authority = certificates.create_authority("one site's loopback", now, days=certificates.SERVER_DAYS)
    server = certificates.issue_server(authority, (LOOPBACK, "localhost"), now)
    paths = folder / "ca.crt", folder / "server.crt", folder / "server.key"
    paths[0].write_bytes(authority.certificate)
    paths[1].write_bytes(server.certificate)
    paths[2].unlink(missing_ok=True)
    keystore.write_private(paths[2], server.key)
    return paths


def status(site: SiteFolder) -> dict[str, Any]:
    """What runs and what may run: plain JSON values."""
    processes = read_record(site.folder)
    return {
        "site": site.name,
        "coordinator": site.coordinator,
        "running": processes["running"],
        "processes": processes["programs"],
        "certificate_days": _certificate_days(site),
        "approved": {approval.digest: approval.campaign for approval in approvals(site.approvals)},
        "release": _release(site),
    }


def _certificate_days(site: SiteFolder) -> int | None:
    """Negative once it has ended; None at a site that was made by hand."""
    if not site.certificate.exists():
        return None
    return certificates.days_left(site.certificate.read_bytes(), dt.datetime.now(dt.UTC))


def _release(site: SiteFolder) -> dict[str, Any] | None:
    """What is in force; processes are shown also where it is damaged."""
    from client.releases import releases

    try:
        rows = [row for row in releases(site) if row.current]
    except DataError as error:
        return {"damaged": str(error)}
    keys = ("name", "version", "digest", "personal")
    return {key: getattr(rows[0], key) for key in keys} if rows else None
