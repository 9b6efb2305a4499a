"""Rounds and phases of a generator: what moves and what does not, to the bit; caches against the slow way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch

from client.dataset import Slices
from client.train import all_phases, phases, shown
from client.train.all_phases import trained_generator
from client.train.emitdiff import denoiser_loss_B
from client.train.phases import WARM_UP, PhaseState, evaluate_phase, finetune, train_phase, untrained
from shared.config import CampaignConfig, DrawConfig, MachineConfig, PhaseConfig, StrategyConfig
from shared.errors import ConfigError, DataError
from shared.generate.networks import TRAINED, Generator, build_generator, load_parts, parts_arrays
from shared.generate.schedule import noised
from tests.client.slices import disc_slices
from tests.client.train.diffusion import CPU, bits, stirred, with_generator

PHASES = ("edges", "autoencoder", "denoiser", "controlnet")


@lru_cache
def slices_of(count: int = 8) -> Slices:
    """One value for all tests, as in a process that keeps its data between rounds."""
    return disc_slices(count)


def a_round(
    generator: Generator, campaign: CampaignConfig, *, site: str = "a", round: int = 1, **more: Any
) -> tuple[Mapping[str, float], PhaseState]:
    steps = more.pop("steps", 2)
    slices = more.pop("slices", None) or slices_of()
    return train_phase(generator, slices, campaign, CPU, site=site, round=round, steps=steps, **more)


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_moves_what_it_trains_and_nothing_else_to_the_bit(campaign: CampaignConfig, phase: Any) -> None:
    campaign = with_generator(campaign, edges="hed").in_phase(phase)
    generator = stirred(build_generator(campaign))
    before = bits(generator)
    record, _ = a_round(generator, campaign)
    after = bits(generator)
    moved = {name.partition(".")[0] for name in before if before[name] != after[name]}
    assert moved == set(TRAINED[phase])
    assert set(record) == {"loss", "learning_rate", "samples", "seconds"}
    assert record["samples"] == 2 * campaign.training.batch_size
    assert all(math.isfinite(value) for value in record.values())


@pytest.mark.parametrize("phase", PHASES)
def test_two_rounds_are_the_same_to_the_bit_in_one_process_or_in_two(campaign: CampaignConfig, phase: Any) -> None:
    campaign = with_generator(campaign, edges="hed").in_phase(phase)
    one = build_generator(campaign)
    for number in (1, 2):
        a_round(one, campaign, round=number)
    other = build_generator(campaign)
    a_round(other, campaign)
    arrays = parts_arrays(other, other.all)
    phases.forget()  # another process: freshly built networks, weights as they came, nothing worked out yet
    torch.manual_seed(77)
    resumed = build_generator(campaign)
    load_parts(resumed, arrays, arrays_parts(resumed))
    a_round(resumed, campaign, round=2, slices=disc_slices(8))
    assert bits(one) == bits(resumed)


def arrays_parts(generator: Generator) -> tuple[str, ...]:
    return tuple(generator.all)


def test_training_leaves_the_global_generator_alone(campaign: CampaignConfig) -> None:
    for phase in ("autoencoder", "controlnet"):
        of_phase = with_generator(campaign).in_phase(phase)
        generator = build_generator(of_phase)
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        a_round(generator, of_phase, steps=1)
        assert torch.equal(torch.rand(3), expected)


def test_seed_site_and_round_each_change_what_is_drawn(campaign: CampaignConfig) -> None:
    campaign = with_generator(campaign).in_phase("denoiser")
    ends = []
    for site, number, seed in (("a", 1, 0), ("b", 1, 0), ("a", 2, 0), ("a", 1, 1)):
        generator = build_generator(campaign)
        a_round(generator, replace(campaign, seed=seed), site=site, round=number)
        ends.append(tuple(bits(generator, "denoiser").values()))
    assert len(set(ends)) == 4


def test_kept_latents_are_those_of_encoding_again_and_mirrored_ones_those_of_the_mirror_image(
    campaign: CampaignConfig,
) -> None:
    campaign = with_generator(campaign).in_phase("controlnet")
    generator = stirred(build_generator(campaign))
    slices = slices_of()
    kept = shown.tables_of(generator, slices, campaign, CPU, mirrored=True)
    with torch.no_grad():
        for mirror, image in enumerate((slices.clean_NCHW, slices.clean_NCHW.flip(-1))):
            again = torch.cat([generator.encode(one) for one in image.split(1)])
            torch.testing.assert_close(kept.latent_FNCHW[mirror], again, rtol=1e-4, atol=1e-5)
    assert shown.tables_of(generator, slices, campaign, CPU, mirrored=True).latent_FNCHW is kept.latent_FNCHW
    stirred(generator, "autoencoder", seed=2)
    moved = shown.tables_of(generator, slices, campaign, CPU, mirrored=True)
    assert not torch.equal(moved.latent_FNCHW, kept.latent_FNCHW)


def test_a_step_sees_each_slices_own_latents_hint_and_mask_mirrored_together(campaign: CampaignConfig) -> None:
    unguided = DrawConfig(sampler="rflow", guidance=1)
    campaign = with_generator(campaign, drop_text=0.0, draw=unguided).in_phase("controlnet")
    generator = stirred(build_generator(campaign))
    slices = slices_of()
    tables = shown.tables_of(generator, slices, campaign, CPU, mirrored=True)
    seen = shown.draw_latents(tables, slices, torch.arange(8), campaign, shown.randoms(campaign, "x"))
    assert seen.hint_BCHW is not None
    assert tables.hint_NCHW is not None
    flips = []
    for number in range(8):
        flipped = torch.equal(seen.latent_BCHW[number], tables.latent_FNCHW[1, number])
        flips.append(flipped)
        hint, mask = tables.hint_NCHW[number], slices.mask_NHW[number].long()
        assert torch.equal(seen.hint_BCHW[number], hint.flip(-1) if flipped else hint)
        assert torch.equal(seen.mask_BHW[number], mask.flip(-1) if flipped else mask)
        assert torch.equal(seen.token_BW[number], tables.token_NW[number])
    assert len(set(flips)) == 2
    as_they_are = replace(campaign, training=replace(campaign.training, augment=False))
    tables = shown.tables_of(generator, slices, as_they_are, CPU, mirrored=False)
    seen = shown.draw_latents(tables, slices, torch.arange(8), as_they_are, shown.randoms(campaign, "x"))
    assert torch.equal(seen.latent_BCHW, tables.latent_FNCHW[0])


def test_prompts_and_hints_are_dropped_as_often_as_asked(campaign: CampaignConfig) -> None:
    campaign = with_generator(campaign, drop_text=0.3, drop_hint=0.2).in_phase("controlnet")
    generator = build_generator(campaign)
    tables = shown.tables_of(generator, slices_of(), campaign, CPU, mirrored=True)
    chosen = torch.arange(8).repeat(100)
    seen = shown.draw_latents(tables, slices_of(), chosen, campaign, shown.randoms(campaign, "x"))
    assert seen.hint_BCHW is not None
    without_text, without_hint = (seen.token_BW == 0).all(1).float(), (seen.hint_BCHW == 0).all((1, 2, 3)).float()
    for found, share in ((without_text, 0.3), (without_hint, 0.2)):
        assert abs(float(found.mean()) - share) < 4 * math.sqrt(share * (1 - share) / 800)
    assert torch.equal(seen.early_B, seen.time_B <= 500)


@pytest.mark.parametrize(("count", "size", "steps"), [(7, 4, 9), (3, 8, 4), (16, 4, 2)])
def test_every_slice_comes_once_before_any_comes_again(count: int, size: int, steps: int) -> None:
    batches = list(shown.order(count, size, steps, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == [size] * steps
    drawn = torch.cat(batches)
    for start in range(0, len(drawn) - count + 1, count):
        assert sorted(drawn[start : start + count].tolist()) == list(range(count))


def test_slices_without_a_mask_train_with_an_empty_outline(campaign: CampaignConfig) -> None:
    campaign = with_generator(campaign).in_phase("controlnet")
    generator = build_generator(campaign)
    slices = disc_slices(4)
    slices.has_mask_N[:2] = False
    slices.mask_NHW[:2] = 0
    tables = shown.tables_of(generator, slices, campaign, CPU, mirrored=True)
    assert tables.hint_NCHW is not None
    edges, outlines = tables.hint_NCHW[:, 0], tables.hint_NCHW[:, 1]
    assert not outlines[:2].any()
    assert all(outline.any() for outline in outlines[2:])
    assert all(edge.any() for edge in edges)
    record, _ = a_round(generator, campaign, slices=slices)
    assert math.isfinite(record["loss"])


@pytest.mark.slow
def test_eight_images_are_learnt_by_heart(campaign: CampaignConfig) -> None:
    """And a ControlNet tells what a denoiser that is frozen does not know."""
    campaign = replace(campaign, training=replace(campaign.training, augment=False))
    lengths = {
        name: PhaseConfig(rounds=1, local_steps=steps, batch_size=8)
        for name, steps in (("autoencoder", 40), ("denoiser", 160), ("controlnet", 120))
    }
    campaign = with_generator(campaign, edges="hed", **lengths)
    start = build_generator(campaign)
    generator, records = trained_generator(campaign, slices_of(), CPU, name="x")
    wrong = evaluate_phase(start, slices_of(), campaign.in_phase("autoencoder"), CPU)["autoencoder.l1"].mean
    learnt = ("autoencoder", "latents")  # what the denoiser is judged on must be the same before and after
    load_parts(start, parts_arrays(generator, learnt), learnt)
    losses = {
        (phase, which): evaluate_phase(each, slices_of(), campaign.in_phase(phase), CPU)[name].mean
        for phase, name in (("edges", "edges.loss"), ("autoencoder", "autoencoder.l1"), ("denoiser", "denoiser.loss"),
                            ("controlnet", "controlnet.loss"))
        for which, each in (("before", start), ("after", generator))
    }  # fmt: skip
    assert losses["autoencoder", "after"] < 0.4 * wrong
    assert losses["denoiser", "after"] < 0.5 * losses["denoiser", "before"]
    assert losses["edges", "after"] < 0.85 * losses["edges", "before"]
    assert losses["controlnet", "after"] < 0.98 * losses["denoiser", "after"]
    assert list(records) == ["edges", "autoencoder", "denoiser", "controlnet"]


def test_a_comparator_keeps_its_optimiser_and_a_site_does_not(campaign: CampaignConfig) -> None:
    campaign = with_generator(campaign).in_phase("autoencoder")
    ends = []
    for keep in (False, True):
        generator = build_generator(campaign)
        _, state = a_round(generator, campaign)
        a_round(generator, campaign, round=2, state=state if keep else None)
        ends.append(bits(generator))
    assert ends[0] != ends[1]


def test_the_rate_falls_as_a_cosine_over_the_phases_rounds(campaign: CampaignConfig) -> None:
    campaign = with_generator(campaign, autoencoder=PhaseConfig(rounds=4, learning_rate=1e-3)).in_phase("autoencoder")
    generator = build_generator(campaign)
    rates = [a_round(generator, campaign, round=number, steps=1)[0]["learning_rate"] for number in (1, 2, 3, 4)]
    cosine = [0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * number / 4)) for number in range(4)]
    warm = 1 / WARM_UP  # the first step of a fresh optimiser
    assert rates == pytest.approx([1e-3 * value * warm for value in cosine])
    last = a_round(generator, campaign, round=1, steps=WARM_UP)[0]["learning_rate"]
    assert last == pytest.approx(1e-3 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi / 4 * (WARM_UP - 1) / WARM_UP))))


def test_fedprox_stays_closer_to_where_the_round_began(campaign: CampaignConfig) -> None:
    distances = []
    for strategy in (StrategyConfig(kind="fedavg"), StrategyConfig(kind="fedprox", proximal_mu=50.0)):
        training = replace(campaign.training, optimiser="sgd", clip_norm=None)
        changed = replace(campaign, strategy=strategy, training=training)
        changed = with_generator(changed, denoiser=PhaseConfig(learning_rate=0.02, batch_size=4)).in_phase("denoiser")
        generator = build_generator(changed)
        start = parts_arrays(generator, TRAINED["denoiser"])
        a_round(generator, changed, steps=6)
        end = parts_arrays(generator, TRAINED["denoiser"])
        distances.append(math.sqrt(sum(float(np.square(end[name] - start[name]).sum()) for name in start)))
    assert 0 < distances[1] < 0.7 * distances[0]


@pytest.mark.parametrize("phase", ["autoencoder", "controlnet"])
def test_broken_images_stop_the_round_before_weights_move(campaign: CampaignConfig, phase: Any) -> None:
    campaign = with_generator(campaign).in_phase(phase)
    generator = build_generator(campaign)
    before = bits(generator)
    slices = disc_slices(4)
    slices.clean_NCHW[2] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        a_round(generator, campaign, slices=slices, steps=4)
    assert bits(generator) == before  # batches of four: the first step has the broken one


def test_a_batch_that_does_not_fit_is_taken_in_parts_with_the_same_gradient(
    campaign: CampaignConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = replace(campaign.training, optimiser="sgd", clip_norm=None)
    campaign = with_generator(replace(campaign, training=training)).in_phase("denoiser")
    whole, split = build_generator(campaign), build_generator(campaign)
    a_round(whole, campaign, steps=1)
    asked: list[int] = []
    plain = split.denoiser.forward

    def forward(noisy: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        asked.append(len(noisy))
        if len(noisy) > 1:
            raise torch.OutOfMemoryError
        return plain(noisy, *others, **named)

    monkeypatch.setattr(split.denoiser, "forward", forward)
    _, state = a_round(split, campaign, steps=1)
    assert asked == [4, 2, 1, 1, 1, 1]
    assert state.micro_size == 1
    one, other = (parts_arrays(generator, TRAINED["denoiser"]) for generator in (whole, split))
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-6)

    def never(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(split.denoiser, "forward", never)
    with pytest.raises(ConfigError, match="one image does not fit"):
        a_round(split, campaign, steps=1)


def test_evaluation_is_the_same_each_time_and_leaves_modes_and_weights(campaign: CampaignConfig) -> None:
    campaign = with_generator(campaign, edges="hed")
    generator = stirred(build_generator(campaign))
    generator.denoiser.eval()
    before = bits(generator)
    for phase in PHASES:
        of_phase = campaign.in_phase(phase)  # type: ignore[arg-type]
        generator.autoencoder.train()
        first = evaluate_phase(generator, slices_of(), of_phase, CPU)
        phases.forget()
        torch.manual_seed(phase == "edges")
        assert evaluate_phase(generator, slices_of(), of_phase, CPU) == first
        assert all(values.count == 8 and len(values.quantiles) == 5 for values in first.values())
        assert generator.autoencoder.training
        assert not generator.denoiser.training
        none = evaluate_phase(generator, taken_none(), of_phase, CPU)
        assert all(values.count == 0 for values in none.values())
    assert bits(generator) == before


def taken_none() -> Slices:
    slices = disc_slices(1)
    named = ("clean_NCHW", "mask_NHW", "has_mask_N", "diagnosis_N", "patient_N")
    return replace(slices, identity=(), **{name: getattr(slices, name)[:0] for name in named})


def test_an_image_is_judged_alike_whatever_others_stand_beside_it(campaign: CampaignConfig) -> None:
    campaign = with_generator(campaign).in_phase("controlnet")
    generator = stirred(build_generator(campaign))
    together = evaluate_phase(generator, slices_of(), campaign, CPU)["controlnet.loss"].total
    apart = 0.0
    for number in range(8):
        chosen = slices_of()
        named = ("clean_NCHW", "mask_NHW", "has_mask_N", "diagnosis_N", "patient_N")
        one = replace(
            chosen,
            identity=chosen.identity[number : number + 1],
            **{name: getattr(chosen, name)[number : number + 1] for name in named},
        )
        apart += evaluate_phase(generator, one, campaign, CPU)["controlnet.loss"].total
    assert apart == pytest.approx(together, rel=1e-5)


def test_judged_times_fall_one_into_each_part_of_the_schedule(campaign: CampaignConfig) -> None:
    for prediction in ("noise", "velocity"):
        of_phase = with_generator(campaign, prediction=prediction).in_phase("denoiser")
        generator = build_generator(of_phase)
        tables = shown.tables_of(generator, slices_of(), of_phase, CPU, mirrored=False)
        early, late = shown.judged_latents(tables, slices_of(), torch.arange(8), of_phase, 2)
        assert bool((early.time_B < 500).all() & (late.time_B >= 500).all() & (late.time_B <= 1000).all())
        assert len(set(early.time_B.tolist())) == 8
        assert (early.time_B.dtype == torch.int64) is (prediction == "noise")
        noised(early.latent_BCHW, early.noise_BCHW, early.time_B, of_phase.generate.prediction)
        with torch.no_grad():
            expected = torch.stack([denoiser_loss_B(generator, of_phase.generate, each) for each in (early, late)])
        found = evaluate_phase(generator, slices_of(), of_phase, CPU)["denoiser.loss"]
        assert found.mean == pytest.approx(float(expected.mean()), rel=1e-5)


def test_an_autoencoder_is_judged_on_images_in_0_to_1(campaign: CampaignConfig) -> None:
    campaign = with_generator(campaign).in_phase("autoencoder")
    generator = stirred(build_generator(campaign))
    generator.latents.scale.fill_(3.0)
    found = evaluate_phase(generator, slices_of(), campaign, CPU)
    image = slices_of().clean_NCHW
    with torch.no_grad():
        latent = generator.encode(image)
        decoded = generator.decode(latent)
    wrong = decoded - image
    assert found["autoencoder.l1"].mean == pytest.approx(float(wrong.abs().mean()), rel=1e-4)
    psnr = (-10 * wrong.square().mean((1, 2, 3)).log10()).mean()
    assert found["autoencoder.psnr_db"].mean == pytest.approx(float(psnr), rel=1e-4)
    assert found["latents.square"].mean == pytest.approx(float((latent / 3).square().mean()), rel=1e-4)


def test_all_phases_in_a_row_end_in_latents_of_spread_1_and_averaged_weights(campaign: CampaignConfig) -> None:
    campaign = with_generator(campaign, ema=0.5)
    told: list[tuple[int, int]] = []
    generator, records = trained_generator(
        campaign, slices_of(), CPU, name="pooled", sites=2, on_step=lambda *at: told.append(at)
    )
    assert list(records) == ["autoencoder", "denoiser", "controlnet"]
    assert all(len(rounds) == 2 for rounds in records.values())
    assert told == [(number, 36) for number in range(1, 37)]  # 3 phases of 2 rounds of 3 steps, for two sites
    with torch.no_grad():
        assert float(generator.encode(slices_of().clean_NCHW).square().mean()) == pytest.approx(1, rel=1e-3)
    assert not untrained(generator)


def test_a_phase_ends_with_the_moving_average_of_its_rounds(campaign: CampaignConfig) -> None:
    nothing = PhaseConfig(rounds=0)
    campaign = with_generator(campaign, ema=0.9, denoiser=nothing, controlnet=nothing)
    averaged, _ = trained_generator(campaign, slices_of(), CPU, name="x")
    of_phase = campaign.in_phase("autoencoder")
    by_hand, state, stages = build_generator(campaign), None, []
    for number in (1, 2):
        _, state = a_round(by_hand, of_phase, site="x", round=number, steps=3, state=state)
        stages.append(parts_arrays(by_hand, ["autoencoder"]))
    found = parts_arrays(averaged, ["autoencoder"])
    for name in found:  # after round 2 a third of what round 1 left is kept
        np.testing.assert_allclose(found[name], stages[0][name] / 3 + 2 * stages[1][name] / 3, rtol=1e-5, atol=1e-7)


def test_a_controlnets_phase_starts_from_the_denoiser_as_it_was_trained(
    campaign: CampaignConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    plain = all_phases.train_phase

    def watched(generator: Generator, slices: Slices, campaign: CampaignConfig, *others: Any, **named: Any) -> Any:
        if campaign.generate.phase == "controlnet" and named["round"] == 1:
            seen.append(torch.equal(generator.controlnet.conv_in.conv.weight, generator.denoiser.conv_in.conv.weight))
        return plain(generator, slices, campaign, *others, **named)

    monkeypatch.setattr(all_phases, "train_phase", watched)
    trained_generator(with_generator(campaign), slices_of(), CPU, name="x")
    assert seen == [True]


def test_fine_tuning_moves_the_controlnet_alone_and_is_the_sites_own(campaign: CampaignConfig) -> None:
    campaign = with_generator(campaign, finetune_steps=3)
    ends = []
    for site in ("a", "a", "b"):
        generator = stirred(build_generator(campaign))
        before = bits(generator)
        record = finetune(generator, slices_of(), campaign, CPU, site=site)
        after = bits(generator)
        assert {name.partition(".")[0] for name in before if before[name] != after[name]} == {"controlnet"}
        assert record["samples"] == 3 * campaign.generate.controlnet.batch_size
        ends.append(after)
    assert ends[0] == ends[1] != ends[2]
    assert finetune(generator, slices_of(), with_generator(campaign), CPU, site="a") == {}


def test_a_controlnet_that_no_phase_trains_is_fine_tuned_from_the_denoiser(campaign: CampaignConfig) -> None:
    still = PhaseConfig(rounds=0, learning_rate=1e-9)
    campaign = with_generator(campaign, finetune_steps=1, controlnet=still)
    generator = stirred(build_generator(campaign), "denoiser")
    assert untrained(generator)
    finetune(generator, slices_of(), campaign, CPU, site="a")
    torch.testing.assert_close(generator.controlnet.conv_in.conv.weight, generator.denoiser.conv_in.conv.weight)


def test_bfloat16_and_memory_order_are_the_machines_choice(campaign: CampaignConfig) -> None:
    campaign = with_generator(campaign).in_phase("controlnet")
    plain = MachineConfig(device="cpu", threads=1, channels_last=False)
    losses = []
    for machine in (CPU, plain, replace(CPU, precision="bfloat16")):
        generator = build_generator(campaign)
        record, _ = train_phase(generator, slices_of(), campaign, machine, site="a", round=1, steps=2)
        losses.append(record["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=3e-2)
