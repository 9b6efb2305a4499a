"""Bench `secagg`: what secure aggregation costs one of 10 sites for an update of 25 M float32, in seconds and bytes.

Rival: Flower's SecAgg+ for its legacy API (`flwr.client.mod.secaggplus_mod` in flwr 1.41), all four stages of one site
by its own code, with masks between all sites, a threshold of 7 of 10 and its defaults elsewhere. Ours are offer, mask
and reveal, from arrays to the bytes that leave, with the session's way over the disk and the reading of the others'
offers. Training is in neither, and nobody drops out at the site's cost: it masks for all. The two take turns, so that a
busy machine slows both; of each stands the median. The other nine sites only make what the measured one has to read.

`bytes_ratio` is all that a site sends, over 4 bytes a value; `unmask_s` the coordinator's time to open a sum with 3 of
10 sites lost; `peak_mb` the high-water mark of a site's process that does ours alone.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from shared.secagg.fixed_point import grid_for, quantise
from shared.secagg.protocol import Offer, Reveal, SiteSession, Terms, mask, new_session, offer, reveal, unmask
from shared.trust.identity import create_identity
from shared.types import Arrays
from simulation.bench import Case
from simulation.bench.aggregate import SHAPES, peak_mb

TARGET = 1.0
BYTES_TARGET = 1.3
SITES = 10
LOST = 3
THRESHOLD = 7
REPEATS = 3
WEIGHT = 800
"""Images that a site counts by, in ours and the rival's."""
RANGE = 4.0
SITE = 4
"""Which of the sites is measured: it adds some masks and takes others away."""


def run() -> list[Case]:
    return [_case(_in_process("time"), _in_process("peak")["peak_mb"])]


def _case(measured: Mapping[str, float], peak: float) -> Case:
    ratio = measured["ours"] / measured["rival"]
    bytes_ratio = measured["bytes"] / measured["plain_bytes"]
    return {
        "bench": "secagg",
        "case": f"sites={SITES}",
        "ours": round(measured["ours"], 3),
        "rival": round(measured["rival"], 3),
        "ratio": round(ratio, 4),
        "target": TARGET,
        "holds": ratio <= TARGET and bytes_ratio <= BYTES_TARGET,
        "bytes_ratio": round(bytes_ratio, 4),
        "bytes_target": BYTES_TARGET,
        "rival_bytes_ratio": round(measured["rival_bytes"] / measured["plain_bytes"], 4),
        "received_kb": round(measured["received"] / 1e3, 1),
        "unmask_s": round(measured["unmask"], 3),
        "peak_mb": round(peak, 1),
    }


def _in_process(mode: str) -> dict[str, float]:
    command = [sys.executable, "-m", "simulation.bench.secagg", mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def random_update(shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    rng = np.random.Generator(np.random.PCG64(0))
    return {name: rng.normal(0, 0.01, shape).astype(np.float32) for name, shape in shapes.items()}


class OurSites:
    """A cohort of which one site does its whole work and is timed."""

    def __init__(self) -> None:
        names = [f"site-{i}" for i in range(SITES)]
        self.identities = {name: create_identity(name) for name in names}
        self.peers = {name: identity.public for name, identity in self.identities.items()}
        self.site = names[SITE]
        self.terms = Terms(new_session(), "0" * 64, 1, tuple(names), 3)
        self.made = {name: offer(self.identities[name], self.peers, self.terms) for name in names if name != self.site}

    def work(self, arrays: Arrays) -> tuple[float, dict[str, Any]]:
        """Seconds of the measured site, and what it sends; `offers` is what it receives."""
        began = time.perf_counter()
        session, own = offer(self.identities[self.site], self.peers, self.terms)
        kept = json.dumps(session.to_json())
        offered = json.dumps(own.to_json())
        seconds = time.perf_counter() - began

        every = {name: made.to_json() for name, (_, made) in self.made.items()} | {self.site: own.to_json()}
        relayed = json.dumps(every)
        began = time.perf_counter()
        offers = {name: Offer.from_json(values) for name, values in json.loads(relayed).items()}
        session = SiteSession.from_json(json.loads(kept))
        vector = quantise(arrays, dict.fromkeys(arrays, WEIGHT), grid_for(RANGE, SITES * WEIGHT))
        session, masked = mask(session, offers, vector, self.identities[self.site])
        kept = json.dumps(session.to_json())
        del vector
        session, answer = reveal(SiteSession.from_json(json.loads(kept)), self.terms.cohort[LOST:])
        revealed = json.dumps(answer.to_json())
        seconds += time.perf_counter() - began
        sent = {"offer": offered, "masked": masked, "reveal": revealed, "offers": relayed}
        return seconds, sent

    def unmask_seconds(self, sent: Mapping[str, Any], count: int) -> float:
        """The time does not depend on the sum, so the lone masked vector stands for one; the survivors' shares do."""
        offers = {name: Offer.from_json(values) for name, values in json.loads(sent["offers"]).items()}
        survivors = self.terms.cohort[LOST:]
        reveals = {self.site: Reveal.from_json(json.loads(sent["reveal"]))}
        for name in set(survivors) - {self.site}:
            session, _ = mask(self.made[name][0], offers, np.zeros(1, np.uint64), self.identities[name])
            _, reveals[name] = reveal(session, survivors)
        began = time.perf_counter()
        unmask(np.zeros(count, np.uint64), self.terms, offers, survivors, reveals)
        return time.perf_counter() - began


class FlowersSites:
    """As many sites of Flower's SecAgg+, of which one does its whole work and is timed."""

    def __init__(self) -> None:
        from flwr.app import Context, RecordDict
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # what a message asks for
        self.nodes = list(range(1, SITES + 1))
        self.node = self.nodes[SITE]
        self.contexts = {
            node: Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
            for node in self.nodes
        }

    def work(self, arrays: Arrays) -> tuple[float, int]:
        """Seconds of the measured site, and bytes that it sends."""
        from flwr.common.secure_aggregation.secaggplus_constants import Key, Stage

        plan = {Key.SAMPLE_NUMBER: SITES, Key.SHARE_NUMBER: SITES, Key.THRESHOLD: THRESHOLD, Key.CLIPPING_RANGE: 8.0,
                Key.TARGET_RANGE: 1 << 22, Key.MOD_RANGE: 1 << 32, Key.MAX_WEIGHT: 1000.0}  # fmt: skip
        keys, seconds = {}, 0.0
        for node in self.nodes:
            answer, spent = self._asked(node, {Key.STAGE: Stage.SETUP, **plan})
            keys[str(node)] = [answer[Key.PUBLIC_KEY_1], answer[Key.PUBLIC_KEY_2]]
            seconds += spent * (node == self.node)
        sealed, sent = {}, sum(map(len, keys[str(self.node)]))
        for node in self.nodes:
            answer, spent = self._asked(node, {Key.STAGE: Stage.SHARE_KEYS, **keys})
            for to, text in zip(answer[Key.DESTINATION_LIST], answer[Key.CIPHERTEXT_LIST], strict=True):
                sealed[node, to] = text
            if node == self.node:
                seconds, sent = seconds + spent, sent + sum(map(len, answer[Key.CIPHERTEXT_LIST]))
        others = [node for node in self.nodes if node != self.node]
        received = {Key.SOURCE_LIST: others, Key.CIPHERTEXT_LIST: [sealed[node, self.node] for node in others]}
        answer, spent = self._asked(self.node, {Key.STAGE: Stage.COLLECT_MASKED_VECTORS, **received}, arrays)
        seconds, sent = seconds + spent, sent + sum(map(len, answer[Key.MASKED_PARAMETERS]))
        ask = {Key.ACTIVE_NODE_ID_LIST: self.nodes[LOST:], Key.DEAD_NODE_ID_LIST: self.nodes[:LOST]}
        answer, spent = self._asked(self.node, {Key.STAGE: Stage.UNMASK, **ask})
        return seconds + spent, sent + sum(map(len, answer[Key.SHARE_LIST]))

    def _asked(self, node: int, config: dict[str, Any], arrays: Arrays | None = None) -> tuple[Any, float]:
        """What the mod answers to one message, and the seconds it took; the app below it has trained already."""
        from flwr.app import ConfigRecord, Message, MessageType, RecordDict
        from flwr.client.mod import secaggplus_mod
        from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
        from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS
        from flwr.compat.common import recorddict_compat

        content = RecordDict({RECORD_KEY_CONFIGS: ConfigRecord(config)})
        message = Message(content, dst_node_id=node, message_type=MessageType.TRAIN)
        trained = RecordDict()
        if arrays is not None:
            result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters(list(arrays.values())), WEIGHT, {})
            trained = recorddict_compat.fitres_to_recorddict(result, keep_input=False)
        began = time.perf_counter()
        reply = secaggplus_mod(message, self.contexts[node], lambda *_: Message(trained, reply_to=message))
        return reply.content[RECORD_KEY_CONFIGS], time.perf_counter() - began


def measure_time(shapes: Mapping[str, tuple[int, ...]], repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of ours and the rival, bytes that a site sends in each, and the time to unmask."""
    arrays = random_update(shapes)
    count = sum(values.size for values in arrays.values())
    ours, rival = [], []
    for _ in range(repeats):
        sites = OurSites()
        seconds, sent = sites.work(arrays)
        ours.append(seconds)
        seconds, rival_bytes = FlowersSites().work(arrays)
        rival.append(seconds)
    return {
        "ours": statistics.median(ours),
        "rival": statistics.median(rival),
        "bytes": sum(len(sent[kind]) for kind in ("offer", "masked", "reveal")),
        "plain_bytes": 4 * count,
        "rival_bytes": rival_bytes,
        "received": len(sent["offers"]),
        "unmask": sites.unmask_seconds(sent, count),
    }


def measure_peak(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    OurSites().work(random_update(shapes))
    return {"peak_mb": peak_mb()}


if __name__ == "__main__":
    MEASURES = {"peak": measure_peak, "time": measure_time}
    print(json.dumps(MEASURES[sys.argv[1]](SHAPES)))
