"""What gates ask for, against an oracle that reads brightness and slower twins; nothing of few patients leaves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.acceptance import accepted, merged_bins
from client.batches import evaluation_batches
from client.describe import describe
from client.evaluate import evaluate
from shared.config import CampaignConfig, DegradeConfig, EnhancerConfig, MachineConfig
from shared.images.descriptors import descriptors
from shared.networks import Networks
from shared.types import Metrics
from tests.client.slices import disc_slices
from tests.client.test_evaluate import Oracle, perfect


class Darkens(nn.Module):
    """An enhancer that takes away whatever is bright: it erases every spot."""

    def forward(self, image: Tensor) -> Tensor:
        return image.clamp(max=0.5)


class Invents(nn.Module):
    """An enhancer that draws a spot in a corner of every image, far from any disc."""

    def forward(self, image: Tensor) -> Tensor:
        drawn = image.clone()
        drawn[..., :3, :3] = 0.9
        return drawn


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    return replace(campaign, degrade=DegradeConfig(kind="gaussian", sigma=(0.01, 0.01)))


def means(metrics: Metrics) -> dict[str, float]:
    return {key.removeprefix("accept."): moments.mean for key, moments in metrics.items()}


def test_an_enhancer_that_does_nothing_does_no_harm(campaign: CampaignConfig, machine: MachineConfig) -> None:
    figures = accepted(Networks(nn.Identity(), Oracle()), disc_slices(8), campaign, machine)
    of = means(figures)
    assert of["gain.psnr_db"] == 0
    assert of["harm.psnr_db"] == 100
    assert of["harm.dice_before"] == of["harm.dice_after"] == of["harm.accuracy_before"] == 1
    assert of["lesions.before"] == of["lesions.after"] == 1
    assert of["lesions.erased"] == of["false.invented"] == 0
    assert figures["accept.lesions.before"].count == 4  # every second patient has one
    assert figures["accept.false.before"].count == 8
    assert not any(moments.quantiles for moments in figures.values())


def test_an_enhancer_that_removes_lesions_is_found_out(campaign: CampaignConfig, machine: MachineConfig) -> None:
    of = means(accepted(Networks(Darkens(), Oracle()), disc_slices(8), campaign, machine))
    assert (of["lesions.before"], of["lesions.after"], of["lesions.erased"]) == (1, 0, 1)
    assert (of["harm.dice_before.lesion"], of["harm.dice_after.lesion"]) == (1, 0)
    assert (of["harm.accuracy_before"], of["harm.accuracy_after"]) == (1, 0.5)
    assert of["harm.psnr_db"] < 70  # every second image is untouched: 100 dB


def test_an_enhancer_that_draws_lesions_is_found_out(campaign: CampaignConfig, machine: MachineConfig) -> None:
    of = means(accepted(Networks(Invents(), Oracle()), disc_slices(8), campaign, machine))
    assert (of["false.before"], of["false.after"], of["false.invented"]) == (0, 1, 1)
    assert of["lesions.erased"] == 0


def test_gain_and_descriptions_are_those_of_the_very_images_that_evaluation_sees(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    slices, networks = disc_slices(7), perfect(campaign)
    figures, scores = (
        accepted(networks, slices, campaign, machine),
        evaluate(networks, slices, campaign, machine).values,
    )
    gain = scores["enhanced.psnr_db"] - scores["degraded.psnr_db"]
    assert figures["accept.gain.psnr_db"].total == pytest.approx(gain.sum(), abs=1e-3)
    assert means(figures)["harm.dice_before"] == pytest.approx(np.nanmean(scores["clean.dice"]))
    (batch,) = evaluation_batches(slices, campaign, 7)
    for name, values in descriptors(batch.degraded_BCHW).items():
        assert figures[f"describe.{name}"].total == pytest.approx(float(values.double().sum()), rel=1e-5, abs=1e-6)


def test_calibration_adds_up_to_all_patients_and_no_bin_holds_fewer_than_three(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    figures = accepted(perfect(campaign), disc_slices(22, per_patient=2), campaign, machine)
    counts = {key[-1]: moments for key, moments in figures.items() if key.startswith("accept.calibration.count")}
    assert sum(moments.count for moments in counts.values()) == 11
    assert all(moments.count >= 3 for moments in counts.values())
    for number, moments in counts.items():
        correct, confidence = (figures[f"accept.calibration.{name}{number}"] for name in ("correct", "confidence"))
        assert correct.count == confidence.count == moments.count == moments.total
        assert 0 <= correct.total <= moments.count
        assert moments.count / 2 <= confidence.total <= moments.count  # of two diagnoses


def test_bins_of_few_patients_join_their_neighbours() -> None:
    def merged(*bins: int) -> list[int]:
        return merged_bins(np.array(bins)).tolist()

    assert merged(5, 5, 5, 9, 9, 9) == [5, 5, 5, 9, 9, 9]
    assert merged(4, 5, 5, 9, 9, 9) == [5, 5, 5, 9, 9, 9]  # one alone joins upwards
    assert merged(5, 5, 5, 9) == [5, 5, 5, 5]  # and at the end downwards
    assert merged(0, 3, 9) == [0, 0, 0]


def test_merging_never_makes_a_calibration_look_worse() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        top, correct = rng.random(12), rng.integers(0, 2, 12)
        bins = (top * 10).astype(np.int64)
        merged = merged_bins(bins)
        apart, together = (sum(abs((top - correct)[of == b].sum()) for b in set(of)) for of in (bins, merged))
        assert together <= apart + 1e-12


def test_of_two_patients_only_figures_over_all_images_leave(campaign: CampaignConfig, machine: MachineConfig) -> None:
    figures = accepted(perfect(campaign), disc_slices(6, per_patient=3), campaign, machine)
    assert set(figures) == {
        *("accept.gain.psnr_db", "accept.harm.psnr_db", "accept.harm.dice_before", "accept.harm.dice_after"),
        *("accept.harm.accuracy_before", "accept.harm.accuracy_after"),
    }


def test_a_class_or_lesion_of_two_patients_does_not_leave(campaign: CampaignConfig, machine: MachineConfig) -> None:
    figures = accepted(perfect(campaign), disc_slices(4), campaign, machine)  # two of four have a spot
    assert not [key for key in figures if "lesions" in key or key.endswith("before.lesion")]
    assert "accept.harm.dice_before.organ" in figures


def test_without_an_enhancer_calibration_and_descriptions_are_left(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    alone = replace(campaign, enhance=EnhancerConfig(kind="none"), objective=replace(campaign.objective, kind="plain"))
    figures = accepted(Networks(nn.Identity(), Oracle()), disc_slices(8), alone, machine)
    assert figures
    assert {key.split(".")[1] for key in figures if key.startswith("accept.")} == {"calibration"}


def test_images_without_labels_count_for_what_needs_none(campaign: CampaignConfig, machine: MachineConfig) -> None:
    slices = disc_slices(8)
    slices = replace(slices, has_mask_N=torch.arange(8) < 4, diagnosis_N=torch.full((8,), -1))
    figures = accepted(perfect(campaign), slices, campaign, machine)
    assert figures["accept.gain.psnr_db"].count == 8
    assert figures["accept.false.before"].count == 4
    assert not [key for key in figures if "accuracy" in key or "calibration" in key]
    nobody = accepted(
        perfect(campaign), replace(slices, has_mask_N=torch.zeros(8, dtype=torch.bool)), campaign, machine
    )
    assert not [key for key in nobody if "dice" in key or "false" in key]


def test_approve_tells_that_these_aggregates_leave(campaign: CampaignConfig) -> None:
    said = dict(describe(campaign))["leaves at the end"]
    assert "lesions it erases and invents" in said
    assert "never of fewer than 3 patients" in said
