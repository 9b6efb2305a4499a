"""Slices in, batches out: shuffled, augmented and freshly degraded for training; fixed for evaluation.

Training batches are made in a background thread while the step before them runs. Augmentation is drawn as a value and
then applied, like every degradation: flips and shifts (training.augment), then augment.kind, both on the clean image
before it is degraded, and alike on its mask and on a synthetic image beside it. Evaluation has none of it and shows no
synthetic image: a slice's degradation is drawn from the campaign's seed and the slice's identity alone, so that every
model, at every site and in the pooled comparison, sees the same noise.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from client.augment import ANY, NONE, Items, items, mixed_in
from client.dataset import Slices
from shared.batch import Batch, Streams
from shared.config import AugmentConfig, CampaignConfig
from shared.images.augment import draw_strong
from shared.images.classical import OPERATIONS, Classical, draw_classical, varied, varied_masks
from shared.images.degrade import KSpace, acquired_kspace, degrade_batch, draw
from shared.seeding import generator

READY_BATCHES = 3
LARGEST_SHIFT = 1 / 16
"""Of the image's height and width."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """A left-right flip, then a shift in pixels with background moving in."""

    flip: bool
    down: int
    right: int


def training_batches(
    slices: Slices, campaign: CampaignConfig, *, site: str, round: int, steps: int, pin: bool = False
) -> Generator[Batch, None, None]:
    """`steps` batches of exactly `training.batch_size` images, or of as many of each stream that the site has (see
    client/streams.py); every slice comes once before any comes again.

    Raises DataError where the site has nothing that `learn` could learn from.
    """
    purpose = ("site", site, "round", round)
    rngs = _Generators(*(generator(campaign.seed, *purpose, name) for name in _PURPOSES))
    chosen = items(slices, campaign, *purpose)

    def make() -> Iterator[Batch]:
        for drawn, streams in itertools.islice(chosen, steps):
            batch = _training_batch(slices, drawn, campaign, rngs)
            if streams is not None:
                batch = _in_streams(batch, streams, campaign, rngs.strong)
            yield batch.pinned() if pin else batch

    return prefetched(make())


_PURPOSES = ("augment", "degrade", "strong", "classical", "degrade_synthetic", "cells")


@dataclass(frozen=True, slots=True, eq=False)
class _Generators:
    """Of one site's round, by what they draw: what one draws moves no other."""

    augment: torch.Generator
    degrade: torch.Generator
    strong: torch.Generator
    classical: torch.Generator
    degrade_synthetic: torch.Generator
    cells: torch.Generator


def _in_streams(batch: Batch, streams: Streams, campaign: CampaignConfig, rng: torch.Generator) -> Batch:
    """Each image with the labels of its stream alone, and a strong augmentation for those that are shown twice."""
    place_B = torch.arange(batch.size)
    masked_B = place_B < streams.masked
    diagnosed_B = (place_B >= streams.segmented) & (place_B < streams.segmented + streams.diagnosed)
    twice = streams.undiagnosed + (streams.unmasked if campaign.learn.mask_ssl == "consistency" else 0)
    return replace(
        batch,
        mask_BHW=batch.mask_BHW * masked_B[:, None, None],
        has_mask_B=masked_B,
        diagnosis_B=torch.where(diagnosed_B, batch.diagnosis_B, -1),
        streams=streams,
        strong=tuple(draw_strong(rng) for _ in range(twice)),
    )


def _training_batch(slices: Slices, drawn: Items, campaign: CampaignConfig, rngs: _Generators) -> Batch:
    height, width = slices.clean_NCHW.shape[-2:]
    chosen_B, size = drawn.slice_B, len(drawn.slice_B)
    moves = [Augmentation(False, 0, 0)] * size
    if campaign.training.augment:
        moves = [draw_augmentation(height, width, rngs.augment) for _ in range(size)]
    values = [Classical()] * size
    if campaign.augment.kind in OPERATIONS:
        values = [draw_classical(campaign.augment.kind, rngs.classical) for _ in range(size)]

    def shown(images_BCHW: Tensor) -> Tensor:
        return varied(augmented(images_BCHW, moves), values)

    image_BCHW, diagnosis_B = slices.clean_NCHW[chosen_B], drawn.learnt(slices.diagnosis_N[chosen_B])
    synthetic, beside = mixed_in(slices, campaign.augment), dict[str, Any]()
    if synthetic is not None:
        made_B = drawn.variant_B >= 0
        made_BCHW = torch.where(made_B[:, None, None, None], synthetic.image_SCHW[drawn.variant_B], image_BCHW)
        of_made_B = torch.where(made_B, drawn.learnt(synthetic.diagnosis_S[drawn.variant_B]), diagnosis_B)
        if campaign.augment.mix == "images":
            image_BCHW, diagnosis_B = made_BCHW, of_made_B
        else:
            beside_BCHW, *_ = _degraded(shown(made_BCHW), campaign, [rngs.degrade_synthetic] * size)
            cells_BHW = draw_cells(size, height, width, campaign.augment, rngs.cells)
            beside = dict(zip(_BESIDE, (beside_BCHW, of_made_B, cells_BHW), strict=True))
    clean_BCHW = shown(image_BCHW)
    measured: Sequence[Tensor] = ()
    if campaign.degrade.kind == "pairs":
        assert slices.degraded_NCHW is not None, "open_site refuses a site without pairs"
        degraded_BCHW = shown(slices.degraded_NCHW[chosen_B])
    else:
        degraded_BCHW, *measured = _degraded(clean_BCHW, campaign, [rngs.degrade] * size)
    mask_BHW = varied_masks(augmented(slices.mask_NHW[chosen_B], moves), values).long()
    has_mask_B = slices.has_mask_N[chosen_B]
    return Batch(degraded_BCHW, clean_BCHW, mask_BHW, has_mask_B, diagnosis_B, **_kspace(measured), **beside)


def drawn_batch(slices: Slices, chosen_B: Tensor, campaign: CampaignConfig, rng: torch.Generator) -> Batch:
    """The given slices (int64 indices) as a training batch shows them, all of it drawn with `rng`."""
    nothing_B = torch.full_like(chosen_B, NONE)
    drawn = Items(chosen_B, nothing_B, torch.full_like(chosen_B, ANY))
    return _training_batch(slices, drawn, campaign, _Generators(*[rng] * len(_PURPOSES)))


_BESIDE = ("synthetic_BCHW", "synthetic_diagnosis_B", "real_cells_BHW")


def draw_cells(count: int, height: int, width: int, augment: AugmentConfig, rng: torch.Generator) -> Tensor:
    """(count, height, width) bool: cells of `cell_px` pixels a side, each real with probability `real`; the last ones
    are cut off where they do not fit."""
    side = augment.cell_px
    cells_BHW = torch.rand(count, -(-height // side), -(-width // side), generator=rng) < augment.real
    return cells_BHW.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :height, :width]


def _degraded(
    clean_BCHW: Tensor, campaign: CampaignConfig, rngs: Sequence[torch.Generator]
) -> tuple[Tensor] | tuple[Tensor, Tensor, Tensor]:
    """The degraded images; for data consistency also the k-space that was acquired of each, and its rows."""
    if campaign.degrade.kind == "none":
        return (clean_BCHW,)
    degradations = [draw(campaign.degrade, rng, campaign.data) for rng in rngs]
    degraded_BCHW = degrade_batch(clean_BCHW, degradations)
    if not campaign.enhance.data_consistency:
        return (degraded_BCHW,)
    acquisitions = [degradation for degradation in degradations if isinstance(degradation, KSpace)]
    assert len(acquisitions) == len(degradations), "CampaignConfig refuses data consistency without degrade=kspace"
    return degraded_BCHW, *acquired_kspace(clean_BCHW, acquisitions)


def _kspace(measured: Sequence[Tensor]) -> dict[str, Any]:
    return dict(zip(("measured_BCHW", "acquired_BH"), measured, strict=bool(measured)))


def draw_augmentation(height: int, width: int, rng: torch.Generator) -> Augmentation:
    """Half of the images flipped; shifts uniform up to a sixteenth of the image."""
    down, right = (int(size * LARGEST_SHIFT) for size in (height, width))
    return Augmentation(
        bool(torch.randint(2, (), generator=rng)),
        int(torch.randint(-down, down + 1, (), generator=rng)),
        int(torch.randint(-right, right + 1, (), generator=rng)),
    )


def augmented(images: Tensor, augmentations: Sequence[Augmentation]) -> Tensor:
    """Images or masks (batch first, rows and columns last), each by its own augmentation."""
    moved = []
    for image, drawn in zip(images, augmentations, strict=True):
        flipped = image.flip(-1) if drawn.flip else image
        # A negative pad crops: what leaves on one side is replaced by zeros on the other.
        moved.append(F.pad(flipped, (drawn.right, -drawn.right, drawn.down, -drawn.down)))
    return torch.stack(moved)


def evaluation_batches(slices: Slices, campaign: CampaignConfig, batch_size: int) -> Iterator[Batch]:
    """All slices in order, each with its one evaluation degradation."""
    for chosen_B in torch.split(torch.arange(len(slices)), batch_size):
        yield evaluation_batch(slices, campaign, chosen_B)


def evaluation_batch(slices: Slices, campaign: CampaignConfig, chosen_B: Tensor) -> Batch:
    """The given slices (int64 indices) with their evaluation degradation."""
    clean_BCHW = slices.clean_NCHW[chosen_B]
    measured: Sequence[Tensor] = ()
    if campaign.degrade.kind == "pairs":
        assert slices.degraded_NCHW is not None, "open_site refuses a site without pairs"
        degraded_BCHW = slices.degraded_NCHW[chosen_B]
    else:
        names = [slices.identity[int(index)] for index in chosen_B]
        rngs = [generator(campaign.seed, "evaluation", "degrade", name) for name in names]
        degraded_BCHW, *measured = _degraded(clean_BCHW, campaign, rngs)
    mask_BHW = slices.mask_NHW[chosen_B].long()
    labels = slices.has_mask_N[chosen_B], slices.diagnosis_N[chosen_B]
    return Batch(degraded_BCHW, clean_BCHW, mask_BHW, *labels, **_kspace(measured))


def prefetched(batches: Iterator[Batch]) -> Generator[Batch, None, None]:
    """The same batches, made up to READY_BATCHES ahead in a thread that ends when the caller stops listening."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(READY_BATCHES)
    stopped = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def work() -> None:
        try:
            for batch in batches:
                put(batch)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - raised again where the batches are awaited
            put(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
