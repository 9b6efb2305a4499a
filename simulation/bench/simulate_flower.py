"""The rival of bench `simulate`: Flower's Ray simulation and Flower's own FedAvg around the same local work.

Written as Flower's tutorials have it: weights come and go as an ArrayRecord, a train and an evaluate message per round.
A module of its own, so that Ray's actors import it by name.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from client.dataset import SiteData, open_site
from client.evaluate import evaluate, summarise
from client.train.local import train_round
from shared.config import CampaignConfig, MachineConfig, load_campaign
from shared.networks import Networks, build_networks
from shared.types import Arrays
from shared.weights import load_arrays, to_arrays
from simulation.run import simulate_with_ray

MACHINE = MachineConfig(device="cpu", threads=1)


@lru_cache(maxsize=8)
def opened(root: str, client: int) -> tuple[CampaignConfig, SiteData, Networks]:
    campaign = load_campaign(Path(root) / "campaign.json")
    data = open_site(Path(root) / f"client-{client}", f"client-{client}", campaign)
    return campaign, data, build_networks(campaign)


def _received(message: Message) -> Arrays:
    return {name: array.numpy() for name, array in message.content["arrays"].items()}


def _record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(values)) for name, values in arrays.items()})


def train(message: Message, context: Context) -> Message:
    config = message.content["config"]
    client = int(context.node_config["partition-id"])
    campaign, data, networks = opened(str(config["root"]), client)
    load_arrays(networks, _received(message))
    record, _ = train_round(
        networks,
        data.train,
        campaign,
        MACHINE,
        site=f"client-{client}",
        round=int(config["server-round"]),
        steps=campaign.training.local_steps,
    )
    metrics = MetricRecord({"num-examples": int(record["samples"]), "loss": record["loss_enhance"]})
    return Message(RecordDict({"arrays": _record(to_arrays(networks)), "metrics": metrics}), reply_to=message)


def judge(message: Message, context: Context) -> Message:
    campaign, data, networks = opened(str(message.content["config"]["root"]), int(context.node_config["partition-id"]))
    load_arrays(networks, _received(message))
    measured = summarise(evaluate(networks, data.test, campaign, MACHINE))["enhanced.psnr_db"]
    metrics = MetricRecord({"num-examples": measured.count, "psnr_db": measured.mean})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def run_flower(root: Path, clients: int) -> None:
    """The whole simulation, as bench `simulate` times it; raises if a round brought nothing."""
    campaign = load_campaign(root / "campaign.json")
    client_app, server_app = ClientApp(), ServerApp()
    client_app.train()(train)
    client_app.evaluate()(judge)
    rounds: dict[int, MetricRecord] = {}

    @server_app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(min_train_nodes=clients, min_evaluate_nodes=clients, min_available_nodes=clients)
        config = ConfigRecord({"root": str(root)})
        result = strategy.start(
            grid=grid,
            initial_arrays=_record(to_arrays(build_networks(campaign))),
            num_rounds=campaign.rounds.rounds,
            train_config=config,
            evaluate_config=ConfigRecord({"root": str(root)}),
        )
        rounds.update(result.evaluate_metrics_clientapp)

    simulate_with_ray(server_app, client_app, clients, MACHINE.threads)
    assert len(rounds) == campaign.rounds.rounds, f"Flower finished {len(rounds)} rounds"
