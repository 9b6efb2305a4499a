"""What a step takes: degraded and clean images with the labels that exist for each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One batch on one device; images are float32 on the campaign's [0, 1] scale."""

    degraded_BCHW: Tensor
    clean_BCHW: Tensor
    mask_BHW: Tensor
    """int64 class codes, 0 background; all 0 where `has_mask_B` is False."""
    has_mask_B: Tensor
    diagnosis_B: Tensor
    """int64 code of the diagnosis, -1 unknown."""
    measured_BCHW: Tensor | None = None
    """complex64 k-space of the clean image, 0 where it was not acquired; only for enhance.data_consistency."""
    acquired_BH: Tensor | None = None
    """True for the rows of k-space (zero frequency first) that were acquired."""

    def __post_init__(self) -> None:
        assert (self.measured_BCHW is None) == (self.acquired_BH is None), "k-space comes with its rows"

    @property
    def size(self) -> int:
        return self.clean_BCHW.shape[0]

    def to(self, device: torch.device, *, channels_last: bool = False) -> Batch:
        """On `device`; copies from pinned memory overlap with computation."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        degraded_BCHW, clean_BCHW, *others = (tensor.to(device, non_blocking=True) for tensor in self.tensors())
        images = (image_BCHW.contiguous(memory_format=layout) for image_BCHW in (degraded_BCHW, clean_BCHW))
        return Batch(*images, *others)

    def pinned(self) -> Batch:
        return Batch(*(tensor.pin_memory() for tensor in self.tensors()))

    def tensors(self) -> tuple[Tensor, ...]:
        """All that are there, in the order of the fields."""
        always = (self.degraded_BCHW, self.clean_BCHW, self.mask_BHW, self.has_mask_B, self.diagnosis_B)
        if self.measured_BCHW is None or self.acquired_BH is None:
            return always
        return (*always, self.measured_BCHW, self.acquired_BH)

    def micro_batches(self, size: int) -> list[Batch]:
        """Consecutive parts of at most `size` images, in order."""
        if size >= self.size:
            return [self]
        parts = zip(*(torch.split(tensor, size) for tensor in self.tensors()), strict=True)
        return [Batch(*part) for part in parts]
