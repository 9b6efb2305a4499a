"""Strong augmentation against Pillow's 8-bit operations, exact moves of pixels, and the law of the draw."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from shared.images.augment import Strong, draw_strong, moved, strengthened
from shared.seeding import generator

HEIGHT, WIDTH = 64, 56
POOL = ("autocontrast", "brightness", "contrast", "equalize", "identity", "posterize", "rotate", "sharpness", "shear_x",
        "shear_y", "solarize", "translate_x", "translate_y")  # fmt: skip


def scan(channels: int = 1) -> Tensor:
    """One image of 8-bit values: smooth, with noise, dark at its border as slices are."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    bright = [
        np.exp(-3 * (x**2 + (y - 0.1 * c) ** 2)) * 160 + 20 + rng.integers(0, 30, x.shape) for c in range(channels)
    ]
    return torch.from_numpy(np.stack(bright).clip(0, 255).astype(np.uint8))


def one(name: str, magnitude: float = 0.0) -> list[Strong]:
    return [Strong(((name, magnitude),))]


def ours(image_CHW: Tensor, name: str, magnitude: float = 0.0) -> Tensor:
    """The same operation on bytes, in levels."""
    return 255 * strengthened(image_CHW[None] / 255, one(name, magnitude))[0]


def pillow(image_CHW: Tensor) -> Image.Image:
    return Image.fromarray(image_CHW[0].numpy())


@pytest.mark.parametrize("value", [Strong(()), *one("identity"), *one("rotate", 0.0), *one("shear_x", 0.0)], ids=str)
def test_the_identity_and_a_rotation_by_0_are_the_identity(value: Strong) -> None:
    image = scan(2)[None] / 255
    torch.testing.assert_close(strengthened(image, [value]), image, rtol=0, atol=2e-5)
    assert torch.equal(strengthened(image, [Strong(())]), image)


def test_flips_translations_and_crops_are_exact() -> None:
    image = scan(2)[None] / 255
    assert torch.equal(strengthened(image, one("flip", 1.0)), image.flip(-1))
    right = strengthened(image, one("translate_x", 0.1))  # 5.6 px are 5
    assert torch.equal(right[..., 5:], image[..., :-5])
    assert float(right[..., :5].abs().max()) == 0
    up = strengthened(image, one("translate_y", -0.25))
    assert torch.equal(up[..., :-16, :], image[..., 16:, :])
    assert float(up[..., -16:, :].abs().max()) == 0
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4), mode="reflect")
    for down, across in ((-4, 4), (3, -1), (0, 0)):
        value = Strong((("crop_y", float(down)), ("crop_x", float(across))))
        expected = padded[..., 4 + down : 4 + down + HEIGHT, 4 + across : 4 + across + WIDTH]
        assert torch.equal(strengthened(image, [value]), expected)


@pytest.mark.parametrize("bits", [4, 5, 6, 7])
def test_posterize_is_pillows(bits: int) -> None:
    image = scan()
    expected = torch.from_numpy(np.array(ImageOps.posterize(pillow(image), bits)))
    torch.testing.assert_close(ours(image, "posterize", float(bits))[0], expected.float(), rtol=0, atol=0.01)


@pytest.mark.parametrize("level", range(1, 10))
def test_solarize_is_pillows(level: int) -> None:
    image, threshold = scan(), 256 - int(25.6 * level)
    expected = torch.from_numpy(np.array(ImageOps.solarize(pillow(image), threshold)))
    torch.testing.assert_close(ours(image, "solarize", threshold / 255)[0], expected.float(), rtol=0, atol=0.01)


def test_equalize_is_pillows_in_every_channel() -> None:
    image = scan(2)
    for channel in (0, 1):
        expected = torch.from_numpy(np.array(ImageOps.equalize(pillow(image[channel:]))))
        torch.testing.assert_close(ours(image, "equalize")[channel], expected.float(), rtol=0, atol=0.01)


def test_autocontrast_is_pillows_but_for_its_cutting_off_of_fractions() -> None:
    image = scan(2)
    for channel in (0, 1):
        expected = torch.from_numpy(np.array(ImageOps.autocontrast(pillow(image[channel:]))))
        assert float((ours(image, "autocontrast")[channel] - expected).abs().max()) < 1.01


@pytest.mark.parametrize("factor", [0.14, 0.5, 0.86])
@pytest.mark.parametrize("name", ["brightness", "contrast", "sharpness"])
def test_brightness_contrast_and_sharpness_are_pillows_within_its_rounding(name: str, factor: float) -> None:
    image = scan()
    enhancer = getattr(ImageEnhance, name.capitalize())(pillow(image))
    expected = torch.from_numpy(np.array(enhancer.enhance(factor))).float()
    assert float((ours(image, name, factor)[0] - expected).abs().max()) < 1.6


@pytest.mark.parametrize("degrees", [-27.0, 12.0, 90.0])
def test_rotation_is_pillows_inside_of_the_border(degrees: float) -> None:
    image = scan()
    expected = torch.from_numpy(np.array(pillow(image).rotate(degrees, resample=Image.Resampling.BILINEAR))).float()
    inside = torch.from_numpy(np.array(Image.new("L", (WIDTH, HEIGHT), 255).rotate(degrees))) > 0
    inside = -torch.nn.functional.max_pool2d(-inside[None].float(), 5, 1, 2)[0] > 0
    assert float((ours(image, "rotate", degrees)[0] - expected)[inside].abs().max()) < 1.6
    assert float(inside.float().mean()) > 0.5


@pytest.mark.parametrize(("name", "flat"), [("equalize", 0.4), ("autocontrast", 0.4), ("autocontrast", 1.0)])
def test_a_constant_image_stays_and_its_gradient_is_finite(name: str, flat: float) -> None:
    image = torch.full((1, 2, 16, 16), flat, requires_grad=True)
    result = strengthened(image, one(name))
    assert torch.equal(result, image)
    (gradient,) = torch.autograd.grad(result.sum(), image)
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("name", [*POOL, "flip", "crop_x", "crop_y"])
def test_gradient_flows_through_every_operation(name: str) -> None:
    magnitude = {"rotate": 20.0, "posterize": 4.0, "crop_x": 3.0, "crop_y": -2.0}.get(name, 0.2)
    image = (0.1 + 0.8 * scan(2)[None] / 255).requires_grad_()
    (gradient,) = torch.autograd.grad(strengthened(image, one(name, magnitude)).sum(), image)
    assert float((gradient != 0).float().mean()) > 0.5
    if name in ("posterize", "equalize"):  # straight through: where the result is not clamped, that of the identity
        assert torch.equal(gradient, torch.ones_like(gradient))
    if name == "solarize":
        assert torch.equal(gradient, torch.where(image < magnitude, 1.0, -1.0))


def test_smooth_operations_have_the_derivative_of_finite_differences() -> None:
    rng = generator(0, "gradcheck")
    image = (0.3 + 0.4 * torch.rand(1, 2, 8, 7, generator=rng, dtype=torch.float64)).requires_grad_()
    # The clamp at 0 and 1 has a corner where autocontrast puts its extremes: it is scaled down by what follows it.
    operations = (("contrast", 0.6), ("crop_x", 2.0), ("autocontrast", 0.0), ("sharpness", 0.3), ("rotate", 17.0))
    assert torch.autograd.gradcheck(lambda x: strengthened(x, [Strong((*operations, ("brightness", 0.9)))]), image)


def test_results_lie_in_0_1_and_nan_stays_nan() -> None:
    rng = generator(0, "wild")
    image = 3 * torch.randn(len(POOL), 2, 32, 24, generator=rng)
    values = [Strong(((name, 0.5 if name != "posterize" else 4.0),)) for name in POOL]
    result = strengthened(image, values)
    assert 0 <= float(result.min()) <= float(result.max()) <= 1
    broken = torch.full((2, 1, 32, 24), math.nan)
    assert bool(strengthened(broken, [*one("equalize"), *one("posterize", 4.0)]).isnan().all())


def test_an_image_gets_its_own_value_whatever_the_batch() -> None:
    rng = generator(0, "batch")
    images, values = torch.rand(8, 2, 32, 24, generator=rng), [draw_strong(rng) for _ in range(8)]
    together = strengthened(images, values)
    for i in range(8):
        assert torch.equal(together[i], strengthened(images[i : i + 1], values[i : i + 1])[0])
    assert torch.equal(together, strengthened(images, values))


def blob(row: int, column: int) -> Tensor:
    mask = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.int64)
    mask[0, row - 4 : row + 5, column - 4 : column + 5] = 2
    return mask


def centroid(weight_HW: Tensor) -> Tensor:
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return torch.stack([(weight_HW * y).sum(), (weight_HW * x).sum()]) / weight_HW.sum()


@pytest.mark.parametrize(
    "operations",
    [
        (("rotate", 27.0),),
        (("shear_x", 0.27),),
        (("shear_y", -0.27),),
        (("translate_x", -0.2), ("rotate", -15.0)),
        (("flip", 1.0), ("crop_y", 3.0), ("crop_x", -4.0), ("brightness", 0.5), ("translate_y", 0.1)),
    ],
)
def test_a_mask_follows_its_image(operations: tuple[tuple[str, float], ...]) -> None:
    mask, value = blob(24, 34), Strong(operations)
    image = strengthened((mask > 0)[:, None].float(), [value])[0, 0]
    found, valid = moved(mask, [value])
    assert found.dtype == torch.int64
    assert set(found.flatten().tolist()) == {0, 2}
    torch.testing.assert_close(centroid((found[0] > 0).float()), centroid(image), rtol=0, atol=0.15)
    assert valid.shape == found.shape
    assert bool(valid[found > 0].all())
    as_probabilities, also_valid = moved(torch.stack([mask == 0, mask > 0], dim=1).float(), [value])
    assert torch.equal(as_probabilities[:, 1] > 0.5, found > 0)
    assert torch.equal(also_valid, valid)
    assert float(as_probabilities.sum(1)[~valid].abs().sum()) == 0


def test_the_way_of_a_rotation_and_a_shear_is_known() -> None:
    # 10 px right of the centre, turned by 30 degrees counter-clockwise: 5 px up.
    start, middle = blob(32, 38), torch.tensor([31.5, 27.5])
    expected = middle + torch.tensor(
        [0.5 * math.cos(math.radians(30)) - 10.5 * 0.5, 10.5 * math.cos(math.radians(30)) + 0.25]
    )
    torch.testing.assert_close(centroid(moved(start, one("rotate", 30.0))[0][0].float()), expected, rtol=0, atol=0.2)
    low = blob(48, 28)
    torch.testing.assert_close(
        centroid(moved(low, one("shear_x", 0.2))[0][0].float()), torch.tensor([48.0, 28 + 0.2 * 16.5]), rtol=0, atol=0.2
    )


def test_what_comes_from_outside_is_not_valid_and_a_mirrored_border_is() -> None:
    mask = torch.ones(1, HEIGHT, WIDTH, dtype=torch.int64)
    found, valid = moved(mask, one("translate_x", 0.25))
    assert int((~valid).sum()) == 14 * HEIGHT
    assert torch.equal(found == 0, ~valid)
    assert bool(moved(mask, one("crop_x", 4.0))[1].all())


def test_the_same_seed_draws_the_same_value_and_json_keeps_it() -> None:
    values = [draw_strong(rng) for rng in [generator(0, "draw")] for _ in range(50)]
    assert values == [draw_strong(rng) for rng in [generator(0, "draw")] for _ in range(50)]
    for value in values:
        read = json.loads(json.dumps(asdict(value)))
        assert Strong(tuple((name, magnitude) for name, magnitude in read["operations"])) == value


def test_the_draw_has_the_shares_and_the_ranges_of_the_released_code() -> None:
    rng, count = generator(0, "shares"), 4000
    values = [draw_strong(rng).operations for _ in range(count)]
    names = Counter(name for operations in values for name, _ in operations)
    assert names["flip"] / count == pytest.approx(0.5, abs=0.03)
    for name in POOL:  # two chances of 1/13, each taken half of the time
        assert names[name] / count == pytest.approx(1 / 13, abs=0.02), name
    assert set(names) == {*POOL, "flip", "crop_x", "crop_y"}
    found = {name: {m for operations in values for n, m in operations if n == name} for name in names}
    assert found["crop_x"] == set(range(-4, 5))
    assert found["posterize"] == {4, 5, 6, 7}
    assert sorted(round(m) for m in found["rotate"]) == [
        s * 3 * i for s, r in ((-1, range(9, 0, -1)), (1, range(1, 10))) for i in r
    ]
    assert (min(found["brightness"]), max(found["brightness"])) == pytest.approx((0.14, 0.86))
    assert max(map(abs, found["shear_x"] | found["translate_y"])) == pytest.approx(0.27)
    assert {round(255 * m) for m in found["solarize"]} == {256 - int(25.6 * v) for v in range(1, 10)}
