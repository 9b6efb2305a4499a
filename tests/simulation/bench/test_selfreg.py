"""The bench of SelfReg: what it compares is what it says, and a case carries its target."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from client.train.terms import supervised
from shared.batch import Batch
from shared.config import RecogniserConfig, SelfRegConfig
from shared.weights import to_arrays
from simulation.bench import recognisers, steps
from simulation.bench import selfreg as bench


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognisers, "SIDE", 16)
    monkeypatch.setattr(recognisers, "STREAM", 2)
    monkeypatch.setattr(steps, "REPETITIONS", 1)
    monkeypatch.setattr(steps, "WARM_UP", 0)


def test_the_random_form_draws_and_its_mean_gradient_is_that_of_ours() -> None:
    ours, rival = (cast(tuple[Tensor, ...], form()) for form in bench.consistency())
    _, again = bench.consistency()
    draws = [cast(tuple[Tensor, ...], again()) for _ in range(200)]
    assert [gradient.shape[1] for gradient in ours] == [channels for channels, _ in bench.MAPS]
    assert not torch.equal(rival[0], ours[0])
    mean = torch.stack([draw[3] for draw in draws]).mean(0)
    # Every draw takes 32 of 256 channels: the error of a mean over 200 is far below the gradient itself.
    assert float((mean - ours[3]).norm() / ours[3].norm()) < 0.4


def test_the_step_is_that_of_training_and_moves_the_weights() -> None:
    agreed = recognisers.campaign(RecogniserConfig(kind="unet", channels=4), selfreg=SelfRegConfig())
    side = recognisers.built(agreed)
    before = to_arrays(side.networks)
    clean, mask = recognisers.images(2)
    batch = Batch(clean, clean, mask, torch.tensor([True, True]), torch.tensor([0, 1]))
    recognisers.step(side, batch, supervised(agreed))
    after = to_arrays(side.networks)
    assert any((after[name] != before[name]).any() for name in before)
    again = recognisers.built(agreed)
    recognisers.step(again, batch, supervised(agreed))
    assert all((to_arrays(again.networks)[name] == after[name]).all() for name in after)


def test_a_case_carries_its_target() -> None:
    cases = bench.run()
    assert [case["case"] for case in cases] == ["random", "step"]
    for case in cases:
        assert case["bench"] == "selfreg"
        assert case["target"] == bench.TARGETS[case["case"]]
        assert case["ratio"] == pytest.approx(case["ours"] / case["rival"])
        assert case["holds"] is (case["ratio"] <= case["target"])
