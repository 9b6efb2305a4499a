"""Hints against scipy's convolution of the published kernel and slow twins, and what may not depend on what."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import scipy.signal
import torch
from torch import Tensor

from shared.config import GenerateConfig
from shared.generate.edges import gaussian_edges
from shared.generate.hed import build_hed, hed_edges
from shared.generate.hints import box, hint_of, label_outline, outline
from shared.seeding import generator

MASKS = 3
SCHARR = np.array([[-3 - 3j, 0 - 10j, 3 - 3j], [-10, 0, 10], [-3 + 3j, 10j, 3 + 3j]])
OFF = GenerateConfig(edges="none", contour="none")


def labels() -> Tensor:
    """Three classes that touch one another and the image's border; the last image has no mask."""
    mask_BHW = torch.zeros(3, 32, 24, dtype=torch.int64)
    mask_BHW[0, 4:20, 5:18] = 1
    mask_BHW[0, 8:16, 8:14] = 2
    mask_BHW[0, 10:13, 9:12] = 3
    mask_BHW[1, 0:9, 0:7] = 3
    mask_BHW[1, 20:32, 15:24] = 2
    return mask_BHW


def images() -> Tensor:
    return torch.rand(3, 1, 32, 24, generator=generator(0, "hints"))


def test_outlines_of_labels_are_the_published_ones() -> None:
    for mask_HW, outline_HW in zip(labels().numpy(), label_outline(labels())[:, 0], strict=True):
        response = np.abs(scipy.signal.convolve2d(mask_HW, SCHARR, mode="same", boundary="symm"))
        np.testing.assert_array_equal(outline_HW, np.minimum(1, response))


def test_the_level_of_an_outline_tells_its_class() -> None:
    for mask_HW, outline_HW in zip(labels().numpy(), outline(labels(), MASKS)[:, 0], strict=True):
        expected = np.zeros(mask_HW.shape)
        for code in (1, 2, 3):
            own = np.abs(scipy.signal.convolve2d(mask_HW == code, SCHARR, mode="same", boundary="symm")) > 0
            expected[own] = code / MASKS
        np.testing.assert_allclose(outline_HW, expected, rtol=1e-6)
    assert outline(labels(), MASKS)[0].unique().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_a_box_holds_the_last_class_and_nothing_further() -> None:
    mask_BHW = labels()
    mask_BHW[0, 25, 3] = 3  # apart from the rest: one box around both
    found = box(mask_BHW, MASKS)[:, 0]
    expected = torch.zeros(3, 32, 24)
    for number, mask_HW in enumerate(mask_BHW):
        row, column = torch.nonzero(mask_HW == MASKS, as_tuple=True)
        if len(row):
            expected[number, row.min() : row.max() + 1, column.min() : column.max() + 1] = 1
    assert torch.equal(found, expected)
    assert found[2].count_nonzero() == 0


@pytest.mark.parametrize(
    ("edges", "contour", "boxed"),
    [way for way in product(("none", "gaussian", "hed"), ("none", "channel", "merged", "filled"), (False, True))
     if way != ("none", "none", False)],
)  # fmt: skip
def test_every_option_has_its_channels_in_the_order_of_the_config(edges: str, contour: str, boxed: bool) -> None:
    generate = GenerateConfig(kind="emit-diff", edges=edges, contour=contour, box=boxed)  # type: ignore[arg-type]
    hed = build_hed(1, None)
    hint_BCHW = hint_of(generate, images(), labels(), MASKS, hed)
    assert hint_BCHW.shape == (3, generate.hint_channels(MASKS), 32, 24)
    assert hint_BCHW.dtype == torch.float32
    assert hint_BCHW.min() >= 0
    assert hint_BCHW.max() <= 1
    expected = {"none": [], "gaussian": [gaussian_edges(images())], "hed": [hed_edges(hed, images())]}[edges]
    if contour == "merged":
        expected = [(torch.cat([*expected, label_outline(labels())], 1)).sum(1, keepdim=True).clamp(0, 1)]
    expected += [outline(labels(), MASKS)] if contour == "channel" else []
    if contour == "filled":
        expected += [torch.stack([labels() == code for code in range(MASKS + 1)], dim=1).float()]
    expected += [box(labels(), MASKS)] if boxed else []
    torch.testing.assert_close(hint_BCHW, torch.cat(expected, 1))
    assert torch.equal(hint_BCHW, hint_of(generate, images(), labels(), MASKS, hed)), "drawing sees what training saw"


@pytest.mark.parametrize("contour", ["channel", "filled"])
def test_an_image_without_mask_has_no_outline_and_no_box(contour: str) -> None:
    generate = replace(OFF, contour=contour, box=True)  # type: ignore[arg-type]
    known_B = torch.tensor([True, True, False])
    hint_BCHW = hint_of(generate, images(), labels(), MASKS, None, has_mask_B=known_B)
    assert hint_BCHW[2].count_nonzero() == 0
    assert hint_BCHW[:2].flatten(1).any(1).all()


def test_a_known_mask_of_background_is_told_from_no_mask() -> None:
    generate = replace(OFF, contour="filled")
    nothing_BHW = torch.zeros(3, 32, 24, dtype=torch.int64)
    known_B = torch.tensor([True, False, True])
    hint_BCHW = hint_of(generate, images(), nothing_BHW, MASKS, None, has_mask_B=known_B)
    assert hint_BCHW.flatten(1).sum(1).tolist() == [32 * 24, 0, 32 * 24]


def test_a_campaign_without_masks_has_empty_outlines() -> None:
    generate = replace(OFF, contour="channel", box=True)
    nothing_BHW = torch.zeros(3, 32, 24, dtype=torch.int64)
    assert hint_of(generate, images(), nothing_BHW, 0, None).count_nonzero() == 0


@pytest.mark.parametrize("contour", ["channel", "merged", "filled"])
def test_edges_of_a_relabelled_image_are_left_out_around_its_last_class_alone(contour: str) -> None:
    generate = GenerateConfig(kind="emit-diff", contour=contour)  # type: ignore[arg-type]
    relabelled_B = torch.tensor([True, False, True])
    usual = hint_of(generate, images(), labels(), MASKS, None)
    changed = hint_of(generate, images(), labels(), MASKS, None, relabelled_B=relabelled_B)
    near_HW = torch.zeros(32, 24, dtype=torch.bool)
    near_HW[8:15, 7:14] = True  # rows 10..12 and columns 9..11, and two pixels more on each side
    outline_HW = label_outline(labels())[0, 0] if contour == "merged" else torch.zeros(32, 24)
    assert torch.equal(changed[0, 0][near_HW], outline_HW[near_HW])
    assert torch.equal(changed[0, 0][~near_HW], usual[0, 0][~near_HW])
    assert torch.equal(changed[1:], usual[1:]), "not asked, and no last class"
    assert torch.equal(changed[:, 1:], usual[:, 1:]), "outlines stay"


def test_images_without_edges_keep_their_outlines() -> None:
    generate = GenerateConfig(kind="emit-diff", contour="merged")
    hint = hint_of(generate, images(), labels(), MASKS, None, without_edges_B=torch.tensor([True, False, False]))
    assert torch.equal(hint[:1], label_outline(labels())[:1])
    assert torch.equal(hint[1:], hint_of(generate, images(), labels(), MASKS, None)[1:])
