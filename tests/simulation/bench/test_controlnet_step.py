"""Both sides of the bench do the same work."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.config import CampaignConfig
from simulation.bench import controlnet_step


def test_a_step_of_ours_moves_the_controlnet_as_monais_loop_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the limit on the gradient's norm, which the plain loop has not: losses of three steps agree."""
    monkeypatch.setattr(controlnet_step, "SIDE", 32)
    monkeypatch.setattr(controlnet_step, "BATCH", 3)
    agreed = controlnet_step.campaign("S")

    def unlimited(size: str) -> CampaignConfig:
        assert size == "S"
        return replace(agreed, training=replace(agreed.training, clip_norm=1e6, weight_decay=0.0))

    monkeypatch.setattr(controlnet_step, "campaign", unlimited)
    ours, rival = controlnet_step.ours("S"), controlnet_step.rival("S")
    losses = [(ours(), rival()) for _ in range(3)]
    for one, other in losses:
        assert one == pytest.approx(other, rel=1e-4)
    assert losses[2][0] < losses[0][0]


def test_a_case_has_what_every_bench_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controlnet_step.steps, "medians", lambda _watched, **_: {"ours": 1.02, "rival": 1.0})
    monkeypatch.setattr(controlnet_step, "SIZES", ("S",))
    (case,) = controlnet_step.run()
    assert {"bench", "case", "ours", "rival", "ratio", "target", "holds"} <= case.keys()
    assert case["holds"]
