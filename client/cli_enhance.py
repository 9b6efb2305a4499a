"""Commands of `wardround-site` for studies enhanced and given back as DICOM."""

from __future__ import annotations

from typing import Any


def add(commands: Any) -> None:
    """Register the parsers of these commands."""
