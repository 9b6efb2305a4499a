from __future__ import annotations

import threading

import pytest
import torch

from client.train import local
from shared.config import CampaignConfig, MachineConfig
from shared.networks import build_networks
from shared.weights import to_arrays
from simulation.bench import loading as bench


def test_the_bare_steps_are_those_of_a_round(
    campaign: CampaignConfig, machine: MachineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the very batch that a round of one step draws, both end at the same weights, bit for bit."""
    slices = bench.random_slices(campaign, 6)
    round = campaign.rounds.rounds
    trained, bare = build_networks(campaign), build_networks(campaign)
    local.train_round(trained, slices, campaign, machine, site="bench", round=round, steps=1)
    bench._step(bare, bench._batches(slices, campaign, 1)[0], campaign, machine, steps=1)
    ends = to_arrays(trained), to_arrays(bare)
    assert all((ends[0][name] == ends[1][name]).all() for name in ends[0])


def test_a_case_compares_steps_with_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "STEPS", 10)
    monkeypatch.setattr(bench, "SLICES", 8)
    asked: list[int] = []

    def fixed(wall: float) -> object:
        def measure(slices: object, campaign: object, machine: object, steps: int) -> bench.Seconds:
            asked.append(steps)
            return bench.Seconds(wall, 2 * wall - 1)

        return measure

    monkeypatch.setattr(bench, "round_seconds", fixed(1.2))
    monkeypatch.setattr(bench, "bare_seconds", fixed(1.0))
    cases = bench.run()
    assert [case["case"] for case in cases] == ["gaussian, 10 steps", "composite, 10 steps"]
    assert all(case["ratio"] == pytest.approx(1.2) and not case["holds"] for case in cases)
    assert all(case["processor_ratio"] == pytest.approx(1.4) for case in cases)
    assert [case["ours"] for case in cases] == pytest.approx([0.12, 0.12])
    assert set(asked) == {10}
    assert min(case["making_s"] for case in cases) > 0


def test_both_sides_are_timed_and_leave_no_thread(campaign: CampaignConfig, machine: MachineConfig) -> None:
    slices, threads = bench.random_slices(campaign, 6), threading.active_count()
    assert bench.round_seconds(slices, campaign, machine, 2).wall > 0
    assert bench.bare_seconds(slices, campaign, machine, 2).wall > 0
    assert threading.active_count() == threads


def test_slices_show_every_class(campaign: CampaignConfig) -> None:
    slices = bench.random_slices(campaign, 8)
    assert slices.clean_NCHW.shape == (8, 1, 32, 32)
    assert set(slices.mask_NHW.unique().tolist()) == {0, 1, 2}
    assert torch.equal(bench.random_slices(campaign, 8).clean_NCHW, slices.clean_NCHW)
