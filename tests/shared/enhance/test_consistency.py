"""The layer against linear algebra: it must be the projection onto the real images that agree with the measurement."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shared.batch import Batch
from shared.enhance.consistency import consistent, enhanced_image
from shared.images.degrade import KSpace, acquired_kspace, degrade_batch

SIZES = [(6, 5), (7, 8), (16, 16)]


def random_image(count: int, size: tuple[int, int], seed: int) -> Tensor:
    return torch.rand(count, 1, *size, generator=torch.Generator().manual_seed(seed))


def acquisitions(count: int, acceleration: float = 3.0) -> list[KSpace]:
    return [KSpace(acceleration, 0.1, seed) for seed in range(count)]


def kspace_batch(size: tuple[int, int] = (16, 16), count: int = 4, acceleration: float = 3.0) -> Batch:
    clean = random_image(count, size, seed=0)
    drawn = acquisitions(count, acceleration)
    no_mask, unknown = torch.zeros(count, *size).long(), torch.full((count,), -1)
    none = torch.zeros(count, dtype=torch.bool)
    return Batch(degrade_batch(clean, drawn), clean, no_mask, none, unknown, *acquired_kspace(clean, drawn))


class Wrong(nn.Module):
    """An enhancer that makes up everything."""

    def forward(self, image: Tensor) -> Tensor:
        return random_image(len(image), tuple(image.shape[-2:]), seed=99) + 0 * image


@pytest.mark.parametrize("size", SIZES)
def test_acquired_rows_are_the_measured_ones(size: tuple[int, int]) -> None:
    batch = kspace_batch(size)
    assert batch.acquired_BH is not None
    mirrored = batch.acquired_BH.flip(-1).roll(1, -1)
    assert not torch.equal(mirrored, batch.acquired_BH), "the rows must not be symmetric, or this proves little"
    found = torch.fft.fft2(enhanced_image(Wrong(), batch))
    rows = batch.acquired_BH[:, None, :, None].expand(found.shape)
    torch.testing.assert_close(found[rows], torch.fft.fft2(batch.clean_BCHW)[rows], rtol=0, atol=1e-5)


def test_the_real_part_alone_would_not_agree_with_the_measurement() -> None:
    """Why mirrored rows are replaced as well."""
    batch = kspace_batch()
    assert batch.acquired_BH is not None
    rows = batch.acquired_BH[:, None, :, None].expand(batch.clean_BCHW.shape)
    wrong = torch.fft.fft2(Wrong()(batch.degraded_BCHW))
    naive = torch.fft.fft2(torch.fft.ifft2(torch.where(rows, batch.measured_BCHW, wrong)).real)
    assert float((naive - torch.fft.fft2(batch.clean_BCHW))[rows].abs().max()) > 0.1


def projection(acquired_H: Tensor, size: tuple[int, int]) -> np.ndarray:
    """pinv(A) A of the real measurement matrix A: real and imaginary parts of every acquired frequency."""
    height, width = size
    fourier = np.kron(np.fft.fft(np.eye(height)), np.fft.fft(np.eye(width)))
    measured = fourier[np.repeat(acquired_H.numpy(), width)]
    matrix = np.concatenate([measured.real, measured.imag])
    return np.linalg.pinv(matrix) @ matrix


@pytest.mark.parametrize("size", [(6, 5), (7, 8)])
def test_it_is_the_projection_onto_all_real_images_that_agree(size: tuple[int, int]) -> None:
    batch = kspace_batch(size)
    assert batch.acquired_BH is not None
    image = random_image(4, size, seed=5)
    found = consistent(image, batch.measured_BCHW, batch.acquired_BH)  # type: ignore[arg-type]
    for given, clean, acquired, made in zip(image, batch.clean_BCHW, batch.acquired_BH, found, strict=True):
        onto = projection(acquired, size)
        error = (clean - given).double().numpy().ravel()
        expected = given.double().numpy().ravel() + onto @ error
        np.testing.assert_allclose(made.numpy().ravel(), expected, atol=1e-5)


def test_its_gradient_is_the_projection_of_what_comes_back() -> None:
    size = (6, 5)
    batch = kspace_batch(size)
    assert batch.acquired_BH is not None
    image = random_image(4, size, seed=5).requires_grad_(True)
    back = random_image(4, size, seed=6)
    made = consistent(image, batch.measured_BCHW, batch.acquired_BH)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad((made * back).sum(), image)
    for found, given, acquired in zip(gradient, back, batch.acquired_BH, strict=True):
        given_D = given.double().numpy().ravel()
        np.testing.assert_allclose(found.numpy().ravel(), given_D - projection(acquired, size) @ given_D, atol=1e-5)


def test_it_never_moves_away_from_the_clean_image() -> None:
    batch = kspace_batch()
    without = (Wrong()(batch.degraded_BCHW) - batch.clean_BCHW).square().sum((1, 2, 3))
    with_layer = (enhanced_image(Wrong(), batch) - batch.clean_BCHW).square().sum((1, 2, 3))
    assert bool((with_layer < without).all())


def test_it_is_the_identity_where_every_row_was_acquired() -> None:
    batch = kspace_batch(acceleration=1.0)
    assert batch.acquired_BH is not None
    assert bool(batch.acquired_BH.all())
    torch.testing.assert_close(enhanced_image(nn.Identity(), batch), batch.degraded_BCHW, rtol=0, atol=1e-6)
    torch.testing.assert_close(enhanced_image(Wrong(), batch), batch.clean_BCHW, rtol=0, atol=1e-6)


def test_a_consistent_image_stays_as_it_is() -> None:
    batch = kspace_batch()
    once = enhanced_image(Wrong(), batch)
    again = consistent(once, batch.measured_BCHW, batch.acquired_BH)  # type: ignore[arg-type]
    torch.testing.assert_close(again, once, rtol=0, atol=1e-6)


def test_it_is_real_and_float32_for_an_enhancer_of_half_precision() -> None:
    made = enhanced_image(nn.Identity(), kspace_batch().to(torch.device("cpu"), channels_last=True))
    assert made.dtype == torch.float32
    half = enhanced_image(_Half(), kspace_batch())
    assert half.dtype == torch.float32


class _Half(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.bfloat16()


def test_without_a_measurement_the_enhancers_own_image_comes_back() -> None:
    batch = kspace_batch()
    plain = Batch(*batch.tensors()[:5])
    image = Wrong()(plain.degraded_BCHW)
    assert torch.equal(enhanced_image(Wrong(), plain), image)
