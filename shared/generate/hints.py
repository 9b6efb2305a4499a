"""Images and masks in, hints out: the edges, outlines, masks and boxes that a ControlNet steers by.

Channels, in this order, of GenerateConfig.hint_channels: edges (with outlines in them, where contour=merged), outlines
by class (contour=channel) or background and classes (filled), box. An image that has no mask has none of the last two.
The same function makes the hints of training and of drawing, so that both see the same, and nothing in it is random.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.config import GenerateConfig
from shared.generate.edges import gaussian_edges, symmetric_pad

ERASED_PX = 2
"""How far beyond the mask's last class edges are erased where another diagnosis is asked for."""


def hint_of(
    generate: GenerateConfig,
    image_BCHW: Tensor,
    mask_BHW: Tensor,
    num_masks: int,
    hed: nn.Module | None,
    *,
    has_mask_B: Tensor | None = None,
    without_edges_B: Tensor | None = None,
    relabelled_B: Tensor | None = None,
) -> Tensor:
    """(B, hint_channels, H, W) in [0, 1], from images on the campaign's scale and masks of codes 0 .. `num_masks`.

    `has_mask_B`: images whose mask is known (None: all); of one that is not, a mask of background says nothing.
    `without_edges_B`: images that have no edges. `relabelled_B`: images for which another diagnosis is asked, whose
    edges in and within 2 px of the mask's last class (what the diagnosis is of) are left out; its outline stays.
    """
    channels = []
    if generate.edges != "none":
        edges_B1HW = _edges(generate, image_BCHW, hed)
        if without_edges_B is not None:
            edges_B1HW = edges_B1HW * ~without_edges_B[:, None, None, None]
        if relabelled_B is not None:
            edges_B1HW = edges_B1HW * ~(relabelled_B[:, None, None, None] & _around_last(mask_BHW, num_masks))
        channels.append(edges_B1HW)
    if generate.contour == "merged":
        outline_B1HW = label_outline(mask_BHW).to(image_BCHW)
        channels = [(edges_B1HW + outline_B1HW).clamp(0, 1) for edges_B1HW in channels] or [outline_B1HW]
    if generate.contour == "channel":
        channels.append(outline(mask_BHW, num_masks).to(image_BCHW))
    if generate.contour == "filled" and num_masks:
        known_B = has_mask_B if has_mask_B is not None else torch.ones(len(mask_BHW), dtype=torch.bool)
        filled_BKHW = filled(mask_BHW, num_masks) * known_B.to(mask_BHW.device)[:, None, None, None]
        channels.append(filled_BKHW.to(image_BCHW))
    if generate.box:
        channels.append(box(mask_BHW, num_masks).to(image_BCHW))
    hint_BCHW = torch.cat(channels, dim=1)
    assert hint_BCHW.shape[1] == generate.hint_channels(num_masks)
    return hint_BCHW


def label_outline(mask_BHW: Tensor) -> Tensor:
    """(B, 1, H, W), 0 or 1: min(1, |y * K|) of the label map y with the complex Scharr kernel K, as published: both
    pixels of a border between labels, whichever they are. The image's border is none."""
    padded_B1HW = symmetric_pad(mask_BHW[:, None].float(), 1, 1)
    across = torch.tensor([[-3.0, 0.0, 3.0], [-10.0, 0.0, 10.0], [-3.0, 0.0, 3.0]], device=mask_BHW.device)
    slope_B2HW = F.conv2d(padded_B1HW, torch.stack([across, across.T])[:, None])
    return torch.hypot(slope_B2HW[:, :1], slope_B2HW[:, 1:]).clamp(max=1)


def outline(mask_BHW: Tensor, num_masks: int) -> Tensor:
    """(B, 1, H, W): the outline of each class at a level of its own, code / `num_masks`; where outlines of classes meet
    that of the higher code stands."""
    levels_B1HW = [label_outline(mask_BHW == code) * (code / num_masks) for code in range(1, num_masks + 1)]
    none_B1HW = torch.zeros(mask_BHW.shape, device=mask_BHW.device)[:, None]
    return torch.stack([none_B1HW, *levels_B1HW]).amax(0)


def filled(mask_BHW: Tensor, num_masks: int) -> Tensor:
    """(B, num_masks + 1, H, W), 0 or 1: background and classes, a channel each."""
    codes_K = torch.arange(num_masks + 1, device=mask_BHW.device)
    return (mask_BHW[:, None] == codes_K[:, None, None]).float()


def box(mask_BHW: Tensor, num_masks: int) -> Tensor:
    """(B, 1, H, W): 1 in the bounding box of the last class, 0 elsewhere."""
    last_BHW = _last(mask_BHW, num_masks)
    rows_BH1, columns_B1W = last_BHW.any(2)[:, :, None], last_BHW.any(1)[:, None, :]
    return (_between(rows_BH1, 1) & _between(columns_B1W, 2)).float()[:, None]


def _between(found: Tensor, dim: int) -> Tensor:
    """From the first to the last that is found."""
    count = found.long()
    return (count.cumsum(dim) > 0) & (count.flip(dim).cumsum(dim).flip(dim) > 0)


def _last(mask_BHW: Tensor, num_masks: int) -> Tensor:
    return (mask_BHW == num_masks) & (num_masks > 0)


def _around_last(mask_BHW: Tensor, num_masks: int) -> Tensor:
    last_B1HW = _last(mask_BHW, num_masks).float()[:, None]
    return F.max_pool2d(last_B1HW, 2 * ERASED_PX + 1, stride=1, padding=ERASED_PX) > 0


def _edges(generate: GenerateConfig, image_BCHW: Tensor, hed: nn.Module | None) -> Tensor:
    if generate.edges == "gaussian":
        return gaussian_edges(image_BCHW)
    from shared.generate.hed import hed_edges

    assert hed is not None
    return hed_edges(hed, image_BCHW)
