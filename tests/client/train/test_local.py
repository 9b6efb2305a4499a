from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from client.train import gates, gradprom, local
from client.train.gradprom import Gradients, Optimisers, StepRecord
from client.train.local import TrainingState, batch_gradients, learning_rate, train_round
from client.train.terms import Share
from shared.config import CampaignConfig, MachineConfig, StrategyConfig
from shared.errors import ConfigError, DataError
from shared.networks import Networks, build_networks
from shared.recognise.losses import labelled
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


def watched_update(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """What every step did: (<applied change of the enhancer's weights, g>, |g|), in float64 and from the outside."""
    seen: list[tuple[float, float]] = []
    plain_update = gradprom.update

    def update(
        networks: Networks, optimisers: Optimisers, found: Gradients, campaign: CampaignConfig, **more: object
    ) -> StepRecord:
        before = [parameter.detach().double().clone() for parameter in networks.enhancer.parameters()]
        g = found.enhance_D.double().clone()
        record = plain_update(networks, optimisers, found, campaign, **more)  # type: ignore[arg-type]
        after = [parameter.detach().double() for parameter in networks.enhancer.parameters()]
        change = torch.cat([(new - old).flatten() for new, old in zip(after, before, strict=True)])
        seen.append((float(change @ g), float(g.norm())))
        return record

    monkeypatch.setattr(gradprom, "update", update)
    return seen


def with_training(campaign: CampaignConfig, **changes: object) -> CampaignConfig:
    return replace(campaign, training=replace(campaign.training, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize(
    ("gate", "auxiliaries"),
    [
        *((gate, "together") for gate in ("global", "layer", "weighted", "projected", "confident")),
        ("global", "separate"),
        ("confident", "separate"),
    ],
)
def test_with_plain_sgd_no_step_of_a_run_goes_up_the_main_loss(
    campaign: CampaignConfig,
    machine: MachineConfig,
    monkeypatch: pytest.MonkeyPatch,
    gate: str,
    auxiliaries: str,
    clip_norm: float | None,
) -> None:
    """The guarantee on what is really applied: float32 weights, lambda so large that an ungated step would fail."""
    campaign = with_objective(campaign, "gradprom", gate=gate, auxiliaries=auxiliaries, task_weight=3.0, warmup=0.0)
    campaign = with_training(campaign, optimiser="sgd", learning_rate=0.05, clip_norm=clip_norm)
    seen = watched_update(monkeypatch)
    record, _ = train_round(build_networks(campaign), disc_slices(12), campaign, machine, site="a", round=1, steps=30)
    assert len(seen) == 30
    assert all(uphill < 0 for uphill, norm_g in seen if norm_g > 0)
    assert record["ascent_rate"] == 0
    if gate not in ("projected", "confident"):
        assert 0 < record["gate_open_rate"] <= 1
        assert record["added_share"] > 0


def test_without_a_gate_the_same_run_does_go_up(campaign: CampaignConfig, machine: MachineConfig) -> None:
    """Else the test above would say nothing."""
    campaign = with_objective(campaign, "joint", task_weight=3.0, warmup=0.0)
    campaign = with_training(campaign, optimiser="sgd", learning_rate=0.05, clip_norm=None)
    record, _ = train_round(build_networks(campaign), disc_slices(12), campaign, machine, site="a", round=1, steps=30)
    assert record["ascent_rate"] > 0.1


def test_with_plain_sgd_no_step_goes_up_the_main_loss_of_a_critic_either(
    campaign: CampaignConfig, machine: MachineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """g is then the gradient of the WGAN loss by the critic of that very step."""
    critic = replace(campaign.objective.critic, channels=4)
    campaign = with_objective(campaign, "todnet-gated", critic=critic, task_weight=3.0, warmup=0.05)
    campaign = with_training(campaign, optimiser="sgd", learning_rate=0.05)
    seen = watched_update(monkeypatch)
    record, _ = train_round(build_networks(campaign), disc_slices(12), campaign, machine, site="a", round=1, steps=20)
    assert all(uphill < 0 for uphill, norm_g in seen if norm_g > 0)
    assert record["ascent_rate"] == 0
    assert record["gate_open_rate"] > 0


@pytest.mark.parametrize("kind", ["joint", "gradprom"])
@pytest.mark.parametrize("adam_states", ["one", "two"])
def test_with_adam_the_share_of_steps_that_go_up_is_measured(
    campaign: CampaignConfig, machine: MachineConfig, monkeypatch: pytest.MonkeyPatch, kind: str, adam_states: str
) -> None:
    campaign = with_objective(campaign, kind, task_weight=10.0, warmup=0.0)
    campaign = with_training(campaign, optimiser="adam", adam_states=adam_states, learning_rate=5e-3)
    seen = watched_update(monkeypatch)
    record, _ = train_round(build_networks(campaign), disc_slices(12), campaign, machine, site="a", round=1, steps=40)
    went_up = sum(uphill >= 0 for uphill, norm_g in seen if norm_g > 0) / 40
    assert record["ascent_rate"] == pytest.approx(went_up)
    if kind == "joint":
        assert went_up > 0, "the condition is too mild to tell a measurement from a constant"


def test_at_a_small_lambda_the_main_loss_falls_to_that_of_plain(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    campaign = with_training(campaign, learning_rate=5e-3)
    ends = {}
    for kind in ("plain", "gradprom"):
        changed = with_objective(campaign, kind, task_weight=0.03)
        networks, records, state = build_networks(changed), [], None
        for round in (1, 2):
            record, state = train_round(
                networks, disc_slices(16), changed, machine, site="a", round=round, steps=60, state=state
            )
            records.append(record["loss_enhance"])
        assert records[1] < 0.7 * records[0]
        ends[kind] = records[1]
    assert ends["gradprom"] == pytest.approx(ends["plain"], rel=0.03)


def confident(campaign: CampaignConfig, *, auxiliaries: str = "together", micro_batches: int = 4) -> CampaignConfig:
    return with_objective(campaign, "gradprom", gate="confident", auxiliaries=auxiliaries, micro_batches=micro_batches)


@pytest.mark.parametrize("auxiliaries", ["together", "separate"])
def test_the_confident_gate_has_a_cosine_of_every_task_and_micro_batch(
    campaign: CampaignConfig, machine: MachineConfig, auxiliaries: str
) -> None:
    sure = confident(campaign, auxiliaries=auxiliaries)
    networks, batch = moved_networks(sure), make_batch(size=8)
    found, size = batch_gradients(networks, batch, sure, machine, gradprom.gradients, 8)
    assert size == 8
    assert found.cosines_TM is not None
    assert found.cosines_TM.shape == (1 if auxiliaries == "together" else 2, 4)
    for column, part in enumerate(batch.micro_batches(2)):
        # Counted by the labels of the whole batch, as the gradient that the gate lets through is.
        counted = Share(part.size / batch.size, labelled(batch))
        alone = gradprom.gradients(networks, part, counted, with_objective(sure, "gradprom", gate="global"))
        for task, v_D in enumerate(alone.task_D):
            expected = gates.cosine(alone.enhance_D, v_D)
            torch.testing.assert_close(found.cosines_TM[task, column], expected, rtol=1e-3, atol=1e-5)
    undivided, _ = batch_gradients(
        networks, batch, with_objective(sure, "gradprom", gate="global"), machine, gradprom.gradients, 8
    )
    assert undivided.cosines_TM is None
    torch.testing.assert_close(found.enhance_D, undivided.enhance_D, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(found.task_D, undivided.task_D, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_confident_gate_counts_smaller_parts_where_memory_ran_out(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    sure = confident(campaign, micro_batches=2)
    networks, batch = moved_networks(sure), make_batch(size=8)
    undisturbed, _ = batch_gradients(networks, batch, sure, machine, gradprom.gradients, 8)
    out_of_memory_above(networks, 2)
    found, size = batch_gradients(networks, batch, sure, machine, gradprom.gradients, 8)
    assert size == 2
    assert undisturbed.cosines_TM is not None
    assert found.cosines_TM is not None
    assert (undisturbed.cosines_TM.shape, found.cosines_TM.shape) == ((1, 2), (1, 4))
    torch.testing.assert_close(found.task_D[0], undisturbed.task_D[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gate", ["global", "layer", "weighted", "projected"])
def test_a_gate_that_asks_for_no_parts_does_not_see_where_memory_ran_out(
    campaign: CampaignConfig, machine: MachineConfig, gate: str
) -> None:
    changed = with_objective(campaign, "gradprom", gate=gate, auxiliaries="separate", task_weight=2.0)
    networks, batch = moved_networks(changed), make_batch(size=7)
    blocks = [parameter.numel() for parameter in networks.enhancer.parameters()]

    def direction() -> gradprom.Direction:
        found, _ = batch_gradients(networks, batch, changed, machine, gradprom.gradients, 7)
        assert found.cosines_TM is None
        return gradprom.direction(found.enhance_D, found.task_D, changed.objective, blocks)

    undisturbed = direction()
    out_of_memory_above(networks, 2)
    disturbed = direction()
    torch.testing.assert_close(disturbed.d_D, undisturbed.d_D, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(disturbed.gate_open, undisturbed.gate_open)
