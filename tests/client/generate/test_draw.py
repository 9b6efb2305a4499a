"""Drawing goes on where it stopped, draws what is asked for, and touches nothing but the training split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from client.dataset import Slices
from client.generate import draw as drawing
from client.generate.asks import asked
from client.generate.draw import Drawn, conditions, draw_synthetic
from shared.config import CampaignConfig, DrawConfig, GenerateConfig, MachineConfig
from shared.generate.networks import Generator, build_generator
from tests.client.generate.textured import textured_slices

SLICES, VARIANTS = 10, 2
MACHINE = MachineConfig(device="cpu", threads=1)


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    draw = DrawConfig(sampler="rflow", steps=2, variants=VARIANTS, memorised_share=1.0)
    return replace(campaign, generate=GenerateConfig(kind="emit-diff", prediction="velocity", draw=draw))


_GENERATORS: list[Generator] = []


@pytest.fixture
def generator(campaign: CampaignConfig) -> Generator:
    """Built once: nothing here moves its weights."""
    if not _GENERATORS:
        built = build_generator(campaign)
        with torch.no_grad():
            for parameter in (*built.denoiser.out.parameters(), *built.controlnet.parameters()):
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        _GENERATORS.append(built)
    return _GENERATORS[0]


@pytest.fixture
def train() -> Slices:
    return textured_slices(SLICES, seed=1)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the networks drew."""
    sizes: list[int] = []
    real = drawing.sample

    def counted(*arguments: Any, **named: Any) -> torch.Tensor:
        sizes.append(len(arguments[5]))
        return real(*arguments, **named)

    monkeypatch.setattr(drawing, "sample", counted)
    monkeypatch.setattr(drawing, "BATCH_SIZE", 8)
    return sizes


def drawn(generator: Generator, train: Slices, campaign: CampaignConfig, **named: Any) -> Drawn:
    return draw_synthetic(generator, train, campaign, MACHINE, site="north", **named)


def test_images_are_k_per_slice_in_range_and_different(
    generator: Generator, train: Slices, campaign: CampaignConfig
) -> None:
    found = drawn(generator, train, campaign)
    images = found.synthetic.image_SCHW
    assert images.shape == (SLICES * VARIANTS, 1, 32, 32)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert found.synthetic.source_S.bincount().tolist() == [VARIANTS] * SLICES
    assert torch.equal(found.synthetic.diagnosis_S, train.diagnosis_N[found.synthetic.source_S])
    assert len({image.numpy().tobytes() for image in images}) == len(images)
    assert found.report["classes"]["lesion"] == {"asked": 10, "relabelled": 0, "used": 10}
    assert found.report["images"] == len(images)


def test_a_drawing_that_was_killed_goes_on_where_it_was_and_draws_the_same(
    generator: Generator, train: Slices, campaign: CampaignConfig, batches: list[int], tmp_path: Path
) -> None:
    whole = drawn(generator, train, campaign)
    assert batches == [8, 8, 4]

    def killed(done: int, _: int) -> None:
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawn(generator, train, campaign, folder=tmp_path, on_progress=killed)
    batches.clear()
    resumed = drawn(generator, train, campaign, folder=tmp_path)
    assert batches == [4]
    assert resumed.synthetic.image_SCHW.numpy().tobytes() == whole.synthetic.image_SCHW.numpy().tobytes()


def test_a_batch_that_is_damaged_is_drawn_again(
    generator: Generator, train: Slices, campaign: CampaignConfig, batches: list[int], tmp_path: Path
) -> None:
    first = drawn(generator, train, campaign, folder=tmp_path)
    victim = sorted(tmp_path.iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:-9])
    batches.clear()
    again = drawn(generator, train, campaign, folder=tmp_path)
    assert len(batches) == 1
    assert torch.equal(again.synthetic.image_SCHW, first.synthetic.image_SCHW)


@pytest.mark.parametrize("change", ["weights", "steps", "image", "mask"])
def test_batches_of_other_weights_settings_or_slices_are_not_taken(
    change: str, generator: Generator, train: Slices, campaign: CampaignConfig, batches: list[int], tmp_path: Path
) -> None:
    drawn(generator, train, campaign, folder=tmp_path)
    batches.clear()
    if change == "weights":
        other = build_generator(replace(campaign, seed=1))
        drawn(other, train, campaign, folder=tmp_path)
    elif change == "steps":
        draw = replace(campaign.generate.draw, steps=3)
        drawn(generator, train, replace(campaign, generate=replace(campaign.generate, draw=draw)), folder=tmp_path)
    elif change == "image":
        drawn(generator, replace(train, clean_NCHW=train.clean_NCHW * 0.9), campaign, folder=tmp_path)
    else:
        drawn(generator, replace(train, mask_NHW=train.mask_NHW.clamp(max=1)), campaign, folder=tmp_path)
    assert batches == ([8, 8, 4] if change != "mask" else batches)
    assert batches, "nothing that was kept fits"


def test_progress_counts_images_of_training_and_then_of_held_out_slices(
    generator: Generator, train: Slices, campaign: CampaignConfig, batches: list[int]
) -> None:
    told: list[tuple[int, int]] = []
    drawn(
        generator, train, campaign,
        held_out=textured_slices(4, seed=2), on_progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(8, 28), (16, 28), (20, 28), (28, 28)]
    assert batches == [8, 8, 4, 8]


def test_no_held_out_image_is_among_the_synthetic_ones(
    generator: Generator, train: Slices, campaign: CampaignConfig
) -> None:
    with_them = drawn(generator, train, campaign, held_out=textured_slices(4, seed=2))
    without = drawn(generator, train, campaign)
    assert torch.equal(with_them.synthetic.image_SCHW, without.synthetic.image_SCHW)
    assert with_them.report["nearness"]["held_out_images"] == 8


def test_a_site_without_masks_gets_no_images_and_no_error(
    generator: Generator, train: Slices, campaign: CampaignConfig
) -> None:
    bare = replace(train, has_mask_N=torch.zeros_like(train.has_mask_N), mask_NHW=torch.zeros_like(train.mask_NHW))
    found = drawn(generator, bare, campaign, held_out=textured_slices(4, seed=2))
    assert len(found.synthetic) == 0
    assert found.synthetic.image_SCHW.shape == (0, 1, 32, 32)
    assert not found.report["refused"]


def test_the_hint_of_another_diagnosis_has_no_edges_in_the_lesion_and_its_prompt_is_what_was_asked_for(
    generator: Generator, campaign: CampaignConfig
) -> None:
    campaign = replace(campaign, data=replace(campaign.data, diagnoses=("none", "kind_a", "kind_b")))
    draw = replace(campaign.generate.draw, classes="balanced")
    campaign = replace(campaign, generate=replace(campaign.generate, draw=draw))
    train = textured_slices(8, seed=1)
    lesions = train.diagnosis_N == 1
    diagnosis = train.diagnosis_N.clone()
    diagnosis[lesions.nonzero()[-1]] = 2
    train = replace(train, diagnosis_N=diagnosis)
    asks, _ = asked(train, campaign)
    assert asks.relabelled_S.any()
    hint, token = conditions(generator, train, asks, campaign, torch.device("cpu"))
    lesion = train.mask_NHW[asks.source_S] == 2
    relabelled = asks.relabelled_S
    assert not hint[relabelled, 0][lesion[relabelled]].any()
    own = ~relabelled & lesion.flatten(1).any(1)
    assert hint[own, 0][lesion[own]].any()
    assert hint[relabelled, 1].flatten(1).any(1).all(), "its outline stays"
    words = token[:, 2]
    assert len((words - asks.diagnosis_S).unique()) == 1, "the pathology's word is that of the diagnosis asked for"
    assert (asks.diagnosis_S != train.diagnosis_N[asks.source_S])[relabelled].all()
