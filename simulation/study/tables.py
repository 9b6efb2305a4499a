"""Rows of a study in, what they say out: means over seeds, paired differences with their interval, claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def claims_of(rows: Rows) -> list[dict[str, Any]]:
    """The claims that the study was set up to examine, for the tables that have rows."""
    return []
