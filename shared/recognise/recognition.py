"""What a recogniser says, and the head that reads a diagnosis from feature maps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Recognition(NamedTuple):
    """What a recogniser says about a batch; a head that the campaign does not ask for is None."""

    mask_logits_BKHW: Tensor | None
    """K = 1 + foreground classes; class 0 is background."""
    diagnosis_logits_BN: Tensor | None
    features: list[Tensor]
    """The decoder's maps from coarse to fine; the first is the deepest of the network."""
    skips: tuple[Tensor, ...] = ()
    """The encoder's maps from fine to coarse without the deepest, where the network hands them out."""


class Encoding(NamedTuple):
    """What an encoder says of a batch, and what a decoder goes on from."""

    skips: tuple[Tensor, ...]
    """From fine to coarse, without the deepest."""
    deepest_BCHW: Tensor
    diagnosis_logits_BN: Tensor | None


def mean_BC(features_BCHW: Tensor) -> Tensor:
    return features_BCHW.mean((2, 3))


def pooled_BC(features_BCHW: Tensor) -> Tensor:
    """Mean and maximum over the image, (B, 2 C): a lesion of a few pixels drowns in the mean alone."""
    return torch.cat([features_BCHW.mean((2, 3)), features_BCHW.amax((2, 3))], dim=1)


class PooledHead(nn.Module):
    """Mean and maximum over the image, then a linear layer."""

    def __init__(self, width: int, num_diagnoses: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * width, num_diagnoses)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        logits_BN: Tensor = self.linear(self.dropout(pooled_BC(features_BCHW)))
        return logits_BN
