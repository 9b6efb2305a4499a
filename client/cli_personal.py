"""Commands of `wardround-site` for a release adapted to this site's scanner."""

from __future__ import annotations

from typing import Any


def add(commands: Any) -> None:
    """Register the parsers of these commands."""
