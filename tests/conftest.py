"""A tiny campaign that every test may vary, and pinned threads."""

from __future__ import annotations

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

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


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def campaign() -> CampaignConfig:
    """Phantom CT, 32 x 32, networks of a few thousand weights, two rounds of four steps."""
    return CampaignConfig(
        name="tiny",
        seed=0,
        data=DataConfig(
            kind="phantom",
            ingest=IngestConfig(modalities=("CT",), intensity=IntensityConfig(rule="window", low=-160, high=240)),
            masks=("organ", "lesion"),
            diagnoses=("none", "lesion"),
            image_size=(32, 32),
        ),
        degrade=DegradeConfig(kind="gaussian", sigma=(0.1, 0.1)),
        enhance=EnhancerConfig(kind="cnn3", channels=4),
        recognise=RecogniserConfig(kind="unet", channels=4, depth=2),
        objective=ObjectiveConfig(kind="gradprom"),
        training=TrainingConfig(batch_size=4, local_steps=4),
        strategy=StrategyConfig(kind="fedavg"),
        rounds=RoundsConfig(rounds=2, quorum=2, join_deadline_s=5, round_deadline_s=30, grace_s=1, retries=1),
    )


@pytest.fixture
def machine() -> MachineConfig:
    return MachineConfig(device="cpu", threads=1)
