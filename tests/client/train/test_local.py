from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from client.train import gradprom, local
from client.train.local import TrainingState, batch_gradients, learning_rate, train_round
from shared.config import CampaignConfig, MachineConfig, StrategyConfig
from shared.errors import ConfigError, DataError
from shared.networks import Networks, build_networks
from shared.types import Arrays
from shared.weights import difference, norm, to_arrays
from tests.client.slices import disc_slices
from tests.client.train.test_gradprom import make_batch, moved_networks, with_objective


def trained(
    campaign: CampaignConfig, machine: MachineConfig, *, rounds: int = 2, keep_state: bool = False
) -> tuple[Networks, list[Mapping[str, float]]]:
    networks, records, state = build_networks(campaign), [], None
    for round in range(1, rounds + 1):
        record, new_state = train_round(
            networks, disc_slices(10), campaign, machine, site="a", round=round, steps=4, state=state
        )
        records.append(record)
        state = new_state if keep_state else None
    return networks, records


def equal(one: Arrays, other: Arrays) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_same_inputs_give_the_same_weights_to_the_bit(campaign: CampaignConfig, machine: MachineConfig) -> None:
    dropping = replace(campaign, recognise=replace(campaign.recognise, dropout=0.3))
    one = to_arrays(trained(dropping, machine)[0])
    torch.manual_seed(123)
    torch.rand(7)
    assert equal(one, to_arrays(trained(dropping, machine)[0]))


def test_training_leaves_the_global_generator_alone(campaign: CampaignConfig, machine: MachineConfig) -> None:
    dropping = replace(campaign, recognise=replace(campaign.recognise, dropout=0.3))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained(dropping, machine, rounds=1)
    assert torch.equal(torch.rand(3), expected)


def test_seed_site_and_round_each_change_what_is_drawn(campaign: CampaignConfig, machine: MachineConfig) -> None:
    ends = []
    for site, round in (("a", 1), ("b", 1), ("a", 2)):
        networks = build_networks(campaign)
        train_round(networks, disc_slices(10), campaign, machine, site=site, round=round, steps=2)
        ends.append(to_arrays(networks))
    assert not equal(ends[0], ends[1])
    assert not equal(ends[0], ends[2])


def test_the_record_tells_what_happened_and_nothing_that_did_not(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    campaign = with_objective(campaign, "gradprom", warmup=0.5)
    _, (warm, gated) = trained(campaign, machine)
    assert "gate_open_rate" not in warm
    assert 0 <= gated["gate_open_rate"] <= 1
    assert -1 <= gated["mean_cosine"] <= 1
    assert gated["samples"] == 4 * campaign.training.batch_size
    assert all(np.isfinite(value) for value in {**warm, **gated}.values())
    _, (_, plain) = trained(with_objective(campaign, "plain"), machine)
    assert "gate_open_rate" not in plain
    _, (_, joint) = trained(with_objective(campaign, "joint"), machine)
    assert joint["gate_open_rate"] == 1


def test_frozen_stops_the_recogniser_after_the_warmup(campaign: CampaignConfig, machine: MachineConfig) -> None:
    campaign = with_objective(campaign, "frozen", warmup=0.5)
    networks = build_networks(campaign)
    stages = [to_arrays(networks)]
    for round in (1, 2):
        train_round(networks, disc_slices(10), campaign, machine, site="a", round=round, steps=4)
        stages.append(to_arrays(networks))
    moved = [difference(new, old) for old, new in itertools.pairwise(stages)]
    of_recogniser = [{k: v for k, v in change.items() if k.startswith("recogniser")} for change in moved]
    of_enhancer = [{k: v for k, v in change.items() if k.startswith("enhancer")} for change in moved]
    assert norm(of_recogniser[0]) > 0
    assert norm(of_recogniser[1]) == 0
    assert norm(of_enhancer[1]) > 0


def test_the_rate_falls_as_a_cosine_over_all_rounds(campaign: CampaignConfig) -> None:
    top = campaign.training.learning_rate
    assert learning_rate(campaign, 0.0) == top
    assert learning_rate(campaign, 0.5) == pytest.approx(top * (1 + local.LOWEST_RATE) / 2)
    assert learning_rate(campaign, 1.0) == pytest.approx(top * local.LOWEST_RATE)
    constant = replace(campaign, training=replace(campaign.training, schedule="constant"))
    assert learning_rate(constant, 0.9) == top


def test_a_comparator_keeps_its_optimiser_and_a_site_does_not(campaign: CampaignConfig, machine: MachineConfig) -> None:
    fresh, kept = (to_arrays(trained(campaign, machine, keep_state=keep)[0]) for keep in (False, True))
    assert not equal(fresh, kept)


def test_fedprox_stays_closer_to_where_the_round_began(campaign: CampaignConfig, machine: MachineConfig) -> None:
    distances = []
    for strategy in (StrategyConfig(kind="fedavg"), StrategyConfig(kind="fedprox", proximal_mu=50.0)):
        training = replace(campaign.training, optimiser="sgd", learning_rate=0.02, clip_norm=None)
        changed = replace(campaign, strategy=strategy, training=training)
        start = to_arrays(build_networks(changed))
        distances.append(norm(difference(to_arrays(trained(changed, machine, rounds=1)[0]), start)))
    assert 0 < distances[1] < 0.7 * distances[0]


def test_progress_is_told_after_every_step(campaign: CampaignConfig, machine: MachineConfig) -> None:
    told: list[tuple[int, int]] = []
    networks = build_networks(campaign)
    train_round(
        networks, disc_slices(6), campaign, machine, site="a", round=1, steps=3, on_step=lambda *at: told.append(at)
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_broken_images_stop_the_round_with_a_reason(campaign: CampaignConfig, machine: MachineConfig) -> None:
    slices = disc_slices(6)
    slices.clean_NCHW[2] = torch.nan
    networks = build_networks(campaign)
    threads = threading.active_count()
    with pytest.raises(DataError, match="not finite"):
        train_round(networks, slices, campaign, machine, site="a", round=1, steps=40)
    assert threading.active_count() == threads
    assert all(np.isfinite(array).all() for array in to_arrays(networks).values())


def out_of_memory_above(networks: Networks, limit: int) -> list[int]:
    """Let the recogniser fail on more than `limit` images at once; returns the sizes it was asked for."""
    asked: list[int] = []
    plain_forward = networks.recogniser.forward

    def forward(image: torch.Tensor) -> object:
        asked.append(len(image))
        if len(image) > limit:
            raise torch.OutOfMemoryError("injected")
        return plain_forward(image)

    networks.recogniser.forward = forward  # type: ignore[method-assign]
    return asked


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_out_of_memory_gives_the_undisturbed_gradients_in_smaller_parts(
    campaign: CampaignConfig, machine: MachineConfig, limit: int
) -> None:
    networks, batch = moved_networks(campaign), make_batch(size=7)
    undisturbed, size = batch_gradients(networks, batch, campaign, machine, gradprom.gradients, 7)
    assert size == 7
    asked = out_of_memory_above(networks, limit)
    found, size = batch_gradients(networks, batch, campaign, machine, gradprom.gradients, 7)
    assert size == {1: 1, 2: 1, 3: 3}[limit]
    assert asked[0] == 7
    assert max(asked[-3:]) <= limit
    for name in ("enhance_D", "task_D", "recogniser_D", "enhance_loss", "recognise_loss"):
        torch.testing.assert_close(getattr(found, name), getattr(undisturbed, name), rtol=1e-4, atol=1e-6)


def test_a_round_that_runs_out_of_memory_ends_where_the_undisturbed_round_ends(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    campaign = replace(campaign, training=replace(campaign.training, optimiser="sgd", learning_rate=0.1))
    ends: list[Arrays] = []
    states: list[TrainingState] = []
    for limit in (99, 2):
        networks = build_networks(campaign)
        out_of_memory_above(networks, limit)
        _, state = train_round(networks, disc_slices(10), campaign, machine, site="a", round=2, steps=3)
        ends.append(to_arrays(networks))
        states.append(state)
    for name, array in ends[0].items():
        np.testing.assert_allclose(ends[1][name], array, atol=1e-5)
    assert [state.micro_size for state in states] == [4, 2]


def test_one_image_too_many_ends_with_the_way_out(campaign: CampaignConfig, machine: MachineConfig) -> None:
    networks = moved_networks(campaign)
    out_of_memory_above(networks, 0)
    with pytest.raises(ConfigError, match="one image does not fit"):
        batch_gradients(networks, make_batch(), campaign, machine, gradprom.gradients, 4)


def test_training_restores_degraded_images(campaign: CampaignConfig, machine: MachineConfig) -> None:
    campaign = replace(campaign, training=replace(campaign.training, learning_rate=5e-3))
    networks = build_networks(campaign)
    losses = []
    for round in (1, 2):
        record, _ = train_round(networks, disc_slices(16), campaign, machine, site="a", round=round, steps=40)
        losses.append(record["loss_enhance"])
    assert losses[1] < 0.7 * losses[0]


def test_bfloat16_stays_near_float32(campaign: CampaignConfig, machine: MachineConfig) -> None:
    networks, batch = moved_networks(campaign), make_batch()
    exact, _ = batch_gradients(networks, batch, campaign, machine, gradprom.gradients, 4)
    half = replace(machine, precision="bfloat16")
    found, _ = batch_gradients(networks, batch, campaign, half, gradprom.gradients, 4)
    pairs = ((found.enhance_D, exact.enhance_D), (found.task_D[0], exact.task_D[0]))
    for ours, theirs in (*pairs, (found.recogniser_D, exact.recogniser_D)):
        assert ours is not None
        assert theirs is not None
        assert ours.dtype == torch.float32
        assert float(torch.cosine_similarity(ours, theirs, dim=0)) > 0.98


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_networks_end_where_plain_ones_end(campaign: CampaignConfig, machine: MachineConfig) -> None:
    campaign = replace(
        campaign,
        data=replace(campaign.data, masks=()),
        recognise=replace(campaign.recognise, kind="cnn"),
        training=replace(campaign.training, optimiser="sgd"),
    )
    plain, compiled = (
        to_arrays(trained(campaign, replace(machine, compile=compile), rounds=1)[0]) for compile in (False, True)
    )
    assert list(plain) == list(compiled)
    for name, array in plain.items():
        np.testing.assert_allclose(compiled[name], array, atol=1e-4)
