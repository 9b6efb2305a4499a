"""Bench `simulate`: 3 clients, 3 rounds, tiny networks; our in-process federation against Flower's Ray simulation.

Both do the same local work on the same stores: every round each client trains the same steps by the same code and
judges a global model on its test images (ours four times, the rival three: it has no closing round). The rival is
Flower's own engine with Flower's own FedAvg. Each runs in a process of its own, one after the other, in turns; times
are wall time from start to exit with all imports, memory is the highest sum of resident memory over the process and
its children, seen every 0.1 s.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from shared.config import (
    CampaignConfig,
    DataConfig,
    DegradeConfig,
    EnhancerConfig,
    IngestConfig,
    IntensityConfig,
    ObjectiveConfig,
    RecogniserConfig,
    RoundsConfig,
    StrategyConfig,
    TrainingConfig,
    save_campaign,
)
from shared.errors import PeerError
from simulation.bench import Case

TARGET = 0.35
CLIENTS = 3
PATIENTS, SLICES = 16, 4  # 64 images per client
REPETITIONS = 2
SAMPLE_S = 0.1
LIMIT_S = 600.0


def campaign() -> CampaignConfig:
    """A recogniser of 1,282 weights (convolutions to 8 and 16 channels, 2 classes) and the smallest enhancer."""
    return CampaignConfig(
        name="bench-simulate",
        seed=0,
        data=DataConfig(
            kind="store",
            ingest=IngestConfig(modalities=("MR",), intensity=IntensityConfig(rule="range")),
            diagnoses=("none", "lesion"),
            image_size=(32, 32),
        ),
        degrade=DegradeConfig(kind="gaussian", sigma=(0.1, 0.1)),
        enhance=EnhancerConfig(kind="cnn3", channels=4),
        recognise=RecogniserConfig(kind="cnn", channels=8),
        objective=ObjectiveConfig(kind="gradprom"),
        training=TrainingConfig(batch_size=16, local_steps=4),
        strategy=StrategyConfig(kind="fedavg"),
        rounds=RoundsConfig(rounds=3, quorum=CLIENTS),
    )


def run() -> list[Case]:
    """One case: the median over turns of time and of memory."""
    from simulation.bench.stores import write_random_store

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_campaign(campaign(), root / "campaign.json")
        for client in range(CLIENTS):
            write_random_store(store(root, client), campaign().data, patients=PATIENTS, slices=SLICES, seed=client)
        turns = [(measured("inprocess", root, turn), measured("flower", root, turn)) for turn in range(REPETITIONS)]
    ours_s, ours_mb = (statistics.median(ours[i] for ours, _ in turns) for i in (0, 1))
    rival_s, rival_mb = (statistics.median(rival[i] for _, rival in turns) for i in (0, 1))
    ratio, memory_ratio = ours_s / rival_s, ours_mb / rival_mb
    case: Case = {
        "bench": "simulate",
        "case": f"{CLIENTS} clients, {campaign().rounds.rounds} rounds",
        "ours": round(ours_s, 2),
        "rival": round(rival_s, 2),
        "ratio": round(ratio, 4),
        "target": TARGET,
        "holds": max(ratio, memory_ratio) <= TARGET,
        "memory_ratio": round(memory_ratio, 4),
        "peak_mb": round(ours_mb, 1),
        "rival_peak_mb": round(rival_mb, 1),
    }
    return [case]


def store(root: Path, client: int) -> Path:
    return root / f"client-{client}"


def measured(side: str, root: Path, turn: int) -> tuple[float, float]:
    """Seconds from start to exit, and the peak of summed resident memory in MB (10^6 bytes)."""
    command = [sys.executable, "-m", "simulation.bench.simulate", side, str(root), str(turn)]
    began = time.perf_counter()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    peak, tree = 0.0, {process.pid: psutil.Process(process.pid)}
    try:
        while process.poll() is None and time.perf_counter() - began < LIMIT_S:
            tree |= {child.pid: child for child in _children(process)}
            peak = max(peak, sum(map(_resident_mb, tree.values())))
            time.sleep(SAMPLE_S)
        seconds = time.perf_counter() - began
    finally:
        _end(tree)
        process.wait()
    if process.returncode != 0:
        error = process.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
        raise PeerError(f"bench simulate: the {side} side ended with {process.returncode}: {''.join(error)}")
    return seconds, peak


def _children(process: psutil.Popen) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def _resident_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / 1e6
    except psutil.Error:
        return 0.0


def _end(tree: dict[int, psutil.Process]) -> None:
    """Ray's processes outlive their driver by seconds; the next turn must not meet them."""
    for process in tree.values():
        if process.is_running():
            process.kill()
    psutil.wait_procs(tree.values(), timeout=10)


def run_ours(root: Path, turn: int) -> None:
    from shared.config import MachineConfig, load_campaign
    from simulation.run import run_federation

    stores = {f"client-{client}": store(root, client) for client in range(CLIENTS)}
    machine = MachineConfig(device="cpu", threads=1)
    run_federation(load_campaign(root / "campaign.json"), stores, root / f"run-{turn}", "inprocess", machine)


def run_rival(root: Path, turn: int) -> None:
    from simulation.bench.simulate_flower import run_flower

    run_flower(root, CLIENTS)


if __name__ == "__main__":
    SIDES = {"inprocess": run_ours, "flower": run_rival}
    SIDES[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
