from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from client.batches import (
    Augmentation,
    augmented,
    draw_augmentation,
    evaluation_batch,
    evaluation_batches,
    prefetched,
    training_batches,
)
from client.dataset import Slices, merge_slices
from shared.batch import Batch
from shared.config import CampaignConfig, DegradeConfig
from shared.seeding import generator
from tests.client.slices import disc_slices


def numbered(count: int) -> Slices:
    """Slices whose every pixel tells their number."""
    slices = disc_slices(count)
    slices.clean_NCHW[:] = torch.linspace(0, 1, count)[:, None, None, None]
    return slices


def without_augmentation(campaign: CampaignConfig) -> CampaignConfig:
    return replace(campaign, training=replace(campaign.training, augment=False))


def test_every_slice_comes_once_before_any_comes_again(campaign: CampaignConfig) -> None:
    batches = training_batches(numbered(10), without_augmentation(campaign), site="a", round=1, steps=5)
    drawn = [round(float(image[0, 0, 0]) * 9) for batch in batches for image in batch.clean_BCHW]
    assert len(drawn) == 20
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))


def test_fewer_slices_than_a_batch_still_fill_it(campaign: CampaignConfig) -> None:
    (batch,) = training_batches(numbered(3), without_augmentation(campaign), site="a", round=1, steps=1)
    counts = Counter(batch.clean_BCHW[:, 0, 0, 0].tolist())
    assert sorted(counts.values()) == [1, 1, 2]


def test_batches_repeat_for_the_same_round_and_differ_for_the_next(campaign: CampaignConfig) -> None:
    def images(round: int) -> torch.Tensor:
        return torch.cat(
            [b.degraded_BCHW for b in training_batches(disc_slices(6), campaign, site="a", round=round, steps=2)]
        )

    assert torch.equal(images(1), images(1))
    assert not torch.equal(images(1), images(2))


def test_labels_move_with_their_image(campaign: CampaignConfig) -> None:
    slices = disc_slices(8)
    for batch in training_batches(slices, campaign, site="a", round=1, steps=4):
        inside = batch.clean_BCHW[:, 0] > 0
        assert torch.equal(inside, batch.mask_BHW > 0)
        assert torch.equal((batch.mask_BHW == 2).any(2).any(1).long(), batch.diagnosis_B)


def test_a_flip_and_a_shift_do_what_they_say() -> None:
    image = torch.arange(9.0).view(1, 3, 3)
    (moved,) = augmented(image[None], [Augmentation(flip=True, down=1, right=-1)])
    assert moved.tolist() == [[[0, 0, 0], [1, 0, 0], [4, 3, 0]]]


def test_augmentation_stays_within_its_bounds() -> None:
    drawn = [draw_augmentation(64, 32, generator(0, "augment", number)) for number in range(300)]
    assert {a.down for a in drawn} == set(range(-4, 5))
    assert {a.right for a in drawn} == set(range(-2, 3))
    assert 100 < sum(a.flip for a in drawn) < 200


def test_evaluation_degrades_a_slice_alike_for_every_batch_size_and_in_the_pool(campaign: CampaignConfig) -> None:
    slices = disc_slices(7)
    other = replace(disc_slices(3, seed=9), identity=("x/1/0", "x/2/0", "x/3/0"))
    whole = torch.cat([batch.degraded_BCHW for batch in evaluation_batches(slices, campaign, 7)])
    small = torch.cat([batch.degraded_BCHW for batch in evaluation_batches(slices, campaign, 2)])
    assert torch.equal(whole, small)
    pooled = merge_slices([other, slices])
    assert torch.equal(evaluation_batch(pooled, campaign, torch.tensor([5])).degraded_BCHW[0], whole[2])


def test_evaluation_does_not_degrade_two_slices_alike(campaign: CampaignConfig) -> None:
    slices = numbered(2)
    slices.clean_NCHW[:] = 0.5
    (batch,) = evaluation_batches(slices, campaign, 2)
    assert not torch.equal(batch.degraded_BCHW[0], batch.degraded_BCHW[1])


def test_real_pairs_are_taken_and_moved_alike(campaign: CampaignConfig) -> None:
    slices = disc_slices(6)
    slices = replace(slices, degraded_NCHW=slices.clean_NCHW * 0.5)
    pairs = replace(campaign, degrade=DegradeConfig(kind="pairs"))
    for batch in [
        *training_batches(slices, pairs, site="a", round=1, steps=2),
        *evaluation_batches(slices, pairs, 4),
    ]:
        assert torch.equal(batch.degraded_BCHW, batch.clean_BCHW * 0.5)


def test_data_consistency_brings_what_was_measured_and_changes_nothing_else(campaign: CampaignConfig) -> None:
    slices = disc_slices(6)
    plain = replace(campaign, degrade=DegradeConfig(kind="kspace"))
    asked = replace(plain, enhance=replace(plain.enhance, data_consistency=True))

    def batches(campaign: CampaignConfig) -> list[Batch]:
        training = training_batches(slices, campaign, site="a", round=1, steps=2)
        return [*training, *evaluation_batches(slices, campaign, 4)]

    for without, batch in zip(batches(plain), batches(asked), strict=True):
        assert without.measured_BCHW is None
        assert without.acquired_BH is None
        assert all(torch.equal(a, b) for a, b in zip(without.tensors(), batch.tensors()[:5], strict=True))
        assert batch.measured_BCHW is not None
        assert batch.acquired_BH is not None
        assert batch.acquired_BH.sum(1).tolist() == [8] * batch.size
        expected = torch.fft.fft2(batch.clean_BCHW) * batch.acquired_BH[:, None, :, None]
        assert torch.equal(batch.measured_BCHW, expected)
        assert torch.equal(torch.fft.ifft2(batch.measured_BCHW).abs().clamp(0, 1), batch.degraded_BCHW)


def test_an_error_in_the_thread_is_raised_where_batches_are_awaited() -> None:
    def failing() -> Iterator[Batch]:
        raise ValueError("broken slice")
        yield

    with pytest.raises(ValueError, match="broken slice"):
        next(prefetched(failing()))


def test_the_thread_ends_when_nobody_listens_any_more(campaign: CampaignConfig) -> None:
    before = threading.active_count()
    batches = training_batches(disc_slices(6), campaign, site="a", round=1, steps=50)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before
