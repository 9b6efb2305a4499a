"""One generator per (seed, purpose...); nothing else seeds anything.

The purposes name who draws and what for: `generator(seed, "site", name, "round", 3, "degrade")`. Streams of different
purposes are independent, so a new draw in one place moves no other, and a resumed round draws what the lost one drew.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed from SHA-256 over the run's seed and the purpose; same on every machine."""
    text = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A torch generator on the CPU: draws are made there and moved, so that every device sees the same."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """The same for numpy (PCG64)."""
    return np.random.Generator(np.random.PCG64(derived_seed(seed, *purpose)))
