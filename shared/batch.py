"""What a step takes: degraded and clean images with the labels that exist for each."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    def counts(self) -> list[int]:
        return list(astuple(self))

    @property
    def total(self) -> int:
        return self.segmented + self.diagnosed + self.undiagnosed

    def parts(self, count: int) -> list[Streams]:
        """`count` smaller ones that add up to this, each kind spread as evenly as it goes."""
        return [Streams(*(size * (i + 1) // count - size * i // count for size in self.counts)) for i in range(count)]


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
    synthetic_BCHW: Tensor | None = None
    """augment.mix=patches: beside each image a synthetic one with its mask, moved and degraded as it is; the image
    itself where it has none."""
    synthetic_diagnosis_B: Tensor | None = None
    """int64 what the synthetic image shows, -1 unknown."""
    real_cells_BHW: Tensor | None = None
    """True where the merged logits are those of the real image."""

    def __post_init__(self) -> None:
        assert self.streams is None or self.streams.total == self.size, (self.streams, self.size)
        assert (self.measured_BCHW is None) == (self.acquired_BH is None), "k-space comes with its rows"
        partner = (self.synthetic_BCHW, self.synthetic_diagnosis_B, self.real_cells_BHW)
        assert len({each is None for each in partner}) == 1, "a synthetic image comes with its diagnosis and its cells"

    @property
    def size(self) -> int:
        return self.clean_BCHW.shape[0]

    @property
    def diagnosed_B(self) -> Tensor:
        """True where there is a diagnosis to learn from: of the image or of its synthetic partner."""
        known_B = self.diagnosis_B >= 0
        return known_B if self.synthetic_diagnosis_B is None else known_B | (self.synthetic_diagnosis_B >= 0)

    def to(self, device: torch.device, *, channels_last: bool = False) -> Batch:
        """On `device`; copies from pinned memory overlap with computation."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self._named().items()}
        images = {name: moved[name].contiguous(memory_format=layout) for name in _IMAGES if name in moved}
        return self._with({**moved, **images})

    def pinned(self) -> Batch:
        return self._with({name: tensor.pin_memory() for name, tensor in self._named().items()})

    def _with(self, tensors: Mapping[str, Tensor]) -> Batch:
        named: dict[str, Any] = dict(tensors)
        return replace(self, **named)

    def _named(self) -> dict[str, Tensor]:
        found = {name: getattr(self, name) for name in _TENSORS}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def tensors(self) -> tuple[Tensor, ...]:
        """All that are there: images, mask, labels, then k-space with its rows, then what is synthetic."""
        return tuple(self._named().values())

    def micro_batches(self, size: int) -> list[Batch]:
        """Parts of at most `size` images, in order; with streams, of about that, each with its share of all."""
        if size >= self.size:
            return [self]
        if self.streams is not None:
            return self._stream_parts(self.streams, math.ceil(self.size / size))
        split = {name: torch.split(tensor, size) for name, tensor in self._named().items()}
        parts = zip(*split.values(), strict=True)
        return [self._with(dict(zip(split, part, strict=True))) for part in parts]

    def _stream_parts(self, streams: Streams, count: int) -> list[Batch]:
        by_kind = torch.split(torch.arange(self.size), streams.counts)
        views = len(self.strong) - streams.undiagnosed  # of the unmasked: all of them, or none
        assert views in (0, streams.unmasked), (len(self.strong), streams)
        of_masks, of_diagnoses = self.strong[:views], self.strong[views:]
        parts, begin = [], [0, 0, 0, 0]
        for part in streams.parts(count):
            end = [first + more for first, more in zip(begin, part.counts, strict=True)]
            rows = torch.cat([kind[slice(*span)] for kind, *span in zip(by_kind, begin, end, strict=True)])
            strong = (*of_masks[begin[1] : end[1]], *of_diagnoses[begin[3] : end[3]])
            chosen: dict[str, Any] = {name: tensor[rows.to(tensor.device)] for name, tensor in self._named().items()}
            parts.append(replace(self, **chosen, streams=part, strong=strong))
            begin = end
        return [part for part in parts if part.size]


_TENSORS = (
    "degraded_BCHW",
    "clean_BCHW",
    "mask_BHW",
    "has_mask_B",
    "diagnosis_B",
    "measured_BCHW",
    "acquired_BH",
    "synthetic_BCHW",
    "synthetic_diagnosis_B",
    "real_cells_BHW",
)
_IMAGES = ("degraded_BCHW", "clean_BCHW", "synthetic_BCHW")
