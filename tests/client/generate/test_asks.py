"""What is asked for: each mask K times, own seeds, and scarce diagnoses over the lesions of other patients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from client.dataset import Slices
from client.generate.asks import asked, asked_apart
from shared.config import CampaignConfig, DrawConfig, GenerateConfig
from shared.seeding import derived_seed

LESION = 2


def slices_of(diagnoses: Sequence[int], *, lesion: Sequence[bool], has_mask: Sequence[bool] | None = None) -> Slices:
    """One slice a patient; a square organ, and a lesion in it where there is one."""
    count = len(diagnoses)
    mask = torch.zeros(count, 16, 16, dtype=torch.uint8)
    mask[:, 4:12, 4:12] = 1
    mask[torch.tensor(lesion), 6:8, 6:8] = LESION
    known = torch.tensor(has_mask or [True] * count)
    return Slices(
        torch.rand(count, 1, 16, 16), mask * known[:, None, None], known, torch.tensor(diagnoses), torch.arange(count),
        tuple(f"north/{number}/0" for number in range(count)),
    )  # fmt: skip


def drawing(campaign: CampaignConfig, **draw: object) -> CampaignConfig:
    settings = {"sampler": "rflow", "steps": 2, "variants": 3, **draw}
    generate = GenerateConfig(kind="emit-diff", prediction="velocity", draw=DrawConfig(**settings))  # type: ignore[arg-type]
    return replace(campaign, generate=generate)


def three(campaign: CampaignConfig) -> CampaignConfig:
    return replace(campaign, data=replace(campaign.data, diagnoses=("none", "kind_a", "kind_b"), image_size=(16, 16)))


def test_each_slice_with_a_mask_is_asked_for_k_times_by_seeds_of_its_own(campaign: CampaignConfig) -> None:
    slices = slices_of([0, 1, -1], lesion=[False, True, True], has_mask=[True, False, True])
    asks, notes = asked(slices, drawing(campaign))
    assert asks.source_S.tolist() == [0, 0, 0, 2, 2, 2]
    assert asks.diagnosis_S.tolist() == [0, 0, 0, -1, -1, -1]
    assert not asks.relabelled_S.any()
    assert asks.seeds[4] == derived_seed(campaign.seed, "synthetic", "north/2/0", 1)
    assert len(set(asks.seeds)) == len(asks)
    assert notes == ()


def test_without_masks_in_the_campaign_every_slice_is_asked_for(campaign: CampaignConfig) -> None:
    bare = replace(campaign, data=replace(campaign.data, masks=()), recognise=replace(campaign.recognise, kind="cnn"))
    slices = slices_of([0, 1], lesion=[False, False], has_mask=[False, False])
    assert asked(slices, drawing(bare))[0].source_S.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_site_without_masks_in_a_campaign_with_masks_is_asked_for_nothing(campaign: CampaignConfig) -> None:
    slices = slices_of([0, 1], lesion=[False, False], has_mask=[False, False])
    assert len(asked(slices, drawing(campaign, classes="balanced"))[0]) == 0


def test_balanced_every_diagnosis_with_lesions_ends_with_as_many_images_as_the_most_frequent(
    campaign: CampaignConfig,
) -> None:
    slices = slices_of([0] * 2 + [1] * 4 + [2], lesion=[False] * 2 + [True] * 5)
    asks, notes = asked(slices, drawing(three(campaign), classes="balanced"))
    assert Counter(asks.diagnosis_S.tolist()) == {0: 6, 1: 12, 2: 12}
    assert Counter(asks.source_S[asks.relabelled_S].tolist()).keys() == {2, 3, 4, 5}
    assert max(Counter(asks.source_S[asks.relabelled_S].tolist()).values()) == 3, "9 over 4 slices, evenly"
    assert asks.diagnosis_S[asks.relabelled_S].unique().tolist() == [2]
    assert len(set(asks.seeds)) == len(asks)
    assert notes == ("none: not balanced; none of its own training slices shows lesion",)


def test_balanced_a_diagnosis_without_lesions_is_no_donor_and_takes_none(campaign: CampaignConfig) -> None:
    slices = slices_of([0] * 5 + [1], lesion=[False] * 5 + [True])
    asks, notes = asked(slices, drawing(campaign, classes="balanced"))
    assert not asks.relabelled_S.any()
    assert notes == ("lesion: not balanced; no other diagnosed patient's training slice shows lesion",)


def test_balanced_a_diagnosis_that_the_site_does_not_have_is_said_to_be_left_out(campaign: CampaignConfig) -> None:
    slices = slices_of([0, 1, 1], lesion=[False, True, True])
    _, notes = asked(slices, drawing(three(campaign), classes="balanced"))
    assert "kind_b: not balanced; no training slice here has it, so nothing says whether it shows a lesion" in notes


def test_balanced_what_was_asked_for_without_balancing_keeps_its_seeds(campaign: CampaignConfig) -> None:
    slices = slices_of([1] * 4 + [2], lesion=[True] * 5)
    own, _ = asked(slices, drawing(three(campaign)))
    both, _ = asked(slices, drawing(three(campaign), classes="balanced"))
    assert both.seeds[: len(own)] == own.seeds


def test_held_out_slices_are_asked_for_in_turn_and_no_more_than_the_guard_needs(campaign: CampaignConfig) -> None:
    slices = slices_of([0, 1, 0, 1], lesion=[False, True, False, True])
    assert asked_apart(slices, drawing(campaign), 100).source_S.tolist() == [0, 1, 2, 3] * 3
    assert asked_apart(slices, drawing(campaign), 9).source_S.tolist() == [0, 1, 2, 3] * 2
    assert asked_apart(slices, drawing(campaign), 2).source_S.tolist() == [0, 2]
