"""The acceptance gates, which a coordinator asks before it signs and a site when it validates: shared/acceptance.py."""

from __future__ import annotations

from shared.acceptance import (
    ALL,
    BINS,
    DESCRIBE,
    PREFIX,
    Gate,
    calibration_of,
    counted_in,
    descriptors_of,
    gates_of,
    is_judged,
    require_gates,
)

__all__ = [
    "ALL",
    "BINS",
    "DESCRIBE",
    "PREFIX",
    "Gate",
    "calibration_of",
    "counted_in",
    "descriptors_of",
    "gates_of",
    "is_judged",
    "require_gates",
]
