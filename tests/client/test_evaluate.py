from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.batches import evaluation_batches
from client.evaluate import evaluate, predict, summarise
from shared.config import CampaignConfig, MachineConfig
from shared.images.quality import psnr_db_B
from shared.networks import Networks, build_networks
from shared.recognise.networks import Recognition
from shared.weights import to_arrays
from tests.client.slices import disc_slices


class Oracle(nn.Module):
    """Finds disc and spot by their brightness, and the diagnosis by the spot's size."""

    def forward(self, image: Tensor) -> Recognition:
        codes = (image[:, 0] > 0.2).long() + (image[:, 0] > 0.6).long()
        logits = nn.functional.one_hot(codes, 3).movedim(-1, 1).float()
        spot = (codes == 2).float().mean((1, 2))
        return Recognition(logits, torch.stack([torch.full_like(spot, 0.002), spot], dim=1), [])


def perfect(campaign: CampaignConfig) -> Networks:
    return Networks(build_networks(campaign).enhancer, Oracle())


def test_an_untrained_enhancer_scores_as_the_degraded_image(campaign: CampaignConfig, machine: MachineConfig) -> None:
    slices = disc_slices(9)
    scores = evaluate(perfect(campaign), slices, campaign, machine).values
    (batch,) = evaluation_batches(slices, campaign, 9)
    expected = psnr_db_B(batch.clean_BCHW, batch.degraded_BCHW).numpy()
    np.testing.assert_allclose(scores["degraded.psnr_db"], expected, rtol=1e-5)
    for metric in ("psnr_db", "ssim", "rmse", "psnr_db_region", "dice"):
        np.testing.assert_allclose(scores[f"enhanced.{metric}"], scores[f"degraded.{metric}"], rtol=1e-5)


def test_the_clean_image_is_read_without_a_mistake(campaign: CampaignConfig, machine: MachineConfig) -> None:
    slices = disc_slices(8, per_patient=2)
    scores = evaluate(perfect(campaign), slices, campaign, machine).values
    assert scores["clean.dice"].tolist() == [1.0] * 8
    # The spot exists in every second patient only; elsewhere it has no Dice.
    assert np.isnan(scores["clean.dice.lesion"]).tolist() == [True, True, False, False] * 2
    assert scores["clean.accuracy"].tolist() == [1.0] * 4
    assert scores["clean.auc"].tolist() == [1.0]
    assert np.nanmean(scores["degraded.dice"]) < 1


def test_images_without_a_label_are_not_judged_by_it(campaign: CampaignConfig, machine: MachineConfig) -> None:
    slices = disc_slices(6)
    slices = replace(
        slices,
        has_mask_N=torch.tensor([True, False, True, False, True, True]),
        diagnosis_N=torch.tensor([0, -1, 0, 1, -1, 1]),
    )
    summary = summarise(evaluate(perfect(campaign), slices, campaign, machine))
    assert summary["clean.dice"].count == 4
    assert summary["clean.accuracy"].count == 4
    assert summary["enhanced.psnr_db"].count == 6
    assert len(summary["enhanced.psnr_db"].quantiles) == 5


def test_evaluation_changes_nothing_and_repeats_to_the_bit(campaign: CampaignConfig, machine: MachineConfig) -> None:
    networks = build_networks(campaign)
    before = to_arrays(networks)
    one, other = (evaluate(networks, disc_slices(5), campaign, machine).values for _ in range(2))
    assert list(one) == list(other)
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])
    after = to_arrays(networks)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_modes_are_as_before(campaign: CampaignConfig, machine: MachineConfig) -> None:
    networks = build_networks(campaign)
    networks.recogniser.eval()
    evaluate(networks, disc_slices(2), campaign, machine)
    assert networks.enhancer.training
    assert not networks.recogniser.training


def test_a_campaign_without_masks_has_no_mask_metric(campaign: CampaignConfig, machine: MachineConfig) -> None:
    diagnosis_only = replace(campaign, data=replace(campaign.data, masks=()))
    scores = evaluate(build_networks(diagnosis_only), disc_slices(4), diagnosis_only, machine).values
    assert not [key for key in scores if "dice" in key or "region" in key]
    assert len(scores["enhanced.accuracy"]) == 4
    masks_only = replace(campaign, data=replace(campaign.data, diagnoses=()))
    scores = evaluate(build_networks(masks_only), disc_slices(4), masks_only, machine).values
    assert not [key for key in scores if "accuracy" in key or "auc" in key or "probabilities" in key]


def test_pictures_are_those_that_were_judged(campaign: CampaignConfig, machine: MachineConfig) -> None:
    slices = disc_slices(6)
    networks = perfect(campaign)
    scores = evaluate(networks, slices, campaign, machine)
    pictures = predict(networks, slices, [4, 1], campaign, machine)
    psnr = psnr_db_B(pictures.clean_NCHW, pictures.degraded_NCHW).tolist()
    assert psnr == pytest.approx([scores.values["degraded.psnr_db"][index] for index in (4, 1)], rel=1e-5)
    assert pictures.identity == (scores.identity[4], scores.identity[1])
    assert torch.equal(pictures.found_NHW["clean"], pictures.mask_NHW)
    assert pictures.enhanced_NCHW.shape == (2, 1, 32, 32)
    assert 0 <= float(pictures.enhanced_NCHW.min()) <= float(pictures.enhanced_NCHW.max()) <= 1
