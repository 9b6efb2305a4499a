"""Gaussian edges against scipy's filters, and what a flat, a small and a brighter image must give."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from shared.generate.edges import FULL, SIGMAS_PX, gaussian_edges, gradient_magnitude, quantile, symmetric_pad
from shared.seeding import generator


def images(channels: int = 1, height: int = 40, width: int = 24) -> Tensor:
    return torch.rand(3, channels, height, width, generator=generator(0, "edges"), dtype=torch.float64)


@pytest.mark.parametrize("sigma", SIGMAS_PX)
@pytest.mark.parametrize("size", [(40, 24), (8, 8)], ids=["40x24", "smaller than the kernel"])
def test_the_gradient_magnitude_is_that_of_scipy(sigma: float, size: tuple[int, int]) -> None:
    image_BCHW = images(2, *size)
    expected = [
        [scipy.ndimage.gaussian_gradient_magnitude(plane, sigma) for plane in image] for image in image_BCHW.numpy()
    ]
    np.testing.assert_allclose(gradient_magnitude(image_BCHW, sigma), expected, atol=1e-12)


def test_edges_are_the_largest_gradient_over_its_99th_percentile() -> None:
    image_BCHW = images(3)
    for image_CHW, edges_HW in zip(image_BCHW.numpy(), gaussian_edges(image_BCHW)[:, 0], strict=True):
        every = [scipy.ndimage.gaussian_gradient_magnitude(plane, s) for plane in image_CHW for s in SIGMAS_PX]
        largest = np.max(every, axis=0)
        np.testing.assert_allclose(edges_HW, np.minimum(largest / np.percentile(largest, 99), 1), atol=1e-12)


def test_a_flat_image_has_no_edges_at_all() -> None:
    flat_BCHW = torch.tensor([0.0, 0.1, 0.7, 1.0])[:, None, None, None].expand(4, 1, 32, 32)
    assert gaussian_edges(flat_BCHW).count_nonzero() == 0


def test_an_image_with_a_single_bright_pixel_has_edges_within_0_and_1() -> None:
    image_BCHW = torch.zeros(1, 1, 64, 64)
    image_BCHW[0, 0, 30, 30] = 1
    edges = gaussian_edges(image_BCHW)
    assert edges.isfinite().all()
    assert 0 <= edges.min() < edges.max() <= 1


def test_edges_do_not_change_with_brightness_and_contrast() -> None:
    image_BCHW = images()
    torch.testing.assert_close(gaussian_edges(0.3 * image_BCHW + 0.5), gaussian_edges(image_BCHW))


def test_an_image_has_the_same_edges_alone_and_in_a_batch() -> None:
    image_BCHW = images().float()
    together = gaussian_edges(image_BCHW)
    assert together.shape == (3, 1, 40, 24)
    alone = torch.cat([gaussian_edges(image_BCHW[[place]]) for place in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_a_step_has_its_edge_at_the_step() -> None:
    image_BCHW = torch.zeros(1, 1, 32, 32)
    image_BCHW[..., 12:] = 1
    row_W = gaussian_edges(image_BCHW)[0, 0, 16]
    assert row_W[11] == row_W[12] == 1
    assert row_W[2] < 0.02
    assert (row_W[:12].diff() >= 0).all()


@pytest.mark.parametrize("margin", [0, 1, 5, 13])
def test_symmetric_padding_is_that_of_numpy(margin: int) -> None:
    image_BCHW = images(1, 5, 3)
    padded = np.pad(image_BCHW.numpy(), ((0, 0), (0, 0), (margin, margin), (2, 2)), mode="symmetric")
    np.testing.assert_array_equal(symmetric_pad(image_BCHW, margin, 2), padded)


def test_quantiles_are_those_of_numpy() -> None:
    value_BN = torch.rand(4, 37, generator=generator(0, "quantiles"), dtype=torch.float64)
    np.testing.assert_allclose(quantile(value_BN, FULL), np.quantile(value_BN.numpy(), FULL, axis=1), atol=1e-12)
