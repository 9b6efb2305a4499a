"""Enhanced and clean images in, the enhancement loss out.

Means over all pixels of all images, so that the loss of a batch is the size-weighted mean of its micro batches' losses.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

CHARBONNIER_EPSILON = 1e-3


def enhancement_loss(enhanced_BCHW: Tensor, clean_BCHW: Tensor, kind: Literal["mse", "l1", "charbonnier"]) -> Tensor:
    """mse (as Liu et al., https://arxiv.org/abs/1910.09185), l1, or Charbonnier et al. 1994, a smooth l1."""
    match kind:
        case "mse":
            return F.mse_loss(enhanced_BCHW, clean_BCHW)
        case "l1":
            return F.l1_loss(enhanced_BCHW, clean_BCHW)
        case "charbonnier":
            return torch.sqrt((enhanced_BCHW - clean_BCHW).square() + CHARBONNIER_EPSILON**2).mean()
