from __future__ import annotations

import pytest
import torch

from client.train import gradprom
from client.train.terms import Share
from shared.recognise.losses import labelled
from simulation.bench import gradprom_step_naive as bench
from simulation.bench import steps


def test_both_forms_find_the_same_gradients() -> None:
    campaign, batch = steps.campaign(), steps.batch()
    networks, _ = steps.side(campaign, 1, 1)
    share = Share(1.0, labelled(batch))
    ours, naive = (form(networks, batch, share, campaign) for form in (gradprom.gradients, bench.naive_gradients))
    for name in ("enhance_D", "task_D", "recogniser_D"):
        torch.testing.assert_close(getattr(ours, name), getattr(naive, name), rtol=1e-3, atol=1e-5)


def test_a_case_carries_the_counted_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = bench.Times(ours=0.9, rival=1.0, enhancer_forward=0.1, recogniser_forward=0.1)
    monkeypatch.setattr(bench, "measured", lambda *blocks, repetitions: fixed)
    cases = {case["case"]: case for case in bench.run()}
    assert [case["limit"] for case in cases.values()] == pytest.approx([8 / 9, 11 / 12, 13 / 15])
    assert [case["holds"] for case in cases.values()] == [True, True, True]
    assert cases["2:1"]["target"] == pytest.approx(1.05 * 13 / 15)


def test_every_form_is_timed() -> None:
    times = bench.measured(1, 1, repetitions=1)
    assert min(times.ours, times.rival, times.enhancer_forward, times.recogniser_forward) > 0
