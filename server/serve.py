"""The coordinator in the foreground: its processes under supervision, and admitted keys registered as they come.

Flower's control interface has no accounts: who reaches the port can start a run. So it listens on loopback, and
anything else needs an argument that says what it does.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from server import folder, gateway, processes, registry
from server.folder import Coordinator
from server.outcome import read_outcome
from server.records import all_records, is_closing
from shared.config import load_campaign
from shared.errors import ConfigError, RefusedError, WardroundError
from shared.reach import check_reachable, is_free
from shared.supervise import Program, read_record, supervise
from shared.trust import certificates

LOOPBACK = ("127.0.0.1", "localhost", "::1")
REGISTER_S = 2.0


def serve(
    coordinator: Coordinator, *, port: int, bind: str, exposed: bool, say: Callable[[str], None],
    with_gateway: bool = False,
) -> None:  # fmt: skip
    """Serve until told to stop; raises RefusedError for an open bind, ConfigError when a port is taken."""
    if bind not in LOOPBACK and not exposed:
        raise RefusedError(
            f"binding to {bind} would let everyone who reaches it start runs: keep loopback behind a gateway that "
            "passes only /v1/fleet/, or say --dangerously-expose-control"
        )
    if processes.own_host(bind).strip("[]") not in coordinator.hosts:
        raise ConfigError(
            f"the server certificate is not for {bind} but for {', '.join(coordinator.hosts)}; name it in init --host"
        )
    if with_gateway and (bind not in LOOPBACK or port != coordinator.port):
        raise ConfigError(f"the gateway leads to port {coordinator.port} on loopback; leave --bind and --port away")
    folder.renew_if_due(coordinator, dt.datetime.now(dt.UTC))
    stop = threading.Event()
    registering = threading.Thread(
        target=_register, args=(coordinator, processes.own_host(bind).strip("[]"), port, stop, say), daemon=True
    )

    def start() -> Sequence[Program]:
        for taken, option in ((port, "--port"), (coordinator.join_port, ""), (coordinator.services_port, "")):
            if not is_free(bind, taken):
                choose = f"choose another with {option}" if option else "write another into coordinator.json"
                raise ConfigError(f"port {taken} on {bind} is in use; {choose}, or stop what listens there")
        processes.write_link(coordinator, bind, port)
        registering.start()
        facing = (gateway.program(coordinator),) if with_gateway else ()
        return (*processes.programs(coordinator, bind, port), processes.enrol_program(coordinator, bind), *facing)

    try:
        supervise(start, coordinator.folder)
    finally:
        stop.set()


def _register(
    coordinator: Coordinator, host: str, port: int, stop: threading.Event, say: Callable[[str], None]
) -> None:
    """Register keys while serving; says every new site and each new trouble once."""
    register_new = processes.registrar(coordinator)
    trouble = ""
    serving = False
    while not stop.wait(REGISTER_S if serving else 0.3):
        try:
            if not serving:
                check_reachable(host, port, coordinator.authority)
                serving = True
                say(f"Federation {coordinator.name} is served on port {port}.")
            for site in register_new():
                say(f"Site {site} is admitted.")
            trouble = ""
        except WardroundError as error:
            if serving and str(error) != trouble:
                trouble = str(error)
                say(trouble)


def status(coordinator: Coordinator, now: dt.datetime) -> dict[str, Any]:
    """What serves, which sites are there, how far the runs are: plain JSON values."""
    record = read_record(coordinator.folder)
    nodes = processes.registered(coordinator)
    known = processes.sites_known(coordinator) if record["running"] else {}
    sites = {site: known.get(nodes.get(site, ""), "not registered yet") for site in coordinator.site_keys()}
    return {
        "federation": coordinator.name,
        "serving": record["running"],
        "processes": record["programs"],
        "certificate_days": certificates.days_left(coordinator.server_certificate.read_bytes(), now),
        "site_certificate_days": {
            site: said if isinstance(said, str) else said.days_left(now)
            for site, said in registry.certificates_of(coordinator, now).items()
        },
        "sites": sites if record["running"] else dict.fromkeys(sites, "not served"),
        "runs": {path.name: _run(path) for path in sorted((coordinator.folder / "runs").iterdir()) if path.is_dir()},
    }


def _run(run_dir: Path) -> dict[str, Any]:
    outcome = read_outcome(run_dir)
    done = [record for record in all_records(run_dir) if not is_closing(record)]
    word = "under way or lost" if outcome is None else "completed" if outcome.completed else "failed"
    try:
        rounds = load_campaign(run_dir / "campaign.json").total_rounds
    except WardroundError:
        rounds = None
    return {
        "rounds_done": min(len(done), rounds or 0),
        "rounds": rounds,
        "state": word,
        "reason": outcome.reason if outcome else "",
    }
