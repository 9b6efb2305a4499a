"""Strong augmentation: drawn as a value, then applied."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Strong:
    """One image's strong augmentation."""

    operations: tuple[tuple[str, float], ...]
    """(name, magnitude), applied in this order."""
