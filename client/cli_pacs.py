"""Commands of `wardround-site` for the hospital's PACS: what is fetched from it and sent to it."""

from __future__ import annotations

from typing import Any


def add(commands: Any) -> None:
    """Register the parsers of these commands."""
