"""A batch in, its enhanced images out."""

from __future__ import annotations

from torch import Tensor, nn

from shared.batch import Batch


def enhanced_image(enhancer: nn.Module, batch: Batch) -> Tensor:
    """enhanced_BCHW, not clamped."""
    enhanced_BCHW: Tensor = enhancer(batch.degraded_BCHW)
    return enhanced_BCHW
