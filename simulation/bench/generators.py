"""What the benches of generators share: semi-synthetic MR slices, a recogniser of them, and generators trained on them.

All are made once and kept under runs/bench-generators, by the digest of their campaign: minutes on one core. One
hospital, 64 patients of whom half train and half test, 64 x 56 pixels, all masks known. The generators are small and
trained briefly: anatomy is to be recognised, no more is needed to compare how they are sampled.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from torch import nn

from client.dataset import SiteData, Slices, open_site
from shared.checkpoint import write_atomically
from shared.config import CampaignConfig, GenerateConfig, MachineConfig, SimulationConfig, campaign_digest
from shared.config.generation import DrawConfig, PhaseConfig
from shared.config.load import load
from shared.generate.networks import Generator, build_generator, load_parts, parts_arrays
from shared.generate.schedule import Prediction
from shared.locks import locked
from simulation.prepare import prepare
from simulation.study.judges import judge_of

FOLDER = Path("runs/bench-generators")
MACHINE = MachineConfig(device="cpu", threads=1)
HOSPITAL = "{name: north, patients: 64, scanner: {noise: 0.01, psf_mm: 0.8, bias_field: 0.1}}"
OVERRIDES = (
    "data=mni",
    "data.split={train: 0.5, validation: 0.0, test: 0.5}",
    "degrade=none",
    "enhance=none",
    "objective=plain",
    "sites=1",
    "round.quorum=1",
    f"hospitals.sites=[{HOSPITAL}]",
)
DRAWS = {
    "noise": DrawConfig(sampler="dpm", steps=8, guidance=2.0),
    "velocity": DrawConfig(sampler="rflow", steps=8, guidance=2.0),
}


def simulation() -> SimulationConfig:
    return load("simulation", list(OVERRIDES), SimulationConfig)


def campaign(prediction: Prediction) -> CampaignConfig:
    """The generator of size S, with the phases that it is trained in."""
    agreed = simulation().campaign
    generate = GenerateConfig(
        kind="emit-diff",
        prediction=prediction,
        autoencoder=PhaseConfig(rounds=4, local_steps=60),
        denoiser=PhaseConfig(rounds=6, local_steps=100),
        controlnet=PhaseConfig(rounds=6, local_steps=50),
        draw=DRAWS[prediction],
    )
    return replace(agreed, generate=generate, seed=0)


def slices(folder: Path = FOLDER) -> SiteData:
    """384 slices that train and 384 that test."""
    with locked(folder / "data.lock"):
        (prepared,) = prepare(simulation(), 0, folder / "data", lambda *_: None).values()
    return open_site(prepared.store, "north", campaign("noise"))


def judge(data: SiteData, folder: Path = FOLDER) -> nn.Module:
    """A recogniser of the training slices, as studies judge with."""
    return judge_of(simulation().campaign, data, "bench-generators", folder / "judges", MACHINE)


def trained(prediction: Prediction, train: Slices, folder: Path = FOLDER) -> Generator:
    """The kept generator of this campaign, trained first where there is none."""
    from client.train.all_phases import trained_generator

    agreed = campaign(prediction)
    kept = folder / f"{campaign_digest(agreed)[:24]}.npz"
    generator = build_generator(agreed)
    with locked(folder / f"{prediction}.lock"):
        if not kept.is_file():
            found, _ = trained_generator(agreed, train, MACHINE, name="bench")
            write_atomically(kept, _npz(found))
    with np.load(kept, allow_pickle=False) as arrays:
        load_parts(generator, {name: arrays[name] for name in arrays.files}, generator.all)
    return generator


def _npz(generator: Generator) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    np.savez(buffer, allow_pickle=False, **cast(dict[str, np.ndarray], parts_arrays(generator, generator.all)))
    return buffer.getvalue()
