"""Classical augmentation against scipy's resampling, exact quarter turns, and the law of the draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from shared.config.generation import AUGMENTATIONS
from shared.images.classical import (
    CONTRAST,
    DEGREES,
    MAGNIFICATION,
    NOISE_SPREAD,
    Classical,
    draw_classical,
    varied,
    varied_masks,
)
from shared.seeding import generator

HEIGHT, WIDTH = 24, 20


def images(count: int = 3, channels: int = 2, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))


def masks(count: int = 3) -> Tensor:
    return torch.randint(0, 4, (count, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def drawn(kind: str, count: int = 400) -> list[Classical]:
    rng = generator(0, "classical", "test")
    return [draw_classical(kind, rng) for _ in range(count)]


def twin(image_HW: Tensor, value: Classical, order: int) -> np.ndarray:
    """scipy: the same rotation and magnification about the centre, in double precision."""
    turn = math.radians(value.degrees)
    # Rows count downwards, so that a turn counter-clockwise reads clockwise from the source.
    matrix = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]) / value.magnified
    centre = (np.array(image_HW.shape) - 1) / 2
    padded = np.pad(image_HW.numpy().astype(np.float64), 4)  # zeros beyond the border, also between it and the outside
    found = ndimage.affine_transform(
        padded, matrix, centre + 4 - matrix @ (centre + 4), order=order, mode="constant", prefilter=False
    )
    return np.asarray(found[4:-4, 4:-4])


MOVES = (Classical(degrees=4.2), Classical(degrees=-5.0), Classical(magnified=1.05), Classical(magnified=0.96),
         Classical(degrees=3.1, magnified=0.97))  # fmt: skip


@pytest.mark.parametrize("value", MOVES, ids=str)
def test_rotation_and_scale_are_those_of_scipy(value: Classical) -> None:
    image, mask = images(1), masks(1)
    found = varied(image, [value])[0]
    for channel in range(2):
        # Positions in half-sides are rounded to single precision.
        np.testing.assert_allclose(found[channel].numpy(), twin(image[0, channel], value, 1), rtol=0, atol=2e-5)
    codes = varied_masks(mask, [value])
    assert codes.dtype == torch.uint8
    # Nearest neighbour of a point half-way between two pixels is anybody's.
    assert (codes[0].numpy() == twin(mask[0], value, 0).round()).mean() > 0.99


def test_quarter_turns_are_exact_and_counter_clockwise() -> None:
    image = images(2, 1, 16, 16)
    mask = masks(2)[:, :16, :16]
    for turns in (1, 2, 3):
        values = [Classical(degrees=90.0 * turns)] * 2
        torch.testing.assert_close(varied(image, values), torch.rot90(image, turns, (2, 3)), rtol=0, atol=1e-5)
        assert torch.equal(varied_masks(mask, values), torch.rot90(mask, turns, (1, 2)))


def test_twice_as_large_shows_the_middle_and_half_as_large_leaves_the_border_empty() -> None:
    square = torch.zeros(1, 1, 16, 16)
    square[..., 4:12, 4:12] = 1
    assert float(varied(square, [Classical(magnified=2.0)])[..., 1:-1, 1:-1].min()) == 1
    small = varied(torch.ones(1, 1, 16, 16), [Classical(magnified=0.5)])
    assert float(small[..., 5:11, 5:11].min()) == 1
    assert float(small[..., :3, :].max()) == 0
    assert varied_masks(torch.full((1, 16, 16), 3), [Classical(magnified=0.5)]).sum() == 3 * 64


def test_an_image_whose_value_is_none_keeps_every_bit_beside_others_that_move() -> None:
    image, mask = images(), masks()
    assert varied(image, [Classical()] * 3).equal(image)
    assert varied_masks(mask, [Classical()] * 3).equal(mask)
    values = [Classical(degrees=3.0), Classical(), Classical(contrast=0.8)]
    before = image.clone()
    found, codes = varied(image, values), varied_masks(mask, values)
    assert found[1].equal(image[1])
    assert codes[1:].equal(mask[1:])
    assert not found[0].equal(image[0])
    assert image.equal(before)


def test_an_image_and_its_mask_move_alike() -> None:
    disc = torch.zeros(1, 32, 32, dtype=torch.int64)
    disc[:, 8:14, 18:27] = 1
    for value in drawn("emit-diff+spatial", 20):
        found = varied(disc[:, None].float(), [value])[0, 0]
        code = varied_masks(disc, [value])[0]
        assert bool((found[code == 1] >= 0.2).all())
        assert bool((found[code == 0] <= 0.8).all())


def test_contrast_keeps_the_mean_of_each_channel_and_scales_its_spread() -> None:
    image = 0.3 + 0.4 * images()  # nothing reaches a border of [0, 1]
    for factor in (0.75, 1.1, 1.25):
        found = varied(image, [Classical(contrast=factor)] * 3)
        torch.testing.assert_close(found.mean((2, 3)), image.mean((2, 3)))
        torch.testing.assert_close(found.std((2, 3)), factor * image.std((2, 3)))
    assert float(varied(images(), [Classical(contrast=1.25)] * 3).min()) >= 0


@pytest.mark.parametrize("spread", [0.01, 0.05])
def test_noise_has_the_spread_that_was_drawn_and_no_mean(spread: float) -> None:
    grey = torch.full((2, 1, 200, 200), 0.5)
    noise = varied(grey, [Classical(noise_spread=spread, noise_seed=seed) for seed in (1, 2)]) - grey
    assert float(noise.mean()) == pytest.approx(0, abs=5 * spread / math.sqrt(80_000))
    assert float(noise.std()) == pytest.approx(spread, rel=0.02)
    assert abs(float((noise[0] * noise[1]).mean())) < 0.03 * spread**2  # every image has noise of its own
    assert varied(grey, [Classical(noise_spread=0.5, noise_seed=1)] * 2).min() == 0  # clamped


def test_draws_fill_the_published_ranges_and_nothing_else() -> None:
    for kind, field, (low, high) in (
        ("contrast", "contrast", CONTRAST),
        ("noise", "noise_spread", NOISE_SPREAD),
        ("rotate", "degrees", DEGREES),
        ("scale", "magnified", MAGNIFICATION),
    ):
        values = drawn(kind)
        found = [getattr(value, field) for value in values]
        assert low <= min(found) < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < max(found) <= high
        assert np.mean(found) == pytest.approx((low + high) / 2, abs=0.06 * (high - low))
        untouched = {"degrees", "magnified", "contrast", "noise_spread"} - {field}
        assert all(getattr(value, name) == getattr(Classical(), name) for value in values for name in untouched)
    assert CONTRAST + NOISE_SPREAD + DEGREES + MAGNIFICATION == (0.75, 1.25, 0, 0.05, -5, 5, 0.95, 1.05)


def test_half_of_the_stacked_images_have_each_operation_with_the_values_of_the_operation_alone() -> None:
    stack = drawn("deepstack")
    for kind, field in (("rotate", "degrees"), ("scale", "magnified"), ("contrast", "contrast"),
                        ("noise", "noise_spread")):  # fmt: skip
        pairs = [(getattr(each, field), getattr(alone, field)) for each, alone in zip(stack, drawn(kind), strict=True)]
        none = getattr(Classical(), field)
        assert 160 < sum(a != none for a, _ in pairs) < 240
        assert all(a == b for a, b in pairs if a != none)
    assert 10 < sum(value == Classical() for value in stack) < 45  # a sixteenth of 400 is 25


def test_what_is_synthetic_or_none_is_not_toned_and_every_kind_is_known() -> None:
    assert set(drawn("none")) == set(drawn("emit-diff")) == {Classical()}
    spatial = drawn("emit-diff+spatial")
    assert all(value.moves and value.contrast == 1 and value.noise_spread == 0 for value in spatial)
    for kind in set(AUGMENTATIONS) - {"none", "emit-diff"}:
        assert set(drawn(kind)) != {Classical()}
