"""FedAdam and FedYogi against algorithm 2 of Reddi et al. by hand, and against Flower's own."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedYogi

from server.strategies import STRATEGIES
from shared.checkpoint import FederationState
from shared.config import StrategyConfig
from shared.types import Arrays

ADAM = StrategyConfig(kind="fedadam", server_learning_rate=0.1, beta1=0.9, beta2=0.99, tau=1e-3)
YOGI = StrategyConfig(kind="fedyogi", server_learning_rate=0.1, beta1=0.9, beta2=0.99, tau=1e-3)


def begin(config: StrategyConfig, weights: Arrays) -> FederationState:
    return FederationState("demo", "d" * 64, "e" * 64, 0, weights, STRATEGIES[config.kind].init(weights, config))


def test_one_step_of_adam_by_hand() -> None:
    """m = 0.1 * 2; v = 0.99e-6 + 0.01 * 4; x = 1 + 0.1 m / (sqrt(v) + 0.001)."""
    after = STRATEGIES["fedadam"].apply(begin(ADAM, {"w": np.ones(1, np.float32)}), {"w": np.float32([2.0])}, ADAM)
    v = 0.99e-6 + 0.04
    np.testing.assert_allclose(after.optimiser["m"]["w"], 0.2, rtol=1e-6)
    np.testing.assert_allclose(after.optimiser["v"]["w"], v, rtol=1e-6)
    np.testing.assert_allclose(after.weights["w"], 1 + 0.02 / (v**0.5 + 1e-3), rtol=1e-6)


def test_one_step_of_yogi_by_hand() -> None:
    """v = 1e-6 - 0.01 * 4 * sign(1e-6 - 4) = 1e-6 + 0.04; and back down by 0.01 * Delta^2 where v is above it."""
    first = STRATEGIES["fedyogi"].apply(begin(YOGI, {"w": np.ones(1, np.float32)}), {"w": np.float32([2.0])}, YOGI)
    np.testing.assert_allclose(first.optimiser["v"]["w"], 1e-6 + 0.04, rtol=1e-6)
    second = STRATEGIES["fedyogi"].apply(first, {"w": np.float32([0.1])}, YOGI)
    np.testing.assert_allclose(second.optimiser["v"]["w"], 1e-6 + 0.04 - 0.01 * 0.01, rtol=1e-5)
    np.testing.assert_allclose(second.optimiser["m"]["w"], 0.9 * 0.2 + 0.1 * 0.1, rtol=1e-6)


@pytest.mark.parametrize("config", [ADAM, YOGI], ids=["fedadam", "fedyogi"])
def test_rounds_equal_flowers_own(config: StrategyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower starts v at 0 and corrects Adam's bias; ours starts at tau^2 and does not: set alike, steps are equal."""
    rng = np.random.default_rng(0)
    weights = {"a": rng.standard_normal((3, 4)).astype(np.float32), "b": rng.standard_normal(5).astype(np.float32)}
    means = [{name: rng.standard_normal(x.shape).astype(np.float32) for name, x in weights.items()} for _ in range(4)]
    rates = {"eta": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
    theirs = FedAdam(**rates) if config.kind == "fedadam" else FedYogi(**rates)
    theirs.v_t = {name: np.full_like(x, 1e-6) for name, x in weights.items()}
    ours, current = begin(config, weights), dict(weights)
    for number, mean in enumerate(means, start=1):
        theirs.current_arrays = current
        averaged = ArrayRecord({name: Array(current[name] + mean[name]) for name in current})
        monkeypatch.setattr(FedAvg, "aggregate_train", lambda *_, averaged=averaged: (averaged, MetricRecord()))
        if config.kind == "fedadam":
            correction = np.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1))
            theirs.eta = 0.1 / correction
        result, _ = theirs.aggregate_train(number, [])
        current = {name: array.numpy().astype(np.float32) for name, array in result.items()}
        ours = STRATEGIES[config.kind].apply(ours, mean, config)
        for name, values in current.items():
            np.testing.assert_allclose(ours.weights[name], values, rtol=2e-5, atol=1e-6)
            assert ours.weights[name].dtype == np.float32


@pytest.mark.parametrize("config", [ADAM, YOGI], ids=["fedadam", "fedyogi"])
def test_the_state_before_is_not_changed(config: StrategyConfig) -> None:
    before = begin(config, {"w": np.ones(3, np.float32)})
    STRATEGIES[config.kind].apply(before, {"w": np.full(3, 2, np.float32)}, config)
    np.testing.assert_array_equal(before.weights["w"], np.ones(3))
    np.testing.assert_array_equal(before.optimiser["m"]["w"], np.zeros(3))
    np.testing.assert_allclose(before.optimiser["v"]["w"], 1e-6)
