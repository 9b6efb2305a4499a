"""The state of the federation in, the plan that every site gets out."""

from __future__ import annotations

from shared.checkpoint import FederationState
from shared.types import Action, Plan


def plan_for(state: FederationState, action: Action, round: int) -> Plan:
    """A handshake carries no weights; training and evaluation carry those of the state."""
    return Plan(
        campaign=state.campaign,
        action=action,
        round=round,
        config_digest=state.config_digest,
        architecture_digest=state.architecture_digest,
        weights={} if action == "handshake" else state.weights,
    )
