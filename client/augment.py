"""Which images a batch is made of: real slices, synthetic images in their place or beside them, diagnoses in balance.

    augment.mix=images    a drawn slice gives way to a random one of its synthetic images with probability 1 - real
    augment.mix=patches   a drawn slice has a random one of its synthetic images beside it; one without any, itself
    augment.balance       every diagnosis comes equally often; slices that none is known of keep their share

Balanced, what is drawn is an image with a diagnosis: the diagnoses take turns, and a turn is a real slice's with
probability `real` and else a synthetic image's, which may have the mask of another patient. So a class that a site
hardly has is shown as often as any other. In each of these orders everything comes once before anything comes again.
An image that comes for one diagnosis teaches no other: what stands beside it with another one is there for its mask.

Of learn= with streams, the masked and the diagnosed are mixed and the diagnosed are balanced; images without a label
stay real. Without balance and with nothing to mix, every draw is what it was before there were generators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from client.dataset import Slices, Synthetic
from client.streams import Pools, draws, endless, pools_of
from shared.batch import Streams
from shared.config import AugmentConfig, CampaignConfig
from shared.seeding import generator

NONE = -1
"""No synthetic image, or no diagnosis."""
ANY = -2

Purpose = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """What a batch is made of; int64."""

    slice_B: Tensor
    """Index of the slice."""
    variant_B: Tensor
    """Index of a synthetic image with the slice's mask, or NONE."""
    wanted_B: Tensor
    """The diagnosis that it was drawn for, NONE for a slice that none is known of; ANY: whatever it shows."""

    def learnt(self, diagnosis_B: Tensor) -> Tensor:
        """The diagnoses that the images were drawn for; others are as if unknown (-1)."""
        return torch.where((self.wanted_B == ANY) | (self.wanted_B == diagnosis_B), diagnosis_B, -1)


Mixed = Callable[[Items, bool], Items]
"""(items, must have a diagnosis) -> the same with synthetic images in their places."""


def mixed_in(slices: Slices, augment: AugmentConfig) -> Synthetic | None:
    """The synthetic images that training takes from; None where all of it is real."""
    if slices.synthetic is None or not len(slices.synthetic):
        return None
    return slices.synthetic if augment.generated and augment.real < 1 else None


def items(slices: Slices, campaign: CampaignConfig, *purpose: str | int) -> Iterator[tuple[Items, Streams | None]]:
    """Endless; `purpose` says whose draws they are. Raises DataError where the site has nothing to learn from."""
    mixed = _mixer(slices, campaign, purpose)
    if campaign.learn.streams:
        return _streamed(pools_of(slices, campaign), slices, campaign, purpose, mixed)
    return _plain(slices, campaign, purpose, mixed)


def _plain(
    slices: Slices, campaign: CampaignConfig, purpose: Purpose, mixed: Mixed
) -> Iterator[tuple[Items, Streams | None]]:
    every = torch.arange(len(slices))
    balanced = _balanced(slices, every, campaign, purpose)
    order = endless(every, generator(campaign.seed, *purpose, "order"))
    size = campaign.training.batch_size
    while True:
        yield mixed(_taken(balanced, size) if campaign.augment.balance else _whatever(order, size), False), None


def _streamed(
    pools: Pools, slices: Slices, campaign: CampaignConfig, purpose: Purpose, mixed: Mixed
) -> Iterator[tuple[Items, Streams | None]]:
    balanced = _balanced(slices, pools.diagnosed, campaign, purpose)
    for indices, streams in draws(pools, campaign, *purpose):
        masked, unmasked, diagnosed, undiagnosed = (
            _whatever(iter(part.tolist()), len(part)) for part in torch.split(indices, streams.counts)
        )
        if campaign.augment.balance and streams.diagnosed:
            diagnosed = _taken(balanced, streams.diagnosed)
        kinds = (mixed(masked, False), unmasked, mixed(diagnosed, True), undiagnosed)
        yield Items(*(torch.cat([getattr(kind, name) for kind in kinds]) for name in Items.__slots__)), streams


def _whatever(order: Iterator[int], count: int) -> Items:
    slice_B = torch.tensor([next(order) for _ in range(count)], dtype=torch.int64)
    return Items(slice_B, torch.full_like(slice_B, NONE), torch.full_like(slice_B, ANY))


def _taken(balanced: Iterator[tuple[int, int, int]], count: int) -> Items:
    drawn_B3 = torch.tensor([next(balanced) for _ in range(count)], dtype=torch.int64)
    return Items(*drawn_B3.unbind(1))


def _balanced(
    slices: Slices, candidates: Tensor, campaign: CampaignConfig, purpose: Purpose
) -> Iterator[tuple[int, int, int]]:
    """Endless (slice, synthetic image, wanted diagnosis); `candidates` are the slices that real images come from."""

    def order(pool: Tensor, *what: str | int) -> Iterator[int]:
        return endless(pool, generator(campaign.seed, *purpose, "balance", *what))

    synthetic = mixed_in(slices, campaign.augment)
    shown_N = slices.diagnosis_N[candidates]
    made_S = torch.zeros(0, dtype=torch.int64) if synthetic is None else synthetic.diagnosis_S
    codes = sorted({code for code in (*shown_N.tolist(), *made_S.tolist()) if code >= 0})
    real = {code: order(candidates[shown_N == code], "real", code) for code in codes if bool((shown_N == code).any())}
    made = {
        code: order((made_S == code).nonzero()[:, 0], "made", code) for code in codes if bool((made_S == code).any())
    }
    turns = order(torch.tensor(codes), "turns")
    luck = generator(campaign.seed, *purpose, "balance", "luck")
    # A slice without a diagnosis comes as itself; every other one gives its place to the diagnosis whose turn it is.
    for index in order(candidates, "places"):
        if int(slices.diagnosis_N[index]) < 0:
            yield index, NONE, NONE
            continue
        code = next(turns)
        chance = float(torch.rand((), generator=luck, dtype=torch.float64))
        if code in real and (code not in made or chance < campaign.augment.real):
            yield next(real[code]), NONE, code
        else:
            assert synthetic is not None
            variant = next(made[code])
            yield int(synthetic.source_S[variant]), variant, code


def _mixer(slices: Slices, campaign: CampaignConfig, purpose: Purpose) -> Mixed:
    augment, synthetic = campaign.augment, mixed_in(slices, campaign.augment)
    if synthetic is None:
        return lambda drawn, diagnosed: drawn
    source_S, shown_S = synthetic.source_S, synthetic.diagnosis_S
    every = _Variants.of(source_S, torch.ones_like(source_S, dtype=torch.bool), len(slices))
    known = _Variants.of(source_S, shown_S >= 0, len(slices))
    alike = _Variants.of(source_S, shown_S == slices.diagnosis_N[source_S], len(slices))
    rng = generator(campaign.seed, *purpose, "mix")

    def mixed(drawn: Items, diagnosed: bool) -> Items:
        luck, which = torch.rand(2, len(drawn.slice_B), generator=rng, dtype=torch.float64)
        variant_B = (known if diagnosed else every).one(drawn.slice_B, which)
        alike_B = alike.one(drawn.slice_B, which)
        balanced_B = drawn.wanted_B != ANY
        variant_B = torch.where(balanced_B & (alike_B != NONE), alike_B, variant_B)
        taken_B = drawn.variant_B == NONE
        if augment.mix == "images":  # the turn of a diagnosis has decided already which kind of image it is
            taken_B = taken_B & (luck >= augment.real) & (drawn.wanted_B < 0)
        return replace(drawn, variant_B=torch.where(taken_B, variant_B, drawn.variant_B))

    return mixed


@dataclass(frozen=True, slots=True, eq=False)
class _Variants:
    """Some of the synthetic images, by the slice that each is of."""

    image_S: Tensor
    """Those of the first slice, of the second, and so on; then NONE."""
    first_N: Tensor
    count_N: Tensor

    @classmethod
    def of(cls, source_S: Tensor, chosen_S: Tensor, count: int) -> _Variants:
        image_S = chosen_S.nonzero()[:, 0]
        image_S = image_S[source_S[image_S].argsort(stable=True)]
        count_N = torch.bincount(source_S[image_S], minlength=count)
        return cls(torch.cat([image_S, image_S.new_tensor([NONE])]), count_N.cumsum(0) - count_N, count_N)

    def one(self, slice_B: Tensor, luck_B: Tensor) -> Tensor:
        """One of each slice's images by a uniform number in [0, 1), or NONE."""
        count_B = self.count_N[slice_B]
        place_B = self.first_N[slice_B] + (luck_B * count_B).long()
        return self.image_S[torch.where(count_B > 0, place_B, len(self.image_S) - 1)]
