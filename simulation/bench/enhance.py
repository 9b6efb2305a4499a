"""Bench `enhance`: a series enhanced as DICOM against the bare network on the same slices, one thread.

CT of 512 x 512 x 60, uncompressed; unet of 16 channels and 3 levels with a recogniser of the same width; no noise draws
and no pictures, which are extra work of the network. Both sides run in the same process, REPEATS times in turn,
and the shortest of each counts, so that a busy machine slows both. `ours` and `rival` in seconds per slice;
`over_own_network` is the total over what the network took within the same run. `decode_s`, `network_s` and `encode_s`
are each stage's own time per slice; they run beside one another, so that their sum is more than `ours` where there is a
second core. `peak_mb` is the process's largest resident memory, with torch and highdicom in it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from shared.config import (
    CampaignConfig,
    DataConfig,
    DegradeConfig,
    EnhancerConfig,
    IngestConfig,
    IntensityConfig,
    MachineConfig,
    ObjectiveConfig,
    RecogniserConfig,
    RoundsConfig,
    StrategyConfig,
    TrainingConfig,
)
from simulation.bench import Case
from simulation.bench.ingest import Hospital, write_series

if TYPE_CHECKING:
    from client.installed import Installed
    from shared.release import Manifest

TARGET = 1.05
MOST_MB = 1500
SIZE, SLICES = 512, 60
REPEATS = 2
MACHINE = MachineConfig(device="cpu", threads=1)


class _Manifest:
    """What enhancing reads of a manifest; nothing is signed here."""

    name, version, digest = "bench", 1, "0" * 64
    calibration = descriptors = None

    def __init__(self, weights: bytes) -> None:
        self.files = {"weights.safetensors": {"sha256": hashlib.sha256(weights).hexdigest()}}


def run(size: int = SIZE, slices: int = SLICES) -> list[Case]:
    """One case."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_series(folder / "study", Hospital("ct", 1, slices, size, compressed=False), 0)
        installed = _installed(folder / "release", size)
        return [_case(folder, installed, size, slices)]


def _case(folder: Path, installed: Installed, size: int, slices: int) -> Case:
    from client.enhance.series import Options
    from client.enhance.study import enhance_study

    options = Options(now=dt.datetime(2026, 1, 1, tzinfo=dt.UTC), draws=0, pictures=0)
    bare, runs = [], []
    for number in range(REPEATS):
        bare.append(_bare(installed, size, slices))
        runs.append(enhance_study(folder / "study", folder / f"out-{number}", installed, MACHINE, options))
    bare_s, summary = min(bare), min(runs, key=lambda run: run.seconds)
    assert summary.slices == slices
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ratio = summary.seconds / bare_s
    return {
        "bench": "enhance",
        "case": f"ct-{size}x{size}x{slices}",
        "ours": summary.seconds / slices,
        "rival": bare_s / slices,
        "ratio": round(ratio, 3),
        "target": TARGET,
        "holds": ratio <= TARGET and peak_mb <= MOST_MB,
        "decode_s": summary.stages["decode"] / slices,
        "network_s": summary.stages["network"] / slices,
        "encode_s": summary.stages["encode"] / slices,
        "over_own_network": round(summary.seconds / summary.stages["network"], 3),
        "total_s": round(summary.seconds, 2),
        "peak_mb": round(peak_mb),
        "most_mb": MOST_MB,
    }


def _bare(installed: Installed, size: int, slices: int) -> float:
    """Enhancer and recogniser alone, on as many slices, from memory; the first is a warm-up."""
    from client.enhance.release import answer, in_use

    release = in_use(installed, MACHINE)
    image = torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(0))
    answer(release, image)
    started = time.perf_counter()
    for _ in range(slices):
        answer(release, image)
    return time.perf_counter() - started


def _installed(folder: Path, size: int) -> Installed:
    from safetensors.numpy import save

    from client.installed import Installed
    from shared.networks import build_networks
    from shared.weights import to_arrays

    campaign = _campaign(size)
    folder.mkdir()
    content = save({name: np.ascontiguousarray(values) for name, values in to_arrays(build_networks(campaign)).items()})
    (folder / "weights.safetensors").write_bytes(content)
    return Installed(cast("Manifest", _Manifest(content)), folder, campaign)


def _campaign(size: int) -> CampaignConfig:
    rule = IngestConfig(modalities=("CT",), intensity=IntensityConfig(rule="window", low=-160, high=240))
    data = DataConfig(kind="store", ingest=rule, masks=("organ", "lesion"), diagnoses=("none", "lesion"))
    return CampaignConfig(
        name="bench",
        seed=0,
        data=replace(data, image_size=(size, size)),
        degrade=DegradeConfig(kind="gaussian"),
        enhance=EnhancerConfig(kind="unet", channels=16, depth=3),
        recognise=RecogniserConfig(kind="unet", channels=16, depth=3),
        objective=ObjectiveConfig(kind="gradprom"),
        training=TrainingConfig(),
        strategy=StrategyConfig(kind="fedavg"),
        rounds=RoundsConfig(),
    )
