"""Channels that say the same, the opposite or nothing have known cosines; where a block is active sums to 1."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from client.features import attention_HW, blocks, features_of, redundancy, similarity_CC
from shared.config import CampaignConfig, MachineConfig
from shared.networks import build_networks
from shared.recognise.recognition import Recognition
from shared.weights import to_arrays
from tests.client.slices import disc_slices


def test_cosines_of_known_channels() -> None:
    base = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    other = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    features = torch.stack([base, 3 * base, -base, other, base + other / 2, torch.zeros(2, 2)])
    half = 1 / math.sqrt(2)
    expected = [
        [1, 1, -1, 0, half, 0],
        [1, 1, -1, 0, half, 0],
        [-1, -1, 1, 0, -half, 0],
        [0, 0, 0, 1, half, 0],
        [half, half, -half, half, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_allclose(similarity_CC(features), expected, atol=1e-6)


def test_of_many_channels_those_at_even_distances_are_shown() -> None:
    features = torch.randn(96, 3, 3, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(similarity_CC(features), similarity_CC(features[::3]))
    assert similarity_CC(features, most=4).shape == (4, 4)
    assert similarity_CC(features[:2]).shape == (2, 2)


def test_redundancy_is_the_mean_size_of_what_is_off_the_diagonal() -> None:
    assert redundancy(np.array([[1, -0.5, 0], [-0.5, 1, 0.25], [0, 0.25, 1]], np.float32)) == pytest.approx(0.25)
    assert redundancy(np.ones((4, 4), np.float32)) == 1
    assert math.isnan(redundancy(np.ones((1, 1), np.float32)))


def test_attention_is_the_energy_over_the_channels_and_sums_to_one() -> None:
    features = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1)) * 100
    found = attention_HW(features)
    assert found.sum() == pytest.approx(1)
    energy = [[sum(float(features[c, y, x]) ** 2 for c in range(5)) for x in range(3)] for y in range(4)]
    np.testing.assert_allclose(found, np.array(energy) / np.sum(energy), rtol=1e-5)
    np.testing.assert_allclose(attention_HW(-7 * features), found, rtol=1e-5)
    assert not attention_HW(torch.zeros(2, 3, 3)).any(), "a block that is silent looks nowhere"


def test_blocks_are_named_from_the_image_to_the_masks() -> None:
    one, two, three, four = (torch.full((1, 1, 1, 1), float(value)) for value in range(4))
    named = blocks(Recognition(None, None, [three, four], (one, two)))
    assert {name: float(block) for name, block in named.items()} == {
        "encoder 1": 0,
        "encoder 2": 1,
        "deepest": 2,
        "decoder 1": 3,
    }


@pytest.mark.parametrize(
    ("kind", "compared"),
    [
        *((kind, ["shallow", "deep", "last"]) for kind in ("unet", "multimix", "attention-unet")),
        ("vnet", ["deep", "last"]),
        ("cnn", ["deep"]),
    ],
)
def test_every_recogniser_shows_the_blocks_that_it_hands_out_and_stays_as_it_was(
    campaign: CampaignConfig, machine: MachineConfig, kind: str, compared: list[str]
) -> None:
    data = replace(campaign.data, masks=() if kind == "cnn" else campaign.data.masks)
    each = replace(campaign, data=data, recognise=replace(campaign.recognise, kind=kind, dropout=0.5))
    networks = build_networks(each)
    before, image_CHW = to_arrays(networks), disc_slices(1).clean_NCHW[0]
    one, other = (features_of(networks, image_CHW, machine) for _ in range(2))
    assert list(one.similarity) == compared
    for name, matrix in one.similarity.items():
        np.testing.assert_array_equal(matrix, other.similarity[name])
        np.testing.assert_allclose(matrix, matrix.T)
        assert np.isin(np.round(np.diag(matrix), 5), (0, 1)).all(), "1, and 0 for a channel that is silent"
        assert np.diag(matrix).any(), "not all of them are"
    assert all(found.sum() == pytest.approx(1, rel=1e-4) or not found.any() for found in one.attention.values())
    assert list(one.gates) == (["gate 1"] if kind == "attention-unet" else []), "one fewer than levels"
    assert networks.recogniser.training
    after = to_arrays(networks)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_gates_are_what_the_skips_are_multiplied_with(campaign: CampaignConfig, machine: MachineConfig) -> None:
    each = replace(campaign, recognise=replace(campaign.recognise, kind="attention-unet", depth=3))
    networks, image_CHW = build_networks(each), disc_slices(1).clean_NCHW[0]
    found = features_of(networks, image_CHW, machine).gates
    with torch.no_grad():
        maps = networks.recogniser.eval().attention_maps(image_CHW[None])  # type: ignore[operator]
    assert [psi.shape for psi in found.values()] == [(16, 16), (32, 32)]
    for psi, expected in zip(found.values(), maps, strict=True):
        np.testing.assert_array_equal(psi, expected[0, 0])
