from __future__ import annotations

import pytest
import torch

from shared.batch import Batch


def test_micro_batches_are_the_batch_in_order() -> None:
    image = torch.arange(7.0).view(7, 1, 1, 1).expand(7, 1, 4, 4)
    numbers = torch.arange(7)
    batch = Batch(image, image + 10, numbers.view(7, 1, 1).expand(7, 4, 4), numbers > 3, numbers)
    parts = batch.micro_batches(3)
    assert [part.size for part in parts] == [3, 3, 1]
    for index, whole in enumerate(batch.tensors()):
        assert torch.equal(torch.cat([part.tensors()[index] for part in parts]), whole)
    assert batch.micro_batches(7) == [batch]
    assert batch.micro_batches(100) == [batch]


def test_channels_last_changes_the_layout_and_no_value() -> None:
    image = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    batch = Batch(image, image, torch.zeros(2, 4, 4).long(), torch.ones(2).bool(), torch.zeros(2).long())
    moved = batch.to(torch.device("cpu"), channels_last=True)
    assert moved.clean_BCHW.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved.clean_BCHW, image)


def with_kspace() -> Batch:
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(5, 1, 4, 4, generator=rng)
    rows = torch.rand(5, 4, generator=rng) > 0.5
    kspace = torch.fft.fft2(image) * rows[:, None, :, None]
    return Batch(image, image, torch.zeros(5, 4, 4).long(), torch.ones(5).bool(), torch.arange(5), kspace, rows)


def test_kspace_goes_where_its_images_go() -> None:
    batch = with_kspace()
    assert len(batch.tensors()) == 7
    moved = batch.to(torch.device("cpu"), channels_last=True)
    assert moved.measured_BCHW is not None
    assert moved.measured_BCHW.dtype == torch.complex64
    parts = moved.micro_batches(2)
    for index, whole in enumerate(batch.tensors()):
        assert torch.equal(torch.cat([part.tensors()[index] for part in parts]), whole)


def test_without_kspace_nothing_is_carried() -> None:
    plain = Batch(*with_kspace().tensors()[:5])
    assert len(plain.tensors()) == 5
    (first, *_) = plain.to(torch.device("cpu")).micro_batches(2)
    assert first.measured_BCHW is None
    assert first.acquired_BH is None


def test_kspace_without_its_rows_is_no_batch() -> None:
    with pytest.raises(AssertionError, match="comes with its rows"):
        Batch(*with_kspace().tensors()[:6])


def with_partners() -> Batch:
    rng = torch.Generator().manual_seed(0)
    image, other = torch.rand(2, 5, 3, 4, 4, generator=rng)
    real = torch.rand(5, 4, 4, generator=rng) > 0.5
    labels = torch.zeros(5, 4, 4).long(), torch.ones(5).bool(), torch.tensor([0, -1, 1, -1, 0])
    partners = torch.tensor([0, 1, 1, -1, -1])
    return Batch(image, image, *labels, synthetic_BCHW=other, synthetic_diagnosis_B=partners, real_cells_BHW=real)


def test_a_synthetic_image_goes_where_its_partner_goes() -> None:
    batch = with_partners()
    assert len(batch.tensors()) == 8
    moved = batch.to(torch.device("cpu"), channels_last=True)
    assert moved.synthetic_BCHW is not None
    assert moved.synthetic_BCHW.is_contiguous(memory_format=torch.channels_last)
    parts = moved.micro_batches(2)
    assert [part.size for part in parts] == [2, 2, 1]
    for index, whole in enumerate(batch.tensors()):
        assert torch.equal(torch.cat([part.tensors()[index] for part in parts]), whole)
    assert all(part.real_cells_BHW is not None for part in parts)


def test_a_pair_is_diagnosed_where_either_of_its_images_is() -> None:
    batch = with_partners()
    assert batch.diagnosed_B.tolist() == [True, True, True, False, True]
    assert Batch(*batch.tensors()[:5]).diagnosed_B.tolist() == [True, False, True, False, True]


def test_a_synthetic_image_without_its_cells_is_no_batch() -> None:
    with pytest.raises(AssertionError, match="with its diagnosis and its cells"):
        Batch(*with_partners().tensors()[:5], synthetic_BCHW=torch.zeros(5, 3, 4, 4))
