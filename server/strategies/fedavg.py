"""FedAvg: take the weighted mean of what the sites learned.

McMahan et al. Communication-Efficient Learning of Deep Networks from Decentralized Data. 2017.
https://arxiv.org/abs/1602.05629, algorithm 1; with a server learning rate as in Reddi et al. 2021 (1.0 is the paper's).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shared.checkpoint import FederationState
from shared.config import StrategyConfig
from shared.types import Arrays


def init(weights: Arrays, config: StrategyConfig) -> dict[str, Arrays]:
    """Nothing to remember."""
    return {}


def apply(state: FederationState, mean: Arrays, config: StrategyConfig) -> FederationState:
    """w <- w + eta * mean."""
    rate = np.float32(config.server_learning_rate)
    weights = {name: np.asarray(values + rate * mean[name]) for name, values in state.weights.items()}
    return replace(state, round=state.round + 1, weights=weights)
