"""Images and masks on the campaign's grid: centre padding or cropping, and back."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def pad_or_crop(image: Tensor, size_HW: tuple[int, int], fill: float = 0.0) -> Tensor:
    """The last two axes brought to `size_HW` about the centre; 0 is the low end of the scale and background.

    Where the difference is odd the extra row or column goes to the end, so that cropping undoes padding exactly.
    """
    height, width = image.shape[-2:]
    top, bottom = _margins(height, size_HW[0])
    left, right = _margins(width, size_HW[1])
    return F.pad(image, (left, right, top, bottom), value=fill)


def restored(image: Tensor, original: Tensor) -> Tensor:
    """Undo `pad_or_crop` of `original`: what was padded is cut off, what was cropped keeps the original's pixels."""
    height, width = original.shape[-2:]
    top, _ = _margins(height, image.shape[-2])
    left, _ = _margins(width, image.shape[-1])
    whole = original.clone()
    rows = slice(max(-top, 0), max(-top, 0) + min(height, image.shape[-2]))
    columns = slice(max(-left, 0), max(-left, 0) + min(width, image.shape[-1]))
    whole[..., rows, columns] = pad_or_crop(image, (height, width))[..., rows, columns].to(whole.dtype)
    return whole


def _margins(size: int, wanted: int) -> tuple[int, int]:
    """Rows to add before and after; negative ones are cut."""
    before = (wanted - size) // 2 if wanted >= size else -((size - wanted) // 2)
    return before, wanted - size - before
