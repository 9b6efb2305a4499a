"""The bench of MultiMix's step: the rival learns the same, by the scheme that was released."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from client.train import gradprom, recognise
from client.train.multimix import MeanMaps, multimix
from client.train.terms import Share
from shared.config import RecogniserConfig
from shared.recognise.losses import labelled
from simulation.bench import multimix_step as bench
from simulation.bench import recognisers, steps


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognisers, "SIDE", 32)
    monkeypatch.setattr(bench, "STREAM", 3)
    monkeypatch.setattr(bench, "REPETITIONS", 1)
    monkeypatch.setattr(steps, "WARM_UP", 0)
    kinds: tuple[Any, ...] = ("multimix", "unet")
    networks = {kind: RecogniserConfig(kind=kind, channels=4, depth=3) for kind in kinds}  # no dropout
    monkeypatch.setattr(bench, "NETWORKS", networks)


@pytest.mark.parametrize("threshold", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["multimix", "unet"])
def test_both_schemes_have_the_same_loss_and_the_same_gradient(
    kind: str, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "LEARN", replace(bench.LEARN, threshold=threshold))
    agreed, part = bench.campaign(kind), bench.batch()
    side = recognisers.built(agreed)
    share = Share(1.0, labelled(part))
    ours = recognise.alone_gradients(side.networks, part, share, agreed, recognition=multimix(agreed, MeanMaps()))
    loss = bench.released_loss(side.networks.recogniser, part, agreed.learn)
    assert float(loss.detach()) == pytest.approx(float(ours.recognise_loss), rel=1e-5)
    gradient_D = gradprom.flat(gradprom.learned(loss, gradprom.trained(side.networks.recogniser)))
    assert ours.recogniser_D is not None
    torch.testing.assert_close(ours.recogniser_D, gradient_D, rtol=1e-3, atol=1e-5)


def test_the_discarded_backward_leaves_no_gradient_and_the_network_in_training() -> None:
    side = recognisers.built(bench.campaign("unet"))
    saliency = bench.discarded_saliency(side.networks.recogniser, bench.batch().clean_BCHW)
    assert saliency.shape == (12, 1, 32, 32)
    assert float(saliency.max()) > 0
    assert all(parameter.grad is None for parameter in side.networks.recogniser.parameters())
    assert side.networks.recogniser.training


def test_a_case_carries_its_target_for_each_network() -> None:
    cases = bench.run()
    assert [case["case"] for case in cases] == ["multimix", "unet"]
    for case in cases:
        assert case["bench"] == "multimix-step"
        assert case["target"] == 0.55
        assert case["ratio"] == pytest.approx(case["ours"] / case["rival"])
        assert case["holds"] is (case["ratio"] <= 0.55)
