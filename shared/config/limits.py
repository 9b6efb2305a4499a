"""The bounds of a campaign's numbers, and how a value beyond one is refused."""

from __future__ import annotations

from shared.errors import ConfigError

# Far beyond what is of use: what lies further is a slip or an attack, and would run out of memory or of float32.
MOST_CHANNELS = 1024
MOST_LEVELS = 12
MOST_IMAGES = 4096
MOST_STEPS = 1_000_000
MOST_PX = 4096
LARGEST_WEIGHT = 1e6
LARGEST_RATE = 1e3
SMALLEST_CAP = 1e-6


def require(holds: bool, rule: str, got: object) -> None:
    """Refuse a value with the rule that it breaks."""
    if not holds:
        raise ConfigError(f"{rule}; got {got!r}")


def at_most(limit: float, name: str, got: float) -> None:
    require(got <= limit, f"{name} must be {limit:g} or less", got)
