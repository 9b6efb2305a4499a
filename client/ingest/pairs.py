"""Stacks of a site in; its own real pairs (clean, degraded) out.

Two series make a pair if they are of one study, one frame of reference and one grid, and their protocols tell which
is better: by words (full and low dose, standard and fast), or by an exposure of at most half at the same tube voltage
and kernel. Words that the exposure contradicts make no pair. Where one full series has several low ones, the first by
key is its partner; the others are degraded images without a clean partner of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from client.ingest.geometry import SAME_POSITION_MM
from client.ingest.series import Stack

SAME_DIRECTION = 1e-3
MUCH_LESS = 0.5


@dataclass(frozen=True, slots=True)
class Pairs:
    """Keys only."""

    partner: Mapping[str, str] = field(default_factory=dict)
    """Clean -> its degraded partner."""
    degraded: frozenset[str] = frozenset()

    def clean_of(self, key: str) -> str | None:
        """The clean series that this one is the partner of."""
        return next((clean for clean, low in self.partner.items() if low == key), None)


def pairs_of(stacks: Iterable[Stack]) -> Pairs:
    """All pairs among the stacks of one ingest."""
    partner: dict[str, str] = {}
    degraded: set[str] = set()
    for _, group in groupby(sorted(stacks, key=lambda stack: (stack.study, stack.key)), key=lambda stack: stack.study):
        members = tuple(group)
        for clean in members:
            lows = [other.key for other in members if is_pair(clean, other)]
            if lows:
                partner[clean.key] = lows[0]
                degraded.update(lows)
    # A middle dose between two others is nobody's clean partner.
    clean_only = {clean: low for clean, low in partner.items() if clean not in degraded}
    return Pairs(clean_only, frozenset(degraded))


def is_pair(clean: Stack, low: Stack) -> bool:
    """Whether `low` is the degraded partner of `clean`."""
    return clean.key != low.key and _is_better(clean, low) and _same_grid(clean, low)


def _is_better(clean: Stack, low: Stack) -> bool:
    a, b = clean.first, low.first
    if a.modality != b.modality:
        return False
    known = a.exposure > 0 and b.exposure > 0
    if a.protocol == "full" and b.protocol == "low":
        return not known or b.exposure <= a.exposure
    neither = a.protocol is None and b.protocol is None
    return neither and known and a.beam == b.beam and b.exposure <= MUCH_LESS * a.exposure


def _same_grid(clean: Stack, low: Stack) -> bool:
    a, b = clean.first, low.first
    if not a.frame_of_reference or a.frame_of_reference != b.frame_of_reference:
        return False
    if len(clean.instances) != len(low.instances) or a.shape != b.shape or not (a.planes.placed and b.planes.placed):
        return False
    apart = np.abs(a.planes.row_direction - b.planes.row_direction).max()
    apart = max(apart, np.abs(a.planes.column_direction - b.planes.column_direction).max())
    spacing = np.abs(np.subtract(a.planes.spacing_hw, b.planes.spacing_hw)).max()
    if apart > SAME_DIRECTION or spacing > SAME_POSITION_MM:
        return False
    places_a = np.concatenate([instance.planes.positions_F3 for instance in clean.instances])
    places_b = np.concatenate([instance.planes.positions_F3 for instance in low.instances])
    return bool(np.abs(places_a - places_b).max() <= 10 * SAME_POSITION_MM)
