"""Three small stores of discs with a bright spot, written as ingest writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client.ingest import store as storing
from client.ingest.store import Index, SeriesRecord
from shared.config import CampaignConfig, DataConfig

PATIENTS, SLICES, SIDE = 6, 2, 32


def write_store(folder: Path, data: DataConfig, seed: int) -> Path:
    """Every second patient has a spot in the disc: mask code 2, diagnosis 1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1) * 2 - 1
    series = {}
    with storing.locked(folder):
        for number in range(PATIENTS):
            key = f"{seed:02x}{number:030x}"
            diseased = number % 2
            cx, cy, sx, sy = (rng.random(4) - 0.5) * 0.5
            disc = (x - cx) ** 2 + (y - cy) ** 2 < 0.4
            spot = ((x - cx - sx) ** 2 + (y - cy - sy) ** 2 < 0.05) & disc & bool(diseased)
            image = np.stack([0.4 * disc + 0.4 * spot + 0.02 * depth for depth in range(SLICES)])[:, None]
            mask = np.stack([np.where(spot, 2, disc)] * SLICES).astype(np.uint8)
            shape = (SLICES, 1, SIDE, SIDE)
            record = SeriesRecord(
                key, f"p{seed}-{number}", "s", "CT", shape, (5.0, 1.0, 1.0), bool(data.masks), diseased, generation=1
            )
            storing.write_array(storing.array_path(folder, record, "image"), image.astype(np.float32))
            if record.has_mask:
                storing.write_array(storing.array_path(folder, record, "mask"), mask)
            series[key] = record
        rule = {"campaign": storing.campaign_rule(data), "labels": {}}
        storing.write_index(folder, Index(rule, "check", 1, series))
    return folder


@pytest.fixture
def stores(tmp_path: Path, campaign: CampaignConfig) -> dict[str, Path]:
    return {
        site: write_store(tmp_path / "sites" / site, campaign.data, seed)
        for seed, site in enumerate(("coast", "north"), start=1)
    }


@pytest.fixture
def make_store() -> Callable[[Path, DataConfig, int], Path]:
    return write_store
