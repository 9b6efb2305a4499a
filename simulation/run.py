"""A campaign and one store per site in, a trained federation out, on one machine: the very ServerApp and ClientApp.

transport=inprocess  one process, sites one after another, no sockets: same seed, same weights bit for bit
transport=ray        Flower's own simulation engine, sites in actors: the same result within 1e-5

In process a message is handed over as Flower's serialised arrays (so that a wrong dtype or shape shows up), but is
neither hashed nor copied. A site works when its reply is asked for, so that one reply is in memory at a time; waiting
moves a clock of its own forward, since nothing else happens meanwhile.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # before Flower is imported: it reads them then
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity

from client.app import make_app
from client.site import SiteSetup
from client.update import forget
from server.app import Clock, serve
from server.asking import ignore
from server.records import RoundRecord
from server.rounds import CampaignResult
from shared.config import CampaignConfig, MachineConfig, campaign_digest, save_campaign
from shared.errors import ConfigError
from shared.events import Event
from shared.trust.keystore import create_site_key, private_folder
from shared.types import Arrays, Metrics
from shared.wire.messages import read_metrics

if TYPE_CHECKING:
    from shared.trust.identity import Identity

Transport = Literal["inprocess", "ray"]
Fault = Literal["drop", "error"] | Callable[[Message], Message]
RUN_ID = 1
RAY_START_UP_S = 180.0

# What a site declines is an event here; a deployed site has a log.
logging.getLogger("wardround").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True, eq=False)
class FederationResult:
    """What a federation leaves: final weights, a record per round, and the closing evaluation per site."""

    weights: Arrays
    records: tuple[RoundRecord, ...]
    closing: Mapping[str, Metrics]


def run_federation(
    campaign: CampaignConfig,
    stores: Mapping[str, Path],
    run_dir: Path,
    transport: Transport = "inprocess",
    machine: MachineConfig | None = None,
    on_event: Callable[[Event], None] = ignore,
) -> FederationResult:
    """Train `campaign` over `stores` (site name -> store), from the last checkpoint in `run_dir` if there is one.

    Raises what the coordinator raises: PeerError, RefusedError, DataError.
    """
    if campaign.rounds.quorum > len(stores):
        raise ConfigError(f"round.quorum={campaign.rounds.quorum} can never be met by {len(stores)} sites; lower it")
    run_dir.mkdir(parents=True, exist_ok=True)
    save_campaign(campaign, run_dir / "campaign.json")
    setups = site_setups(campaign, stores, run_dir, machine or MachineConfig())
    try:
        result = TRANSPORTS[transport](setups, run_dir, on_event)
    finally:
        forget()
    closing = {site: read_metrics(metrics) for site, metrics in result.records[-1]["evaluation"].items()}
    return FederationResult(result.state.weights, result.records, closing)


def site_setups(
    campaign: CampaignConfig, stores: Mapping[str, Path], run_dir: Path, machine: MachineConfig
) -> tuple[SiteSetup, ...]:
    """One setup per store, by name; each has approved exactly this campaign, and where it is masked pinned the keys of
    the others."""
    approved = {campaign_digest(campaign): run_dir / "campaign.json"}
    homes = _homes(campaign, stores, run_dir)
    identities = {name: _identity(name, homes[name]) for name in homes} if campaign.secagg.masked else {}
    public = {name: identity.public for name, identity in identities.items()}
    return tuple(
        SiteSetup(
            name,
            stores[name],
            machine,
            approved,
            home=homes.get(name),
            identity=identities.get(name),
            peers={other: public[other] for other in public if other != name},
            simulation=True,
        )
        for name in sorted(stores)
    )


def _homes(campaign: CampaignConfig, names: Iterable[str], run_dir: Path) -> dict[str, Path]:
    """What a site keeps between messages lies in `sites/<name>` of the run's folder, as at a deployed site in its own;
    none where the campaign needs nothing kept."""
    if not (campaign.secagg.masked or campaign.privacy.on):
        return {}
    private_folder(run_dir / "sites")
    return {name: private_folder(run_dir / "sites" / name) for name in names}


def _identity(name: str, home: Path) -> Identity:
    """Of the keys in a site's home; made where it has none."""
    from shared.trust.identity import create_exchange_key, load_identity

    if not (home / "key").exists():
        create_site_key(home / "key")
    if not (home / "exchange.key").exists():
        create_exchange_key(home / "exchange.key")
    return load_identity(name, home / "key", home / "exchange.key")


# ---------------------------------------------------------------------------------------------------------- in process


class VirtualClock:
    """Seconds that were slept away; sleeping takes no time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class InProcessGrid(Grid):  # type: ignore[misc]
    """Flower's Grid over ClientApps in this process; a reply is computed when it is pulled.

    `faults` maps (site, n) to what happens to the site's n-th message, counted from 1: lost, failed, or changed.
    """

    def __init__(
        self, client_app: ClientApp, sites: Iterable[str], faults: Mapping[tuple[str, int], Fault] | None = None
    ) -> None:
        self._app = client_app
        self._faults = dict(faults or {})
        self._names = dict(enumerate(sites, start=1))
        self._contexts = {
            node: Context(RUN_ID, node, {"partition-id": node - 1}, RecordDict(), {}) for node in self._names
        }
        self._received = dict.fromkeys(self._names, 0)
        self._waiting: dict[str, Message] = {}
        self._count = 0
        self._run = FlowerRun.create_empty(run_id=RUN_ID)
        # A message can only be made inside a task; Flower's own simulation sets the same stand-ins.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, 1

    def set_run(self, run: FlowerRun) -> None:
        self._run = run

    @property
    def run(self) -> FlowerRun:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._names)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, name=name) for node, name in self._names.items()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            self._count += 1
            ids.append(f"message-{self._count}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self._waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = [self._waiting.pop(number) for number in message_ids if number in self._waiting]
        return [reply for message in asked if (reply := self._answered(message)) is not None]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _answered(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        self._received[node] += 1
        fault = self._faults.get((self._names[node], self._received[node]))
        if fault == "drop":
            return None
        if fault == "error":
            return Message(Error(code=2, reason="injected"), reply_to=message)
        reply = self._app(message, self._contexts[node])
        return fault(reply) if callable(fault) else reply


def run_inprocess(
    setups: tuple[SiteSetup, ...],
    run_dir: Path,
    on_event: Callable[[Event], None] = ignore,
    faults: Mapping[tuple[str, int], Fault] | None = None,
) -> CampaignResult:
    """All sites in this process, in the order of their names."""
    app = make_app(lambda context: setups[int(context.node_config["partition-id"])], on_step=on_event)
    names = [setup.name for setup in setups]
    clock = VirtualClock()
    return serve(
        InProcessGrid(app, names, faults),
        run_dir,
        allowed=frozenset(names),
        on_event=on_event,
        clock=Clock(clock.now, clock.sleep),
    )


# ---------------------------------------------------------------------------------------------------------------- ray


def run_ray(setups: tuple[SiteSetup, ...], run_dir: Path, on_event: Callable[[Event], None] = ignore) -> CampaignResult:
    """Flower's simulation engine: one actor per core, sites handed to whichever is free. No step events."""
    # Private keys are not carried to the actors: each reads those of its site where they lie.
    keyless = tuple(replace(setup, identity=None) for setup in setups)
    client_app = make_app(lambda context: _with_keys(keyless[int(context.node_config["partition-id"])]))
    server_app = ServerApp()
    results: list[CampaignResult] = []
    names = frozenset(setup.name for setup in setups)

    @server_app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        results.append(
            serve(
                grid,
                run_dir,
                allowed=names,
                on_event=on_event,
                clock=Clock(poll_s=0.05, start_up_s=RAY_START_UP_S, in_turns=True),
            )
        )

    simulate_with_ray(server_app, client_app, len(setups), setups[0].machine.threads)
    return results[0]


def _with_keys(setup: SiteSetup) -> SiteSetup:
    if not setup.peers:
        return setup
    assert setup.home is not None
    return replace(setup, identity=_identity(setup.name, setup.home))


def simulate_with_ray(server_app: ServerApp, client_app: ClientApp, sites: int, threads: int) -> None:
    """Flower's `run_simulation`, quiet and without telemetry; raises what the ServerApp raised."""
    try:
        from flwr.simulation import run_simulation
    except ImportError:
        raise ConfigError("transport=ray needs the extra of that name; install wardround[ray]") from None
    logging.getLogger("flwr").setLevel(logging.ERROR)
    cores = max(threads, os.cpu_count() or 1)
    backend: dict[str, Any] = {
        "client_resources": {"num_cpus": threads, "num_gpus": 0.0},
        "init_args": {"include_dashboard": False, "num_cpus": cores, "log_to_driver": False, "logging_level": 50},
    }
    run_simulation(server_app, client_app, num_supernodes=sites, backend_config=backend)


TRANSPORTS: dict[str, Callable[[tuple[SiteSetup, ...], Path, Callable[[Event], None]], CampaignResult]] = {
    "inprocess": run_inprocess,
    "ray": run_ray,
}
