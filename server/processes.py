"""The coordinator's processes: Flower's SuperLink and SuperExec under supervision, and its command line for the rest.

In: a founded folder. Out: running processes, admitted sites, submitted runs. State is in SQLite and the SuperExec
stands outside the SuperLink, so that a killed SuperLink comes back with its sites, and a ServerApp outlives it.
No shell: every command is a list.
"""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.folder import Coordinator
from shared.checkpoint import write_atomically
from shared.errors import DataError, PeerError
from shared.reach import check_reachable
from shared.supervise import Program, environment_of, script
from shared.trust import keystore
from shared.trust.names import checked_address

LINK = "coordinator"  # the connection's name in Flower's config.toml
COMMAND_S = 120.0  # one call of Flower's command line; a loaded machine needs 10


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Flower's view of one run."""

    run_id: str
    status: str  # pending, starting, running, finished:completed, finished:failed, finished:stopped

    @property
    def finished(self) -> bool:
        return self.status.startswith("finished")


def programs(coordinator: Coordinator, bind: str, port: int) -> tuple[Program, Program]:
    """SuperLink and SuperExec; the runtime interface of the first is reached over loopback by the second."""
    home = keystore.private_folder(coordinator.flower / "link")
    superlink = (
        *(script("flower-superlink"), "--host", bind, "--port", str(port)),
        *("--ssl-ca-certfile", str(coordinator.authority)),
        *("--ssl-certfile", str(coordinator.server_certificate), "--ssl-keyfile", str(coordinator.server_key)),
        *("--enable-supernode-auth", "--database", str(coordinator.flower / "state.db")),
        *("--isolation", "process", "--superexec-auth-secret-file", str(coordinator.superexec_secret)),
        "--disable-runtime-dependency-installation",
    )
    superexec = (
        *(script("flower-superexec"), "--runtime-api-address", f"{own_host(bind)}:{port}"),
        *("--root-certificates", str(coordinator.authority)),
        *("--superexec-auth-secret-file", str(coordinator.superexec_secret)),
    )
    environment = environment_of(home)
    return Program("superlink", superlink, environment), Program("superexec", superexec, environment)


def enrol_program(coordinator: Coordinator, bind: str) -> Program:
    """The service that sites join by and ask afterwards. Isolated: a file in the folder is nobody's module."""
    command = (sys.executable, "-I", "-m", "server.enrol", str(coordinator.folder), bind)
    return Program("enrol", command, environment_of(keystore.private_folder(coordinator.flower / "enrol")))


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def own_host(bind: str) -> str:
    """Where the coordinator's own processes reach the SuperLink: over loopback wherever it listens there."""
    return "127.0.0.1" if bind in ("127.0.0.1", "localhost", "0.0.0.0", "::") else f"[{bind}]" if ":" in bind else bind


def write_link(coordinator: Coordinator, bind: str, port: int) -> None:
    """Tell Flower's command line where the SuperLink is, always under our authority."""
    home = keystore.private_folder(coordinator.flower / "command")
    lines = ["[superlink]", f'default = "{LINK}"', "", f"[superlink.{LINK}]"]
    lines += [
        f'address = "{own_host(bind)}:{port}"',
        f"root-certificates = {json.dumps(str(coordinator.authority))}",
        "",
    ]
    (home / "config.toml").write_text("\n".join(lines))


def reach(coordinator: Coordinator) -> None:
    """Raise PeerError unless the SuperLink that `serve` last started answers."""
    config = coordinator.flower / "command" / "config.toml"
    if not config.exists():
        raise PeerError("the coordinator is not serving; start it with: wardround-coordinator serve")
    address = tomllib.loads(config.read_text())["superlink"][LINK]["address"]
    host, port = checked_address(address)
    try:
        check_reachable(host, port, coordinator.authority)
    except PeerError:
        raise PeerError(
            f"the coordinator does not answer on port {port}; start it with: wardround-coordinator serve"
        ) from None


# ------------------------------------------------------------------------------------------- Flower's command line


def start_run(coordinator: Coordinator, app: Path, run_config: Path) -> str:
    """Submit a bundle; returns Flower's run id."""
    answer = _flwr(coordinator, "run", str(app), LINK, "--run-config", str(run_config), "--format", "json")
    if not answer.get("run-id"):
        raise PeerError("the SuperLink did not accept the run; see logs/superlink.log")
    return str(answer["run-id"])


def run_status(coordinator: Coordinator, run_id: str) -> RunStatus:
    answer = _flwr(coordinator, "list", LINK, "--run-id", run_id, "--format", "json")
    runs = answer.get("runs") or [{}]
    return RunStatus(run_id, str(runs[0].get("status", "unknown")))


def stop_run(coordinator: Coordinator, run_id: str) -> None:
    _flwr(coordinator, "stop", run_id, LINK, "--format", "json")


def sites_known(coordinator: Coordinator) -> dict[str, str]:
    """Node id -> online, offline or registered, for every key that the SuperLink knows."""
    answer = _flwr(coordinator, "supernode", "list", LINK, "--format", "json")
    try:
        return {str(node["node-id"]): str(node["status"]) for node in answer.get("nodes", [])}
    except (KeyError, TypeError, AttributeError):
        raise PeerError("the SuperLink listed its sites in an unknown form; see logs/superlink.log") from None


def register_site(coordinator: Coordinator, site: str, public_key: Path) -> str:
    """Make a site's key known to the SuperLink under its name; returns the node id."""
    answer = _flwr(coordinator, "supernode", "register", str(public_key), LINK, "--name", site, "--format", "json")
    if "node-id" not in answer:
        raise PeerError(f"the SuperLink did not register site {site!r}; see logs/superlink.log")
    return str(answer["node-id"])


def unregister_site(coordinator: Coordinator, node: str) -> None:
    """Make the SuperLink forget a node: its key opens nothing from then on."""
    _flwr(coordinator, "supernode", "unregister", node, LINK, "--format", "json")


def _flwr(coordinator: Coordinator, *arguments: str) -> dict[str, Any]:
    """One call of `flwr ... --format json`: the JSON object that it prints, after whatever else it prints."""
    environment = environment_of(coordinator.flower / "command")
    try:
        done = subprocess.run(
            (script("flwr"), *arguments),
            env=environment,
            cwd=coordinator.folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PeerError(f"the SuperLink did not answer within {COMMAND_S:.0f} s; see logs/superlink.log") from None
    answer = last_json(done.stdout)
    if answer is None or answer.get("success") is False:
        with (coordinator.folder / "logs" / "command.log").open("a") as log:
            log.write(f"$ flwr {' '.join(arguments)}\n{done.stdout}\n{done.stderr}\n")
        raise PeerError(f"the SuperLink refused or missed `flwr {arguments[0]}`; see logs/command.log")
    return answer


def last_json(text: str) -> dict[str, Any] | None:
    """The last JSON object in a text whose line begins with it; None when there is none."""
    decoder = json.JSONDecoder()
    start = 0 if text.startswith("{") else text.find("\n{") + 1
    while text[start : start + 1] == "{":
        try:
            value, end = decoder.raw_decode(text, start)
        except ValueError:
            return None
        following = text.find("\n{", end)
        if following < 0:
            return value if isinstance(value, dict) else None
        start = following + 1
    return None


# ------------------------------------------------------------------------------------------- admitted sites


def registrar(coordinator: Coordinator) -> Callable[[], list[str]]:
    """A function that registers keys not yet known to the SuperLink, and returns the sites it registered.

    It also ends the registration of sites that are no longer in: those that were revoked, or have left. A site whose
    key is another one now was both.
    """
    known: dict[str, str] | None = None
    keys: dict[str, str] = {}

    def register_new() -> list[str]:
        nonlocal known, keys
        if known is None:
            nodes = sites_known(coordinator)
            known = {site: node for site, node in registered(coordinator).items() if node in nodes}
            keys = registered_keys(coordinator)
        paths, current = coordinator.site_keys(), {}
        for site, path in paths.items():
            with suppress(FileNotFoundError):  # revoked in this very moment
                current[site] = path.read_text().strip()
        gone = [site for site in known if site not in current or keys.get(site, current[site]) != current[site]]
        for site in gone:
            unregister_site(coordinator, known[site])
            del known[site]
            _write_registered(coordinator, known, current)
        new = [site for site in current if site not in known]
        for site in new:
            known[site] = register_site(coordinator, site, paths[site])
            _write_registered(coordinator, known, current)
        keys = {site: current[site] for site in known}
        return new

    return register_new


def registered(coordinator: Coordinator) -> dict[str, str]:
    """Site -> Flower's node id, as of the last registration."""
    try:
        values = json.loads((coordinator.flower / "sites.json").read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise DataError("flower/sites.json is not readable; remove it, and serve registers the sites again") from None
    return {str(site): str(node) for site, node in values.items()}


def registered_keys(coordinator: Coordinator) -> dict[str, str]:
    """Site -> the key that it was registered with; empty in a folder of an older version."""
    try:
        values = json.loads((coordinator.flower / "keys.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return {str(site): str(key) for site, key in values.items()}


def _write_registered(coordinator: Coordinator, known: dict[str, str], keys: Mapping[str, str]) -> None:
    shown = {site: keys[site] for site in known if site in keys}
    write_atomically(coordinator.flower / "keys.json", json.dumps(shown, indent=1).encode())
    write_atomically(coordinator.flower / "sites.json", json.dumps(known, indent=1).encode())
