"""Run folders as the programs leave them: one simulated with pictures, one deployed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SITES = ("north", "coast", "valley")
PSNR_DB = {"degraded": 20.0, "local": 25.1, "pooled": 26.4, "federated": 26.3}
DICE = {"clean": 0.86, "degraded": 0.68, "local": 0.79, "pooled": 0.84, "federated": 0.835}


def row(setting: str, site: str, test_site: str, n: int, **metrics: float) -> dict[str, Any]:
    labels = {"method": "gradprom", "seed": 0, "data": "mni", "degradation": "gaussian", "split": "test", "lambda": 0.1}
    return {**labels, "setting": setting, "site": site, "test_site": test_site, "n": n, **metrics}


def moments(values: np.ndarray) -> dict[str, Any]:
    quantiles = [float(q) for q in np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95))]
    return {
        "count": len(values),
        "total": float(values.sum()),
        "total_sq": float((values**2).sum()),
        "quantiles": quantiles,
    }


def round_record(number: int, rng: np.random.Generator, *, trained: bool = True) -> dict[str, Any]:
    training, evaluation = {}, {}
    for index, site in enumerate(SITES):
        gain = 6.5 * (1 - np.exp(-(number - 1) / 2.5)) - 0.3 * index
        training[site] = {
            "loss_enhance": 0.01 * np.exp(-number / 3) + 0.002 * (1 + index / 5),
            "loss_recognise": 0.9 * np.exp(-number / 4) + 0.1 * (1 + index / 3),
            "gate_open_rate": 0.5 + 0.04 * index + 0.02 * rng.standard_normal(),
            "mean_cosine": 0.02 * rng.standard_normal(),
            "samples": 320.0,
            "seconds": 3.0,
        }
        n = 40 + 10 * index
        evaluation[site] = {
            "degraded.psnr_db": moments(20 + 0.3 * rng.standard_normal(n)),
            "enhanced.psnr_db": moments(20 + gain + 0.8 * rng.standard_normal(n)),
            "degraded.dice": moments(np.clip(0.68 + 0.1 * rng.standard_normal(n), 0, 1)),
            "enhanced.dice": moments(np.clip(0.3 + 0.085 * gain + 0.08 * rng.standard_normal(n), 0, 1)),
            "clean.dice": moments(np.clip(0.86 + 0.05 * rng.standard_normal(n), 0, 1)),
            "enhanced.auc": {"count": 10, "total": 9.1, "total_sq": 8.281, "quantiles": []},
        }
    return {
        "round": number,
        "seconds": 4.2,
        "participants": list(SITES),
        "dropped": {},
        "bytes_up": 3 * 1_400_000,
        "bytes_down": 3 * 1_400_000,
        "training": training if trained else {},
        "evaluation": evaluation,
    }


def rounds(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(7)
    return [round_record(number, rng, trained=number <= count) for number in range(1, count + 2)]


def all_rows() -> list[dict[str, Any]]:
    rows = []
    for setting in ("clean", "degraded", "pooled", "federated"):
        for index, test_site in enumerate((*SITES, "all")):
            off = 0.0 if test_site == "all" else 0.25 * (index - 1)
            figures = {"dice": DICE[setting] - off / 20, "accuracy": DICE[setting] + 0.02 - off / 15}
            if setting in PSNR_DB:
                figures |= {"psnr_db": PSNR_DB[setting] - off, "ssim": PSNR_DB[setting] / 30, "rmse": 0.05}
            if test_site == "all" and setting in ("pooled", "federated"):
                figures |= {"samples_seen": 7680, "seconds": 61.0}
            rows.append(row(setting, "all", test_site, 150 if test_site == "all" else 50, **figures))
    for i, site in enumerate(SITES):
        for j, test_site in enumerate(SITES):
            far = 0.9 * (i != j)
            rows.append(row("local", site, test_site, 50, psnr_db=25.6 - far, dice=0.81 - far / 20, accuracy=0.8))
        rows.append(row("local", site, "all", 150, psnr_db=25.0, dice=0.79, accuracy=0.8, samples_seen=2560))
    for test_site in SITES:
        rows.append(row("local", "all", test_site, 50, psnr_db=25.0, dice=0.78, accuracy=0.8))
    rows.append(row("local", "all", "all", 150, psnr_db=25.0, ssim=0.83, dice=0.79, accuracy=0.8, samples_seen=2560))
    return rows


def pictures() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:64, :64] / 63.0 - 0.5
    arrays: dict[str, np.ndarray] = {"histogram/edges": np.linspace(0, 1, 41)}
    for index, site in enumerate(SITES):
        head = (x / 0.40) ** 2 + (y / 0.46) ** 2 < 1
        organ = ((x + 0.08) / 0.17) ** 2 + ((y - 0.05) / 0.22) ** 2 < 1
        lesion = (x - 0.16) ** 2 + (y + 0.1) ** 2 < (0.06 + 0.01 * index) ** 2
        clean = 0.15 * head + 0.35 * head * (1 + 0.3 * np.sin(14 * x)) * 0.5 + 0.25 * organ + 0.4 * lesion
        truth = np.where(lesion, 2, np.where(organ, 1, 0)).astype(np.uint8)
        for which in ("median", "worst"):
            noise = rng.standard_normal((64, 64))
            prefix = f"example/{site}/{which}/"
            arrays |= {
                prefix + "clean": clean.astype(np.float32),
                prefix + "degraded": (clean + 0.1 * noise).astype(np.float32),
                prefix + "enhanced": (clean + 0.03 * noise).astype(np.float32),
                prefix + "truth": truth,
                prefix + "degraded_mask": np.roll(truth, 3, axis=1),
                prefix + "enhanced_mask": np.roll(truth, 1, axis=1),
                prefix + "psnr_db_degraded": np.float32(20.0),
                prefix + "psnr_db_enhanced": np.float32(26.4),
                prefix + "dice_degraded": np.float32(0.69),
                prefix + "dice_enhanced": np.float32(0.84),
            }
        arrays[f"histogram/{site}"] = np.histogram(clean * (1 - 0.1 * index), bins=40, range=(0, 1), density=True)[0]
        for setting in ("degraded", "local", "pooled", "federated"):
            model = site if setting == "local" else "all"
            for metric, mean, spread in (("psnr_db", PSNR_DB[setting], 0.8), ("dice", DICE[setting], 0.05)):
                values = mean - 0.2 * index * (metric == "psnr_db") + spread * rng.standard_normal(50)
                arrays[f"scores/{setting}/{model}/{site}/{metric}"] = values.astype(np.float32)
    return arrays


def simulated_record() -> dict[str, Any]:
    claims = [
        {"claim": "federated PSNR is above degraded", "value": 6.3, "target": 4.0, "holds": True, "unit": "dB"},
        {
            "claim": "federated PSNR is at least the mean of local",
            "value": 1.3,
            "target": 0.0,
            "holds": True,
            "unit": "dB",
        },
        {
            "claim": "federated Dice is within reach of pooled",
            "value": -0.025,
            "target": -0.02,
            "holds": False,
            "reason": "weakest at valley: 0.81 against 0.84 pooled",
        },
    ]
    return {
        "experiment": "mni",
        "seeds": [0],
        "config_digest": "d0" * 32,
        "versions": {"wardround": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
        "wall_s": 187.2,
        "rows": all_rows(),
        "claims": claims,
        "runs": [{"method": "gradprom", "seed": 0, "rounds": rounds(8)}],
        "config": {"campaign": {"name": "mni", "data": {"kind": "mni", "masks": ["organ", "lesion"]}}},
        "sites": {
            site: {
                "patients": 12 - i,
                "slices": 144,
                "train patients": 7,
                "test patients": 3,
                "labelled": 0.5,
                "scanner": "1.5 T",
            }
            for i, site in enumerate(SITES)
        },
        "timings": {"hospitals": 8.1, "ingest": 12.0, "federation": 61.0, "comparators": 95.4},
    }


def write_simulated(run_dir: Path, changes: Mapping[str, Any] | None = None) -> Path:
    (run_dir / "pictures").mkdir(parents=True)
    (run_dir / "record.json").write_text(json.dumps({**simulated_record(), **(changes or {})}))
    np.savez_compressed(run_dir / "pictures" / "gradprom-seed0.npz", **pictures())
    return run_dir


def write_deployed(run_dir: Path) -> Path:
    run_dir.mkdir(parents=True)
    campaign = {
        "name": "liver trial",
        "seed": 5,
        "data": {"kind": "store", "root": "somewhere", "test": None, "masks": ["liver"]},
        "degrade": {"kind": "low_dose"},
        "objective": {"kind": "gradprom", "task_weight": 0.1},
    }
    (run_dir / "campaign.json").write_text(json.dumps(campaign))
    (run_dir / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in rounds(4)))
    return run_dir


@pytest.fixture
def simulated_run(tmp_path: Path) -> Path:
    return write_simulated(tmp_path / "run")


@pytest.fixture
def deployed_run(tmp_path: Path) -> Path:
    return write_deployed(tmp_path / "run")
