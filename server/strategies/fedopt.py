"""FedAdam and FedYogi: the mean update as a pseudo-gradient for an adaptive optimiser at the coordinator.

Reddi et al. Adaptive Federated Optimization. ICLR 2021. https://arxiv.org/abs/2003.00295, algorithm 2.

    Delta_t  mean            the weighted mean of the sites' differences (algorithm 2 has equal weights)
    m_t      first moment    m <- beta1 m + (1 - beta1) Delta
    v_t      second moment   Adam: v <- beta2 v + (1 - beta2) Delta^2
                             Yogi: v <- v - (1 - beta2) Delta^2 sign(v - Delta^2)
    tau      adaptivity      v starts at tau^2 (the least that the paper allows)
    eta      server_learning_rate
    x <- x + eta m / (sqrt(v) + tau)

No bias correction: the paper has none. (Flower's FedAdam adds one; its FedYogi does not.)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from shared.checkpoint import FederationState
from shared.config import StrategyConfig
from shared.types import Arrays

Float32 = npt.NDArray[np.float32]


def init(weights: Arrays, config: StrategyConfig) -> dict[str, Arrays]:
    """m = 0, v = tau^2."""
    return {
        "m": {name: np.zeros_like(values) for name, values in weights.items()},
        "v": {name: np.full_like(values, config.tau**2) for name, values in weights.items()},
    }


def apply_adam(state: FederationState, mean: Arrays, config: StrategyConfig) -> FederationState:
    def moved(v: Float32, delta: Float32) -> Float32:
        return _float32(config.beta2 * v + (1 - config.beta2) * np.square(delta))

    v = {name: moved(values, mean[name]) for name, values in state.optimiser["v"].items()}
    return _step(state, mean, v, config)


def apply_yogi(state: FederationState, mean: Arrays, config: StrategyConfig) -> FederationState:
    def moved(v: Float32, delta: Float32) -> Float32:
        squared = np.square(delta)
        return _float32(v - (1 - config.beta2) * squared * np.sign(v - squared))

    v = {name: moved(values, mean[name]) for name, values in state.optimiser["v"].items()}
    return _step(state, mean, v, config)


def _step(state: FederationState, mean: Arrays, v: Arrays, config: StrategyConfig) -> FederationState:
    beta1, eta, tau = config.beta1, config.server_learning_rate, config.tau
    m = {name: _float32(beta1 * old + (1 - beta1) * mean[name]) for name, old in state.optimiser["m"].items()}
    weights = {name: _float32(x + eta * m[name] / (np.sqrt(v[name]) + tau)) for name, x in state.weights.items()}
    return replace(state, round=state.round + 1, weights=weights, optimiser={"m": m, "v": v})


def _float32(values: npt.ArrayLike) -> Float32:
    """Python numbers do not widen float32 arrays, so this copies nothing; it keeps scalars arrays."""
    return np.asarray(values, dtype=np.float32)
