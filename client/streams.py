"""Slices in, the streams of MultiMix out: which slices show a mask, lack one, are diagnosed, are not.

A step draws `training.batch_size` images from each stream that its loss needs and that the site has. Every image of a
stream comes once before any comes again; each stream has an order of its own, so that a site with fewer labels shows
the same unlabelled images in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from client.dataset import Slices
from shared.batch import Streams
from shared.config import CampaignConfig
from shared.errors import DataError
from shared.seeding import generator


@dataclass(frozen=True, slots=True, eq=False)
class Pools:
    """Indices of the slices of each stream, in the order of shared.batch.Streams; empty: left out."""

    masked: Tensor
    unmasked: Tensor
    diagnosed: Tensor
    undiagnosed: Tensor

    @property
    def all(self) -> tuple[tuple[str, Tensor], ...]:
        names = ("masked", "unmasked", "diagnosed", "undiagnosed")
        return tuple((name, getattr(self, name)) for name in names)


def learns_nothing(slices: Slices, campaign: CampaignConfig) -> bool:
    """A recogniser alone, at a site without any of the labels (or other images) that `learn` asks for: the site takes
    part, judges what comes, and moves nothing."""
    if not campaign.learn.streams or campaign.enhance.kind != "none":
        return False
    return not any(len(pool) for _, pool in _pools(slices, campaign).all)


def pools_of(slices: Slices, campaign: CampaignConfig) -> Pools:
    """The streams that `learn` asks for. Raises DataError where the site has none of them."""
    pools = _pools(slices, campaign)
    if not any(len(pool) for _, pool in pools.all):
        wanted = [*(["masks"] if campaign.masks else []), *(["diagnoses"] if campaign.diagnoses else [])]
        raise DataError(
            f"learn={campaign.learn.kind} learns from {' and '.join(wanted)}, and this site has none to train with; "
            "choose learn=multimix, which also learns from images alone, or leave the site out"
        )
    return pools


def _pools(slices: Slices, campaign: CampaignConfig) -> Pools:
    learn = campaign.learn
    none = torch.zeros(0, dtype=torch.int64)

    def chosen(where_N: Tensor, wanted: bool) -> Tensor:
        return where_N.nonzero()[:, 0] if wanted else none

    masks, diagnoses = bool(campaign.masks), bool(campaign.diagnoses)
    return Pools(
        chosen(slices.has_mask_N, masks),
        chosen(~slices.has_mask_N, masks and learn.mask_ssl != "none"),
        chosen(slices.diagnosis_N >= 0, diagnoses),
        chosen(slices.diagnosis_N < 0, diagnoses and learn.pseudo_labels),
    )


def draws(pools: Pools, campaign: CampaignConfig, *purpose: str | int) -> Iterator[tuple[Tensor, Streams]]:
    """Endless (indices in the order of the streams, how many of each); `purpose` says whose draws they are."""
    size = campaign.training.batch_size
    orders = {name: _order(name, pool, campaign, purpose) for name, pool in pools.all}
    streams = Streams(*(size if len(pool) else 0 for _, pool in pools.all))
    while True:
        yield torch.cat([_taken(orders[name], size) for name, pool in pools.all if len(pool)]), streams


def _order(name: str, pool: Tensor, campaign: CampaignConfig, purpose: tuple[str | int, ...]) -> Iterator[int]:
    return endless(pool, generator(campaign.seed, *purpose, "order", name))


def endless(pool: Tensor, rng: torch.Generator) -> Iterator[int]:
    """All of `pool` in a random order, then in another, and so on."""
    while True:
        yield from pool[torch.randperm(len(pool), generator=rng)].tolist()


def _taken(order: Iterator[int], count: int) -> Tensor:
    return torch.tensor([next(order) for _ in range(count)])
