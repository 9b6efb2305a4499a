"""The mean update of a round in, the next state of the federation out: one pure `apply` per paper, chosen here.

`mean` is the weighted mean of the sites' weight differences: the pseudo-gradient of FedOpt with its sign turned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from server.strategies import fedavg, fedopt
from shared.checkpoint import FederationState
from shared.config import StrategyConfig
from shared.types import Arrays


@dataclass(frozen=True, slots=True)
class Strategy:
    init: Callable[[Arrays, StrategyConfig], dict[str, Arrays]]
    """The optimiser state before round 1."""
    apply: Callable[[FederationState, Arrays, StrategyConfig], FederationState]
    """(state, mean, config) -> state one round on; neither input is changed."""


# FedProx differs at the sites only (its proximal term); what the coordinator does is FedAvg.
STRATEGIES: dict[str, Strategy] = {
    "fedavg": Strategy(fedavg.init, fedavg.apply),
    "fedprox": Strategy(fedavg.init, fedavg.apply),
    "fedadam": Strategy(fedopt.init, fedopt.apply_adam),
    "fedyogi": Strategy(fedopt.init, fedopt.apply_yogi),
}
