"""FedAvg is the weighted mean, scaled by the server's rate."""

from __future__ import annotations

import numpy as np

from server.strategies import STRATEGIES
from shared.checkpoint import FederationState
from shared.config import StrategyConfig


def state() -> FederationState:
    return FederationState("demo", "d" * 64, "e" * 64, 4, {"w": np.array([1.0, -2.0], np.float32)})


def test_weights_move_by_the_mean_times_the_rate_and_the_old_state_stays() -> None:
    before = state()
    config = StrategyConfig(kind="fedavg", server_learning_rate=0.5)
    after = STRATEGIES["fedavg"].apply(before, {"w": np.array([2.0, 4.0], np.float32)}, config)
    np.testing.assert_array_equal(after.weights["w"], np.array([2.0, 0.0], np.float32))
    assert after.round == 5
    assert after.weights["w"].dtype == np.float32
    np.testing.assert_array_equal(before.weights["w"], state().weights["w"])
    assert before.round == 4


def test_fedprox_is_fedavg_at_the_coordinator() -> None:
    assert STRATEGIES["fedprox"] == STRATEGIES["fedavg"]
    assert STRATEGIES["fedprox"].init(state().weights, StrategyConfig(kind="fedprox", proximal_mu=0.1)) == {}


def test_a_scalar_weight_stays_an_array() -> None:
    scalar = FederationState("demo", "d" * 64, "e" * 64, 0, {"w": np.ones((), np.float32)})
    after = STRATEGIES["fedavg"].apply(scalar, {"w": np.ones((), np.float32)}, StrategyConfig(kind="fedavg"))
    assert isinstance(after.weights["w"], np.ndarray)
