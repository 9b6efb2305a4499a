"""The state of the federation in, the plan that every site gets out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.checkpoint import FederationState
from shared.types import Action, Arrays, Plan


@dataclass(frozen=True, slots=True, eq=False)
class Frozen:
    """What a generator's phase does not train, and its digest (shared.weights.arrays_digest)."""

    arrays: Arrays = field(default_factory=dict)
    digest: str = ""


def plan_for(
    state: FederationState,
    action: Action,
    round: int,
    frozen: Frozen | None = None,
    *,
    manifest_digest: str = "",
    secagg: Mapping[str, Any] | None = None,
) -> Plan:
    """A handshake carries what the phase does not train, if anything; training and evaluation the state's weights; what
    stands around training under secure aggregation no arrays."""
    frozen = frozen or Frozen()
    none: Arrays = {}
    carried = {"handshake": frozen.arrays, "offer": none, "unmask": none}
    return Plan(
        campaign=state.campaign,
        action=action,
        round=round,
        config_digest=state.config_digest,
        architecture_digest=state.architecture_digest,
        weights=carried.get(action, state.weights),
        frozen_digest=frozen.digest,
        manifest_digest=manifest_digest,
        secagg=secagg or {},
    )
