"""A cell's pictures say which images they are of, are PNG files, and stay small."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from client.dataset import SiteData, Slices
from client.reading import Reading
from server.charts import MASK_COLOURS
from shared.config import CampaignConfig, DegradeConfig, LearnConfig, MachineConfig, ObjectiveConfig
from shared.networks import build_networks
from simulation.study import pictures
from simulation.study.pictures import cell_pictures
from tests.client.slices import disc_slices

MULTIMIX = LearnConfig(kind="multimix", saliency=True)


def alone(campaign: CampaignConfig, learn: LearnConfig) -> CampaignConfig:
    return replace(
        campaign,
        degrade=DegradeConfig(kind="none"),
        enhance=replace(campaign.enhance, kind="none"),
        objective=ObjectiveConfig(kind="plain"),
        learn=learn,
    )


def site(test: Slices) -> SiteData:
    return SiteData("a", test, test, test, {})


def picture_of(uri: str) -> np.ndarray:
    assert uri.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))


@pytest.mark.parametrize(
    ("learn", "kinds"),
    [
        (LearnConfig(), {"contours", "saliency"}),
        (LearnConfig(kind="unet", diagnose=False), {"contours", "similarity", "attention"}),
        (LearnConfig(kind="enc", segment=False), {"contours", "saliency", "similarity", "attention"}),
        (MULTIMIX, {"contours", "saliency", "similarity", "attention"}),
    ],
    ids=["supervised", "unet", "enc", "multimix"],
)
def test_every_way_of_learning_has_its_pictures(
    campaign: CampaignConfig, machine: MachineConfig, learn: LearnConfig, kinds: set[str]
) -> None:
    each = alone(campaign, learn)
    found = cell_pictures(build_networks(each), site(disc_slices(6)), each, machine)
    assert {picture["kind"] for picture in found} == kinds
    assert [picture["kind"] for picture in found].count("contours") == 2
    assert all(picture.keys() == {"kind", "caption", "uri"} for picture in found)
    assert all(picture_of(picture["uri"]).size for picture in found)
    by = "Dice" if learn.segment else "probability of the true diagnosis"
    assert found[0]["caption"].startswith(f"The median test image by {by};")
    assert found[1]["caption"].startswith(f"The worst test image by {by};")


def test_attention_unet_shows_its_gates_too(campaign: CampaignConfig, machine: MachineConfig) -> None:
    each = alone(campaign, LearnConfig(kind="umtl"))
    each = replace(each, recognise=replace(each.recognise, kind="attention-unet"))
    found = cell_pictures(build_networks(each), site(disc_slices(6)), each, machine)
    attention = [picture["caption"] for picture in found if picture["kind"] == "attention"]
    assert len(attention) == 2
    assert attention[1].startswith("What each gate lets pass of its skip")


def test_oblong_images_in_colour_with_many_classes_are_shown(campaign: CampaignConfig, machine: MachineConfig) -> None:
    masks = tuple(f"class {number}" for number in range(1, 9))
    data = replace(campaign.data, image_size=(32, 24), channels=3, masks=masks)
    each = alone(replace(campaign, data=data), MULTIMIX)
    test = disc_slices(5)
    mask = torch.zeros(5, 32, 24, dtype=torch.uint8)
    for number in range(1, 9):
        mask[:, 3 * number : 3 * number + 2, 4:20] = number
    test = replace(test, clean_NCHW=test.clean_NCHW[..., :24].expand(-1, 3, -1, -1).clone(), mask_NHW=mask)
    found = cell_pictures(build_networks(each), site(test), each, machine)
    shown = picture_of(found[0]["uri"])
    assert shown.shape == (192, 2 * 144 + pictures.GAP, 4)
    drawn = pictures._contours(Reading(test.clean_NCHW * 0, mask, None), test, "worst", 0, "Dice", np.ones(5), each)
    lines = picture_of(drawn["uri"])[:, 144 + pictures.GAP :, :3].astype(int)
    for number in range(1, 9):
        rows = lines[6 * 3 * number : 6 * (3 * number + 2)]
        assert (rows == ImageColor.getrgb(MASK_COLOURS[(number - 1) % len(MASK_COLOURS)])).all(2).any(), number


def test_pictures_of_large_noisy_images_stay_below_150_kilobytes(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    each = alone(campaign, MULTIMIX)
    data = replace(each.data, image_size=(64, 64), diagnoses=("none", "lesion", "other", "rare"))
    each = replace(each, data=data, recognise=replace(each.recognise, channels=16, depth=4))
    noise = torch.rand(8, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    test = replace(disc_slices(8, side=64), clean_NCHW=noise)
    assert len(json.dumps(cell_pictures(build_networks(each), site(test), each, machine))) < 150_000


def test_outlines_lie_on_the_edges_of_the_masks(campaign: CampaignConfig) -> None:
    each, test = alone(campaign, MULTIMIX), disc_slices(2)
    test = replace(test, clean_NCHW=torch.zeros_like(test.clean_NCHW), has_mask_N=torch.zeros(2, dtype=torch.bool))
    read_as = Reading(test.clean_NCHW, test.mask_NHW, None)
    found = pictures._contours(read_as, test, "median", 1, "Dice", np.full(2, np.nan), each)
    assert found["caption"] == "The median test image."
    drawn = picture_of(found["uri"])[:, 192 + pictures.GAP :, :3]
    for code in (1, 2):
        at = (drawn == ImageColor.getrgb(MASK_COLOURS[code - 1])).all(2)
        mask = (test.mask_NHW[1] == code).numpy().repeat(6, 0).repeat(6, 1)
        assert at.any()
        assert not (at & ~mask).any()
        beyond = np.pad(mask, 1)
        surrounded = beyond[:-2, 1:-1] & beyond[2:, 1:-1] & beyond[1:-1, :-2] & beyond[1:-1, 2:]
        np.testing.assert_array_equal(at, mask & ~surrounded)


def test_caption_says_what_was_read_and_what_is_true(campaign: CampaignConfig) -> None:
    each, test = alone(campaign, MULTIMIX), disc_slices(3)
    test = replace(test, diagnosis_N=torch.tensor([0, 1, -1]))
    read_as = Reading(test.clean_NCHW, test.mask_NHW, np.array([[0.25, 0.75], [0.1, 0.9], [0.5, 0.5]]))
    said = [pictures._said(read_as, test, index, each) for index in range(3)]
    assert said == [
        ["read as lesion with 0.75", "in truth none (0.25)"],
        ["read as lesion with 0.90", "in truth lesion"],
        ["read as none with 0.50", "its diagnosis is not known"],
    ]


def test_cell_without_test_images_has_no_pictures(campaign: CampaignConfig, machine: MachineConfig) -> None:
    nothing = disc_slices(2)
    empty = replace(
        nothing,
        clean_NCHW=nothing.clean_NCHW[:0],
        mask_NHW=nothing.mask_NHW[:0],
        has_mask_N=nothing.has_mask_N[:0],
        diagnosis_N=nothing.diagnosis_N[:0],
        patient_N=nothing.patient_N[:0],
        identity=(),
    )
    each = alone(campaign, MULTIMIX)
    assert cell_pictures(build_networks(each), site(empty), each, machine) == []
