"""The campaign's scale."""

from __future__ import annotations

import numpy as np
import pytest

from client.ingest import intensity
from client.ingest.intensity import Ends, ends, scaled
from client.ingest.reasons import Quarantined
from shared.config import IntensityConfig

VALUES = np.linspace(-50, 150, 201, dtype=np.float32)


def test_each_rule_puts_its_own_ends_at_zero_and_one() -> None:
    window = IntensityConfig(rule="window", low=-20, high=80)
    assert ends(VALUES, window, -1, 1) == Ends(-20, 80)
    assert ends(VALUES, IntensityConfig(rule="range"), 0, 255) == Ends(0, 255)
    percentile = IntensityConfig(rule="percentile", low=10, high=90)
    assert ends(VALUES, percentile, 0, 0) == Ends(-30, 130)


def test_scaling_is_linear_and_clips_only_if_told() -> None:
    between = Ends(0, 100)
    np.testing.assert_allclose(scaled(VALUES, between, clip=False), VALUES / 100, atol=1e-6)
    np.testing.assert_allclose(scaled(VALUES, between, clip=True), np.clip(VALUES / 100, 0, 1), atol=1e-6)
    assert scaled(VALUES, between, clip=True).dtype == np.float32


def test_no_contrast_and_no_bit_depth_are_refused() -> None:
    with pytest.raises(Quarantined, match="without contrast"):
        ends(np.ones(10, np.float32), IntensityConfig(rule="percentile"), 0, 1)
    with pytest.raises(Quarantined, match="no bit depth"):
        ends(VALUES, IntensityConfig(rule="range"), -np.inf, np.inf)


def test_percentiles_of_a_huge_volume_come_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intensity, "MOST_VALUES", 100)
    rng = np.random.Generator(np.random.PCG64(0))
    values = rng.random(10_000).astype(np.float32)
    found = ends(values, IntensityConfig(rule="percentile", low=5, high=95), 0, 0)
    assert found.low == pytest.approx(0.05, abs=0.05)
    assert found.high == pytest.approx(0.95, abs=0.05)
