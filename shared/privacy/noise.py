"""Gaussian noise from the operating system's randomness: no seed, so that nobody can draw it again and take it off.

Box and Muller 1958 on 53-bit uniforms, in float64. Each value is half the sum of four normals: the bits of a single one
can be guessed from its float (Holohan, Braghin 2021, https://arxiv.org/abs/2107.10138).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

SUMMED = 4
_CHUNK = 2**13
"""Values at a time: what is drawn for them stays in the cache."""


def normal(count: int, std: float, rng: torch.Generator | None = None) -> npt.NDArray[np.float64]:
    """`count` independent values of N(0, std^2). `rng` is for tests alone."""
    assert count >= 0, count
    assert std >= 0, std
    if rng is not None:
        import torch

        drawn: npt.NDArray[np.float64] = torch.randn(count, generator=rng, dtype=torch.float64).numpy()
        return std * drawn
    noise = np.empty(count)
    for begin in range(0, count, _CHUNK):
        part = noise[begin : begin + _CHUNK]
        part[:] = _standard(SUMMED * len(part)).reshape(SUMMED, -1).sum(0)
    noise *= std / SUMMED**0.5
    return noise


def uniform(count: int, rng: torch.Generator | None = None) -> npt.NDArray[np.float64]:
    """`count` independent values of [0, 1): whether a patient is drawn must be as unknown as the noise."""
    if rng is not None:
        import torch

        drawn: npt.NDArray[np.float64] = torch.rand(count, generator=rng, dtype=torch.float64).numpy()
        return drawn
    return _uniform(count)


def _uniform(count: int) -> npt.NDArray[np.float64]:
    words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _standard(count: int) -> npt.NDArray[np.float64]:
    """Standard normals; `count` is even."""
    first, second = _uniform(count).reshape(2, -1)
    radius = np.sqrt(-2 * np.log1p(-first))  # 1 - first lies in (0, 1]
    angle = 2 * np.pi * second
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
