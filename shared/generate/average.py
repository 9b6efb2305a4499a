"""Weights of round after round in, their moving average out: what a generator's phase ends with.

Samples of a diffusion model are taken from an average of its weights over training (Ho et al. 2020,
https://arxiv.org/abs/2006.11239). Here it runs over rounds, at the coordinator: it costs no byte, and sites need no
state for it.
"""

from __future__ import annotations

import numpy as np

from shared.types import Arrays


def averaged(average: Arrays | None, weights: Arrays, round: int, decay: float) -> Arrays:
    """decay_k average + (1 - decay_k) weights after 1-based round k, decay_k = min(decay, (k - 1) / (k + 1)): the first
    rounds, far from where training ends, are soon forgotten."""
    assert round >= 1
    kept = min(decay, (round - 1) / (round + 1))
    if average is None or kept == 0:
        return weights
    share, rest = np.float32(kept), np.float32(1 - kept)
    return {name: share * average[name] + rest * values for name, values in weights.items()}
