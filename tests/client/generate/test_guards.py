"""Copies are told from images that only follow their hint, and what missed its mask from what met it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from client.dataset import Slices
from client.generate import draw as drawing
from client.generate.agreement import (
    best_of_each_class,
    edge_agreement,
    mask_agreement,
    outlines,
    trained_segmenter,
)
from client.generate.copies import around, between_patients, nearer, nearest, nearest_moved, nearness, standardised
from client.generate.draw import Drawn, draw_synthetic
from shared.config import CampaignConfig, DrawConfig, GenerateConfig, MachineConfig
from shared.generate.hints import hint_of
from shared.generate.networks import Generator, build_generator
from shared.recognise.metrics import auc
from tests.client.generate.textured import TEXTURE, textured_slices
from tests.client.slices import disc_slices

VARIANTS = 2


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    draw = DrawConfig(sampler="rflow", steps=2, variants=VARIANTS)
    return replace(campaign, generate=GenerateConfig(kind="emit-diff", prediction="velocity", draw=draw))


@pytest.fixture
def generator(campaign: CampaignConfig) -> Generator:
    return build_generator(campaign)


# ------------------------------------------------------------------------------------------- distances


def test_distance_is_the_rms_difference_and_blind_to_brightness_and_contrast() -> None:
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    a, b = standardised(images), standardised(0.5 * images + 0.2)
    assert torch.allclose(a, b, atol=1e-5)
    half = images.numpy().reshape(3, 4, 2, 4, 2).mean((2, 4)).reshape(3, -1)
    half = (half - half.mean(1, keepdims=True)) / half.std(1, keepdims=True)
    expected = math.sqrt(((half[0] - half[1]) ** 2).mean())
    assert float(torch.cdist(a, a)[0, 1]) == pytest.approx(expected, abs=1e-4)


def test_a_constant_image_has_a_distance_and_no_nan() -> None:
    rows = standardised(torch.stack([torch.zeros(1, 8, 8), torch.rand(1, 8, 8)]))
    assert torch.isfinite(torch.cdist(rows, rows)).all()
    assert not rows[0].any()


def test_neighbours_are_those_of_other_patients() -> None:
    known = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    patients = torch.tensor([0, 0, 1, 2])
    distance, index = nearest(torch.tensor([[0.2]]), known)
    assert (float(distance), int(index)) == (pytest.approx(0.2), 0)
    found = around(torch.tensor([[0.2]]), known, 2, patients, patients[index])
    assert float(found) == pytest.approx((1.8 + 9.8) / 2)
    assert between_patients(known, patients).tolist() == [2.0, 1.0, 1.0, 8.0]


def test_with_a_single_patient_neighbours_are_unrelated_images() -> None:
    assert around(torch.zeros(2, 3), torch.zeros(4, 3), 0).tolist() == pytest.approx([math.sqrt(2)] * 2)


def test_the_membership_figure_is_the_area_under_the_curve() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(0, 6, 40).astype(float), rng.integers(2, 8, 30).astype(float)  # with ties
    scores = np.concatenate([ours, theirs])
    probabilities = np.stack([1 - scores / 10, scores / 10], 1)
    expected = auc(probabilities, np.array([0] * 40 + [1] * 30))
    assert nearer(torch.tensor(ours), torch.tensor(theirs)) == pytest.approx(expected)
    assert nearer(torch.zeros(3), torch.ones(2)) == 1.0


# ------------------------------------------------------------------------------------------- copies


def copies(train: Slices, noise: float, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    images = train.clean_NCHW.repeat_interleave(VARIANTS, 0)
    return (images + noise * torch.randn(images.shape, generator=rng)).clamp(0, 1)


def as_hinted(slices: Slices, seed: int) -> Tensor:
    """The same anatomy with a new texture, half of it the image's own: what a good generator makes of a hint."""
    own = slices.clean_NCHW.repeat_interleave(VARIANTS, 0)
    fresh = textured_slices(len(own), seed=seed)
    bumps = fresh.clean_NCHW - disc_slices(len(own), seed=seed).clean_NCHW
    plain = 0.45 * (slices.mask_NHW[:, None] > 0).float() + 0.35 * (slices.mask_NHW[:, None] == 2).float()
    plain = plain.repeat_interleave(VARIANTS, 0)
    return (plain + 0.5 * (own - plain) + 0.5 * bumps * (plain > 0)).clamp(0, 1)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_copies_are_all_found_beside_images_that_follow_their_hint(noise: float) -> None:
    train, held_out = textured_slices(24, seed=1), textured_slices(8, seed=2)
    found = nearness(copies(train, noise, 3), train, (as_hinted(held_out, 4), held_out.clean_NCHW))
    assert found.near_S.all()
    assert found.auc == 1.0


def shifted(image_NCHW: Tensor, down: int, right: int) -> Tensor:
    return image_NCHW.roll((down, right), (-2, -1))


def altered(image_NCHW: Tensor) -> Tensor:
    noise = torch.randn(image_NCHW.shape, generator=torch.Generator().manual_seed(0))
    return (0.8 * shifted(image_NCHW.flip(-1), 0, 1) + 0.1 + 0.02 * noise).clamp(0, 1)


MOVED: dict[str, Callable[[Tensor], Tensor]] = {
    "down": lambda image: shifted(image, 1, 0),
    "aslant": lambda image: shifted(image, -2, 2),
    "mirrored": lambda image: image.flip(-1),
    "mirrored, shifted, of other contrast and noisy": altered,
}


@pytest.mark.parametrize("way", MOVED)
def test_copies_that_were_moved_are_found_too(way: str) -> None:
    train, held_out = textured_slices(24, seed=1), textured_slices(8, seed=2)
    pairs = as_hinted(held_out, 4), held_out.clean_NCHW
    found = nearness(MOVED[way](train.clean_NCHW), train, pairs)
    assert found.moved_S.all()
    assert found.near_S.all()
    assert not nearness(as_hinted(train, 5), train, pairs).moved_S.any()


def test_the_nearest_of_all_moves_is_that_of_a_slower_search() -> None:
    images, known = textured_slices(3, seed=1).clean_NCHW, standardised(textured_slices(5, seed=2).clean_NCHW)
    distance, index = nearest_moved(images, known)
    wide = np.pad(images.numpy()[:, 0], ((0, 0), (2, 2), (2, 2)), mode="edge")
    offsets = [(down, right) for down in range(5) for right in range(5)]
    for row in range(len(images)):
        turned = wide[row, :, ::-1]
        ways = [wide[row, down : down + 32, right : right + 32] for down, right in offsets if (down, right) != (2, 2)]
        ways += [turned[down : down + 32, right : right + 32] for down, right in offsets]
        rows = standardised(torch.from_numpy(np.stack(ways)[:, None].copy()))
        slow = torch.cdist(rows, known).min(0).values
        assert float(distance[row]) == pytest.approx(float(slow.min()), abs=1e-5)
        assert int(index[row]) == int(slow.argmin())


def test_one_copy_among_images_that_are_none_is_the_one_that_is_found() -> None:
    train, held_out = textured_slices(24, seed=1), textured_slices(8, seed=2)
    images = as_hinted(train, 5)
    images[7] = (0.8 * train.clean_NCHW[3] + 0.1).clamp(0, 1)  # of other contrast
    found = nearness(images, train, (as_hinted(held_out, 4), held_out.clean_NCHW))
    assert found.near_S.nonzero()[:, 0].tolist() == [7]


def test_images_that_only_follow_their_hint_pass_though_they_are_near_their_slice() -> None:
    train, held_out = textured_slices(24, seed=1), textured_slices(8, seed=2)
    images = as_hinted(train, 5)
    found = nearness(images, train, (as_hinted(held_out, 4), held_out.clean_NCHW))
    assert (found.distance_S < found.real_distance_N.min()).float().mean() > 0.5, "nearer than patients are"
    assert not found.near_S.any()
    assert found.auc is not None
    assert 0.3 < found.auc < 0.7


def test_without_held_out_images_a_copy_is_half_as_far_as_patients_are() -> None:
    train = textured_slices(24, seed=1)
    found = nearness(copies(train, 0.02, 3), train)
    assert found.auc is None
    assert 0 < found.floor < 0.5
    assert found.near_S.all()
    assert not nearness(textured_slices(24, seed=9).clean_NCHW, train).near_S.any()


Sample = Callable[..., Tensor]


def by_memory(train: Slices, campaign: CampaignConfig) -> Sample:
    """An over-fitted generator in short: the training image whose hint is the nearest, with little noise."""

    def hints(slices: Slices) -> Tensor:
        masks = slices.mask_NHW.long()
        return hint_of(campaign.generate, slices.clean_NCHW, masks, len(campaign.data.masks), None).flatten(1)

    def sample(_: Generator, hint_BCHW: Tensor, *rest: Any, **__: Any) -> Tensor:
        seeds: Sequence[int] = rest[3]
        index_B = torch.cdist(hint_BCHW.flatten(1), hints(train)).argmin(1)
        noise = [torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return (train.clean_NCHW[index_B] + 0.02 * torch.stack(noise)).clamp(0, 1)

    return sample


def by_hint(_: Generator, hint_BCHW: Tensor, *rest: Any, **__: Any) -> Tensor:
    """A healthy one in short: bright inside the outline, edges where the hint has them, a texture of its own."""
    outline_BHW = hint_BCHW[:, 1] > 0
    inside = outline_BHW.cumsum(1).bool() & outline_BHW.flip(1).cumsum(1).flip(1).bool()
    images = []
    for place, seed in enumerate(rest[3]):
        fresh = textured_slices(1, seed=seed % 10_000).clean_NCHW[0] - 0.45
        images.append((0.45 + 0.3 * (hint_BCHW[place, :1] - 0.3) + TEXTURE * 0.6 * fresh) * inside[place])
    return torch.stack(images).clamp(0, 1)


def guarded(
    generator: Generator, campaign: CampaignConfig, machine: MachineConfig, held_out: Slices | None, **draw: Any
) -> Drawn:
    generate = replace(campaign.generate, draw=replace(campaign.generate.draw, **draw))
    train = textured_slices(16, seed=1)
    return draw_synthetic(
        generator, train, replace(campaign, generate=generate), machine, site="north", held_out=held_out
    )


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_generator_that_gives_its_training_images_back_is_refused_with_figure_and_way_out(
    calibrated: bool,
    campaign: CampaignConfig,
    machine: MachineConfig,
    generator: Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drawing, "sample", by_memory(textured_slices(16, seed=1), campaign))
    drawn = guarded(generator, campaign, machine, textured_slices(6, seed=2) if calibrated else None)
    assert drawn.report["refused"]
    assert drawn.report["memorised_share"] == 1.0
    assert "100.0% of the synthetic images are copies of training images, expected at most 5.0%" in str(
        drawn.report["reason"]
    )
    assert "train it for fewer rounds" in drawn.report["reason"]
    assert len(drawn.synthetic) == 0, "what lies too near is never used"


def test_a_healthy_generator_passes(
    campaign: CampaignConfig, machine: MachineConfig, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "sample", by_hint)
    drawn = guarded(generator, campaign, machine, textured_slices(6, seed=2))
    assert not drawn.report["refused"]
    assert drawn.report["memorised_share"] == 0
    assert len(drawn.synthetic) == 16 * VARIANTS
    assert drawn.report["nearness"]["held_out_images"] == 6 * VARIANTS


def test_copies_within_the_limit_are_left_out_and_the_others_used(
    campaign: CampaignConfig, machine: MachineConfig, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = by_memory(textured_slices(16, seed=1), campaign)
    calls: list[int] = []

    def sometimes(generator: Generator, hint_BCHW: Tensor, *rest: Any, **named: Any) -> Tensor:
        images = by_hint(generator, hint_BCHW, *rest, **named)
        if not calls:
            images[:2] = memory(generator, hint_BCHW[:2], *rest[:3], rest[3][:2])
        calls.append(1)
        return images

    monkeypatch.setattr(drawing, "sample", sometimes)
    drawn = guarded(generator, campaign, machine, textured_slices(6, seed=2), memorised_share=0.1)
    assert not drawn.report["refused"]
    assert drawn.report["memorised_share"] == pytest.approx(2 / 32)
    assert len(drawn.synthetic) == 30
    assert drawn.synthetic.source_S.tolist() == list(np.repeat(np.arange(1, 16), 2))


# ------------------------------------------------------------------------------------------- quality


def test_of_each_class_the_best_share_is_kept_rounded_up() -> None:
    score = torch.tensor([0.9, 0.1, 0.5, 0.2, 0.8, 0.3])
    diagnosis = torch.tensor([0, 0, 0, 1, 1, -1])
    everything = torch.ones(6, dtype=torch.bool)
    kept = best_of_each_class([score], diagnosis, everything, 0.5)
    assert kept.tolist() == [True, False, True, False, True, True]
    assert best_of_each_class([score], diagnosis, everything, 1.0).all()


def test_ranks_of_mask_and_edges_count_alike_whatever_their_scales() -> None:
    mask, edges = torch.tensor([0.99, 0.98, 0.10]), torch.tensor([0.0, 0.002, 0.001])
    kept = best_of_each_class([mask, edges], torch.zeros(3).long(), torch.ones(3, dtype=torch.bool), 0.3)
    assert kept.tolist() == [False, True, False]


def test_what_lay_too_near_takes_no_place_of_the_kept() -> None:
    left = torch.tensor([False, True, True, True])
    kept = best_of_each_class([torch.tensor([1.0, 0.3, 0.2, 0.1])], torch.zeros(4).long(), left, 0.5)
    assert kept.tolist() == [False, True, True, False]


def test_mask_agreement_is_the_mean_dice_and_1_where_nothing_is_there_and_nothing_found() -> None:
    mask = torch.zeros(3, 4, 4, dtype=torch.uint8)
    mask[0, :2], mask[1, :2] = 1, 1
    said = mask.clone().long()
    said[1] = 0
    said[1, 1:3] = 1
    assert mask_agreement(torch.zeros(3, 1, 4, 4), mask, 2, lambda _: said).tolist() == pytest.approx([1.0, 0.5, 1.0])


def test_outlines_are_both_sides_of_a_border_and_not_the_image_border() -> None:
    mask = torch.zeros(1, 5, 6, dtype=torch.uint8)
    mask[0, :, 3:] = 2
    expected = torch.zeros(5, 6, dtype=torch.bool)
    expected[:, 2:4] = True
    assert torch.equal(outlines(mask)[0, 0], expected)


def test_an_image_agrees_with_its_own_outlines_more_than_with_those_of_another() -> None:
    slices = disc_slices(6, seed=3)
    own = edge_agreement(slices.clean_NCHW, slices.clean_NCHW, slices.mask_NHW)
    others = edge_agreement(slices.clean_NCHW.roll(1, 0), slices.clean_NCHW, slices.mask_NHW)
    assert (own > others).all()
    unmasked = torch.zeros_like(slices.mask_NHW)
    assert edge_agreement(slices.clean_NCHW, slices.clean_NCHW, unmasked).tolist() == pytest.approx([1.0] * 6, abs=1e-4)


def test_the_segmenter_learns_masks_from_the_sites_real_images(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    segmenter = trained_segmenter(disc_slices(16), campaign, machine, site="north", steps=40)
    others = disc_slices(8, seed=5)
    assert float(mask_agreement(others.clean_NCHW, others.mask_NHW, 2, segmenter).mean()) > 0.7
    shuffled = mask_agreement(others.clean_NCHW.roll(1, 0), others.mask_NHW, 2, segmenter)
    assert float(shuffled.mean()) < 0.6


def test_with_a_filter_the_rejected_share_is_told_and_without_it_nothing_is_rejected(
    campaign: CampaignConfig, machine: MachineConfig, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "sample", by_hint)
    monkeypatch.setattr("client.generate.agreement.SEGMENTER_STEPS", 2)
    everything = guarded(generator, campaign, machine, None, memorised_share=1.0)
    half = guarded(generator, campaign, machine, None, keep=0.5, memorised_share=1.0)
    assert everything.report["rejected_share"] == 0
    assert everything.report["mask_dice"] is None
    assert half.report["rejected_share"] == pytest.approx(0.5)
    assert 0 <= half.report["mask_dice"] <= 1
    assert {name: row["used"] for name, row in half.report["classes"].items()} == {"none": 8, "lesion": 8}
