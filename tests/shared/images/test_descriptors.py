"""Descriptors against numpy and closed forms; a study like the release's is not called unusual."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from shared.images.descriptors import DESCRIPTORS, THRESHOLD, descriptors, how_unusual


def noise(sigma: float, *, count: int = 2, side: int = 64, seed: int = 0) -> Tensor:
    return 0.5 + sigma * torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(seed))


def test_moments_are_those_of_numpy() -> None:
    image = torch.rand(3, 1, 16, 20, generator=torch.Generator().manual_seed(1)) ** 2
    found, pixels = descriptors(image), image.double().flatten(1).numpy()
    assert tuple(found) == DESCRIPTORS
    centred = pixels - pixels.mean(1, keepdims=True)
    np.testing.assert_allclose(found["mean"], pixels.mean(1), rtol=1e-5)
    np.testing.assert_allclose(found["contrast"], pixels.std(1), rtol=1e-5)
    np.testing.assert_allclose(found["skewness"], (centred**3).mean(1) / pixels.std(1) ** 3, rtol=1e-4)
    np.testing.assert_allclose(found["foreground"], (pixels > 0.1).mean(1), rtol=1e-6)
    for values, entropy in zip(pixels, found["entropy"].tolist(), strict=True):
        share = np.histogram(values, 32, (0, 1))[0] / values.size
        assert entropy == pytest.approx(-(share[share > 0] * np.log2(share[share > 0])).sum(), rel=1e-5)


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1])
def test_the_noise_level_is_the_noise_that_was_added_also_over_edges(sigma: float) -> None:
    flat = noise(sigma)
    edged = flat.clone()
    edged[..., 20:40, 20:40] += 0.1
    for image in (flat, edged):
        np.testing.assert_allclose(descriptors(image)["noise"], sigma, rtol=0.08)


def test_a_plane_has_no_noise_and_a_known_slope() -> None:
    rows = torch.linspace(0.2, 0.8, 31)[None, None, :, None].expand(1, 1, 31, 31)
    found = descriptors(rows)
    assert float(found["noise"]) < 1e-6
    assert float(found["sharpness"]) == pytest.approx(0.02, rel=1e-4)


def test_a_chequered_image_is_all_fine_and_a_wave_of_two_periods_is_not() -> None:
    place = torch.arange(32)
    chequered = ((place[:, None] + place) % 2).float()[None, None]
    wave = (0.5 + 0.4 * torch.sin(2 * torch.pi * 2 * place / 32))[None, None, None].expand(1, 1, 32, 32)
    assert float(descriptors(chequered)["fine"]) == pytest.approx(1.0)
    assert float(descriptors(wave)["fine"]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_image_has_finite_descriptors(value: float) -> None:
    found = descriptors(torch.full((2, 1, 8, 8), value))
    assert all(bool(values.isfinite().all()) for values in found.values())
    assert {name: float(found[name][0]) for name in ("contrast", "skewness", "entropy", "fine", "noise")} == {
        **dict.fromkeys(("contrast", "skewness", "entropy", "fine", "noise"), pytest.approx(0.0, abs=1e-6))
    }


def test_an_image_is_described_alike_alone_and_among_others() -> None:
    images = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    together = descriptors(images)
    for number in range(5):
        for name, values in descriptors(images[number : number + 1]).items():
            torch.testing.assert_close(values[0], together[name][number])


RELEASE = {
    "mean": {"a": {"count": 50, "mean": 0.2, "std": 0.02}, "b": {"count": 50, "mean": 0.6, "std": 0.1}},
    "noise": {"a": {"count": 50, "mean": 0.1, "std": 0.0}, "b": {"count": 2, "mean": 0.5, "std": 1.0}},
}


def test_distances_are_taken_to_the_nearest_site_in_its_own_spread() -> None:
    far = how_unusual({"mean": 0.4, "noise": 0.1}, RELEASE)
    assert far.scores == pytest.approx({"mean": 2.0, "noise": 0.0})  # b: 0.2 / 0.1; a would be 10
    assert (far.unusual, far.why) == (False, ())


def test_what_lies_outside_is_named_largest_first() -> None:
    far = how_unusual({"mean": torch.tensor([1.4, 1.6]), "noise": 0.2, "unknown": 9.0}, RELEASE)
    assert far.scores == pytest.approx({"mean": 9.0, "noise": 20.0})  # a: a spread of 0 is 0.005
    assert far.unusual
    assert far.why == ("noise", "mean")
    assert min(far.scores.values()) > THRESHOLD


def test_without_anything_to_compare_nothing_is_unusual() -> None:
    assert not how_unusual({"mean": 5.0}, {}).unusual
