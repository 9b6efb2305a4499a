from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from shared.config import CampaignConfig
from shared.errors import DataError
from shared.networks import build_networks
from shared.types import Arrays
from shared.weights import (
    add,
    architecture_digest,
    difference,
    learnt_and_prior,
    load_arrays,
    norm,
    part_of,
    parts_of,
    to_arrays,
)


def test_weights_make_the_round_trip_to_the_bit(campaign: CampaignConfig) -> None:
    arrays = to_arrays(build_networks(campaign))
    other = build_networks(replace(campaign, seed=1))
    assert norm(difference(to_arrays(other), arrays)) > 0
    load_arrays(other, arrays)
    again = to_arrays(other)
    assert list(again) == list(arrays)
    assert all(np.array_equal(again[name], arrays[name]) for name in arrays)
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in arrays.values())
    assert {name.split(".")[0] for name in arrays} == {"enhancer", "recogniser"}


def test_arrays_are_copies_in_both_directions(campaign: CampaignConfig) -> None:
    networks = build_networks(campaign)
    arrays = to_arrays(networks)
    before = {name: array.copy() for name, array in arrays.items()}
    with torch.no_grad():
        for parameter in networks.enhancer.parameters():
            parameter.add_(1.0)
    assert all(np.array_equal(arrays[name], before[name]) for name in arrays)
    load_arrays(networks, arrays)
    arrays["enhancer.body.0.bias"] += 7
    assert np.array_equal(to_arrays(networks)["enhancer.body.0.bias"], before["enhancer.body.0.bias"])


def test_the_memory_format_of_a_machine_does_not_travel(campaign: CampaignConfig) -> None:
    networks = build_networks(campaign)
    arrays = to_arrays(networks)
    networks.recogniser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    again = to_arrays(networks)
    assert all(np.array_equal(again[name], arrays[name]) for name in arrays)
    load_arrays(networks, arrays)


def _without(arrays: Arrays, name: str) -> None:
    del arrays[name]


def _renamed(arrays: Arrays, name: str) -> None:
    arrays["enhancer.body.9.bias"] = arrays.pop(name)


def _reshaped(arrays: Arrays, name: str) -> None:
    arrays[name] = arrays[name].reshape(-1, 1)


def _double(arrays: Arrays, name: str) -> None:
    arrays[name] = arrays[name].astype(np.float64)  # type: ignore[assignment]


def _infinite(arrays: Arrays, name: str) -> None:
    arrays[name][0] = np.inf


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_without, "lack 'enhancer.body.0.bias'"),
        (_renamed, "'enhancer.body.9.bias', which this architecture does not have"),
        (_reshaped, "'enhancer.body.0.bias' must have shape (4,), got (4, 1)"),
        (_double, "'enhancer.body.0.bias' must be float32, got float64"),
        (_infinite, "'enhancer.body.0.bias' hold values that are not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_moves(
    campaign: CampaignConfig, spoil: Callable[[Arrays, str], None], reason: str
) -> None:
    networks = build_networks(campaign)
    before = to_arrays(networks)
    arrays = {name: array + 1 for name, array in before.items()}
    spoil(arrays, "enhancer.body.0.bias")
    with pytest.raises(DataError) as refused:
        load_arrays(networks, arrays)
    assert reason in str(refused.value)
    after = to_arrays(networks)
    assert all(np.array_equal(after[name], before[name]) for name in before)


def test_the_digest_sees_names_shapes_and_order_and_no_values(campaign: CampaignConfig) -> None:
    arrays = to_arrays(build_networks(campaign))
    digest = architecture_digest(arrays)
    assert digest == architecture_digest(to_arrays(build_networks(replace(campaign, seed=5))))
    wider = replace(campaign, enhance=replace(campaign.enhance, channels=8))
    assert digest != architecture_digest(to_arrays(build_networks(wider)))
    assert digest != architecture_digest(dict(reversed(arrays.items())))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("enhancer.up.0.weight", None),
        ("critic.diagnosis_head.weight", None),
        ("recogniser.up.0.conv.weight", "decoder"),
        ("recogniser.narrow.1.bias", "decoder"),
        ("recogniser.bridge.weight", "decoder"),
        ("recogniser.mask_head.bias", "decoder"),
        ("recogniser.diagnosis_head.weight", "diagnosis"),
        ("recogniser.upper.weight", "encoder"),
        ("recogniser.down.0.up.weight", "encoder"),
        ("prior.map_KHW", "prior"),
    ],
)
def test_the_first_module_of_a_recogniser_decides_the_part(name: str, part: str | None) -> None:
    assert part_of(name) == part


def test_parts_of_weights_stand_in_one_order() -> None:
    names = ["prior.map_KHW", "enhancer.w", "recogniser.diagnosis_head.bias", "recogniser.down.0.weight"]
    assert parts_of(names) == ("encoder", "diagnosis", "prior")
    assert parts_of(["enhancer.w", "critic.v"]) == parts_of([]) == ()


def test_what_is_learnt_and_the_mask_map_are_all_there_is_in_the_order_that_it_came() -> None:
    names = ["recogniser.b", "prior.map_KHW", "enhancer.prior.w", "critic.c", "prior.other"]
    arrays = {name: np.full(2, i, np.float32) for i, name in enumerate(names)}
    learnt, prior = learnt_and_prior(arrays)
    assert list(learnt) == ["recogniser.b", "enhancer.prior.w", "critic.c"]
    assert list(prior) == ["prior.map_KHW", "prior.other"]
    assert all((learnt | prior)[name] is arrays[name] for name in names)
    assert learnt_and_prior({}) == ({}, {})


def test_arithmetic_on_weights() -> None:
    old = {"a": np.float32([1, 2]), "b": np.float32([[3]])}
    new = {"a": np.float32([4, 6]), "b": np.float32([[3]])}
    change = difference(new, old)
    assert norm(change) == 5.0
    assert {name: array.tolist() for name, array in add(old, change).items()} == {"a": [4, 6], "b": [[3]]}
    assert norm({"large": np.full(4, 1e30, np.float32)}) == pytest.approx(2e30)
    assert norm({}) == 0
    assert not math.isfinite(norm({"a": np.float32([np.nan])}))


def test_the_coordinators_half_needs_no_torch() -> None:
    code = "import sys, shared.weights, shared.metrics, shared.types; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
