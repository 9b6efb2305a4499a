"""What a step takes: degraded and clean images with the labels that exist for each."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from shared.images.augment import Strong


@dataclass(frozen=True, slots=True)
class Streams:
    """How many of a batch's images are of which kind, in this order; an image stands in one stream."""

    masked: int
    unmasked: int
    diagnosed: int
    undiagnosed: int

    @property
    def segmented(self) -> int:
        """The images that the decoder runs on: the first of the batch."""
        return self.masked + self.unmasked

    @property
    def total(self) -> int:
        return self.segmented + self.diagnosed + self.undiagnosed

    def parts(self, count: int) -> list[Streams]:
        """`count` smaller ones that add up to this, each kind spread as evenly as it goes."""
        return [Streams(*(size * (i + 1) // count - size * i // count for size in astuple(self))) for i in range(count)]


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
    streams: Streams | None = None
    """learn= other than supervised; else images are of any kind in any order."""
    strong: tuple[Strong, ...] = ()
    """With streams, one for each image without a label that is shown twice: of `unmasked` (mask_ssl=consistency), then
    of `undiagnosed`."""

    def __post_init__(self) -> None:
        assert self.streams is None or self.streams.total == self.size, (self.streams, self.size)
        assert (self.measured_BCHW is None) == (self.acquired_BH is None), "k-space comes with its rows"

    @property
    def size(self) -> int:
        return self.clean_BCHW.shape[0]

    def to(self, device: torch.device, *, channels_last: bool = False) -> Batch:
        """On `device`; copies from pinned memory overlap with computation."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        degraded_BCHW, clean_BCHW, *others = (tensor.to(device, non_blocking=True) for tensor in self.tensors())
        images = [image_BCHW.contiguous(memory_format=layout) for image_BCHW in (degraded_BCHW, clean_BCHW)]
        return self._with([*images, *others])

    def pinned(self) -> Batch:
        return self._with([tensor.pin_memory() for tensor in self.tensors()])

    def _with(self, tensors: list[Tensor]) -> Batch:
        named: dict[str, Any] = dict(zip(_TENSORS, tensors, strict=False))
        return replace(self, **named)

    def tensors(self) -> tuple[Tensor, ...]:
        """All that are there, in the order of the fields."""
        always = (self.degraded_BCHW, self.clean_BCHW, self.mask_BHW, self.has_mask_B, self.diagnosis_B)
        if self.measured_BCHW is None or self.acquired_BH is None:
            return always
        return (*always, self.measured_BCHW, self.acquired_BH)

    def micro_batches(self, size: int) -> list[Batch]:
        """Parts of at most `size` images, in order; with streams, of about that, each with its share of all."""
        if size >= self.size:
            return [self]
        if self.streams is not None:
            return self._stream_parts(self.streams, math.ceil(self.size / size))
        parts = zip(*(torch.split(tensor, size) for tensor in self.tensors()), strict=True)
        return [Batch(*part) for part in parts]

    def _stream_parts(self, streams: Streams, count: int) -> list[Batch]:
        by_kind = torch.split(torch.arange(self.size), list(astuple(streams)))
        views = len(self.strong) - streams.undiagnosed  # of the unmasked: all of them, or none
        assert views in (0, streams.unmasked), (len(self.strong), streams)
        of_masks, of_diagnoses = self.strong[:views], self.strong[views:]
        parts, begin = [], [0, 0, 0, 0]
        for part in streams.parts(count):
            end = [first + more for first, more in zip(begin, astuple(part), strict=True)]
            rows = torch.cat([kind[slice(*span)] for kind, *span in zip(by_kind, begin, end, strict=True)])
            strong = (*of_masks[begin[1] : end[1]], *of_diagnoses[begin[3] : end[3]])
            chosen: dict[str, Any] = {
                name: tensor[rows.to(tensor.device)] for name, tensor in zip(_TENSORS, self.tensors(), strict=False)
            }
            parts.append(replace(self, **chosen, streams=part, strong=strong))
            begin = end
        return [part for part in parts if part.size]


_TENSORS = ("degraded_BCHW", "clean_BCHW", "mask_BHW", "has_mask_B", "diagnosis_B", "measured_BCHW", "acquired_BH")
