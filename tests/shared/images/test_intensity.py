from __future__ import annotations

import pytest
import torch

from shared.images.intensity import pad_or_crop, restored


@pytest.mark.parametrize("size", [(28, 28), (33, 31), (64, 20), (7, 90)])
def test_padding_is_undone_exactly(size: tuple[int, int]) -> None:
    image = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0))
    fitted = pad_or_crop(image, (96, 96))
    assert fitted.shape == (2, 1, 96, 96)
    assert torch.equal(pad_or_crop(fitted, size), image)
    assert float(fitted.sum()) == pytest.approx(float(image.sum()), rel=1e-5)


def test_the_centre_stays_the_centre() -> None:
    image = torch.zeros(28, 28)
    image[13:15, 13:15] = 1
    assert pad_or_crop(image, (32, 32))[15:17, 15:17].sum() == 4
    assert pad_or_crop(image, (8, 8))[3:5, 3:5].sum() == 4


@pytest.mark.parametrize("size", [(40, 20), (31, 33), (16, 64), (32, 32)])
def test_an_enhanced_image_goes_back_onto_its_own_grid(size: tuple[int, int]) -> None:
    original = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    enhanced = pad_or_crop(original, (32, 32)) + 1
    back = restored(enhanced, original)
    assert back.shape == original.shape
    changed = back - original
    kept = min(size[0], 32) * min(size[1], 32)
    # What the network saw is changed by exactly 1; what was cropped away is untouched.
    assert int((changed > 0.5).sum()) == kept
    assert torch.equal(back[changed < 0.5], original[changed < 0.5])
    assert float((changed[changed > 0.5] - 1).abs().max()) < 1e-6
