from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from client.train import gradprom
from client.train.terms import Share
from shared.recognise.losses import labelled
from simulation.bench import gradprom_step_joint as bench
from simulation.bench import steps


def weights(network: torch.nn.Module) -> torch.Tensor:
    return gradprom.flat(list(network.parameters())).clone()


def test_batched_products_are_the_exact_gradients() -> None:
    campaign, batch = steps.campaign(), steps.batch()
    share = Share(1.0, labelled(batch))
    networks, _ = steps.side(campaign, 1, 1, channels_last=False)
    exact = gradprom.gradients(networks, batch, share, campaign)
    found = bench.batched_gradients(networks, batch, share, campaign)
    for ours, theirs in ((found.enhance_D, exact.enhance_D), (found.task_D[0], exact.task_D[0])):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.recogniser_D, exact.recogniser_D, rtol=1e-3, atol=1e-5)


def test_the_rival_is_joint_training() -> None:
    """The same weights as our own step with objective joint and an absolute lambda, Adam and clipping included."""
    campaign = steps.campaign()
    objective = replace(campaign.objective, kind="joint", relative=False, task_weight=0.3)
    campaign, batch = replace(campaign, objective=objective), steps.batch()
    share = Share(1.0, labelled(batch))
    rival, ours = (steps.side(campaign, 1, 1) for _ in range(2))
    for _ in range(2):
        bench.joint_step(*rival, batch, share, campaign)
        gradprom.update(*ours, gradprom.gradients(ours[0], batch, share, campaign), campaign)
    torch.testing.assert_close(weights(rival[0].enhancer), weights(ours[0].enhancer), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("seed", range(4))
def test_one_product_with_the_exact_weight_is_the_exact_direction(seed: int) -> None:
    campaign, batch = steps.campaign(), steps.batch(seed)
    share = Share(1.0, labelled(batch))
    networks, _ = steps.side(campaign, 1, 1)
    exact = gradprom.gradients(networks, batch, share, campaign)
    wanted = gradprom.direction(exact.enhance_D, exact.task_D, campaign.objective)
    weight = bench.weight(exact.enhance_D, exact.task_D[0], campaign.objective)
    assert bool(weight > 0) == bool(wanted.gate_open)
    found = bench.fused(bench.cut(networks, batch, share, campaign), networks, weight)
    assert found.task_D == ()
    torch.testing.assert_close(found.enhance_D, wanted.d_D, rtol=1e-3, atol=1e-5)


def test_the_last_layers_gate_is_asked_of_the_last_layers_alone() -> None:
    campaign, batch = steps.campaign(), steps.batch()
    share = Share(1.0, labelled(batch))
    networks, _ = steps.side(campaign, 2, 1)
    exact = gradprom.gradients(networks, batch, share, campaign)
    size = sum(parameter.numel() for parameter in gradprom.trained(networks.enhancer)[-bench.LAST :])
    expected = bench.weight(exact.enhance_D[-size:], exact.task_D[0][-size:], campaign.objective)
    found = bench.part_weight(bench.cut(networks, batch, share, campaign), networks, campaign.objective)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_a_case_carries_the_limit_of_the_costs_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = dict.fromkeys(bench.forms(), 1.5) | {
        "rival": 1.0,
        "enhancer_forward": 0.2,
        "recogniser_forward": 0.1,
    }
    monkeypatch.setattr(bench, "measured", lambda names, *blocks, repetitions: fixed)
    monkeypatch.setattr(bench, "STEPS", 2)
    monkeypatch.setattr(steps, "BLOCKS", {"1:1": (1, 1), "2:1": (1, 1)})
    cases = bench.run()
    assert [case["case"] for case in cases[:2]] == ["1:1", "2:1"]
    for case in cases:
        assert case["bench"] == "gradprom-step-joint"
        assert case["limit"] == pytest.approx(13 / 9)
        assert case["target"] == pytest.approx(1.1 * 13 / 9)
        assert case["ratio"] == pytest.approx(1.5)
        assert case["holds"] is True
    approximate = [case for case in cases if "approximate" in case["case"]]
    assert len(approximate) == 2
    assert all(0 <= case["disagrees"] <= 1 and case["steps"] == 2 for case in approximate)
    assert cases[2]["case"] == "1:1 batched products"


def test_a_gate_that_is_kept_disagrees_only_between_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "KEPT", 1)
    assert bench.disagreement(1, 1, trained_steps=4)[1]["gate kept"] == 0
    # All of the enhancer's tensors: nothing is approximate any more.
    monkeypatch.setattr(bench, "LAST", 100)
    assert bench.disagreement(1, 1, trained_steps=4)[1]["last layers"] == 0


def test_every_form_is_timed() -> None:
    names = list(bench.forms())
    times = bench.measured(names, 1, 1, repetitions=1)
    assert set(times) == {*names, "enhancer_forward", "recogniser_forward"}
    assert min(times.values()) > 0
