"""Commands of `wardround-site` for releases of the federation: install, list, roll back, validate."""

from __future__ import annotations

from typing import Any


def add(commands: Any) -> None:
    """Register the parsers of these commands."""
