from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.batches import evaluation_batches
from client.dataset import Slices
from client.evaluate import evaluate, summarise
from client.reading import judged, read, taken
from shared.config import CampaignConfig, IngestConfig, LearnConfig, MachineConfig
from shared.images.quality import psnr_db_B
from shared.networks import Networks, build_networks
from shared.recognise.recognition import Recognition
from shared.weights import to_arrays
from tests.client.slices import disc_slices

pytestmark = pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")


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
    shown = taken(slices, [4, 1])
    found = read(networks, shown, campaign, machine)
    psnr = psnr_db_B(found["clean"].image_NCHW, found["degraded"].image_NCHW).tolist()
    assert psnr == pytest.approx([scores.values["degraded.psnr_db"][index] for index in (4, 1)], rel=1e-5)
    assert shown.identity == (scores.identity[4], scores.identity[1])
    assert found["clean"].found_NHW is not None
    assert torch.equal(found["clean"].found_NHW, slices.mask_NHW[[4, 1]])
    enhanced = found["enhanced"].image_NCHW
    assert enhanced.shape == (2, 1, 32, 32)
    assert 0 <= float(enhanced.min()) <= float(enhanced.max()) <= 1


class Counted(nn.Module):
    """An Oracle that keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.oracle = Oracle()
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Recognition:
        self.seen.append(image)
        found: Recognition = self.oracle(image)
        return found


def alone(campaign: CampaignConfig, *, degraded: bool) -> CampaignConfig:
    """A campaign of a recogniser without an enhancer."""
    return replace(
        campaign,
        enhance=replace(campaign.enhance, kind="none"),
        degrade=campaign.degrade if degraded else replace(campaign.degrade, kind="none"),
        objective=replace(campaign.objective, kind="plain"),
    )


def test_without_enhancer_and_degradation_there_is_one_image(campaign: CampaignConfig, machine: MachineConfig) -> None:
    recogniser = Counted()
    slices = disc_slices(5)
    scores = evaluate(Networks(nn.Identity(), recogniser), slices, alone(campaign, degraded=False), machine)
    (seen,) = recogniser.seen
    assert torch.equal(seen, slices.clean_NCHW)
    assert {key.split(".")[0] for key in scores.values} == {"enhanced"}
    assert not [key for key in scores.values if "psnr" in key or "rmse" in key or key == "enhanced.ssim"]
    assert scores.values["enhanced.dice"].tolist() == [1.0] * 5
    assert list(scores.patients) == ["enhanced"]


def test_without_enhancer_the_degraded_image_is_recognised_once(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    recogniser, slices = Counted(), disc_slices(5)
    apart = alone(campaign, degraded=True)
    values = evaluate(Networks(nn.Identity(), recogniser), slices, apart, machine).values
    with_enhancer = evaluate(perfect(campaign), slices, campaign, machine).values
    assert len(recogniser.seen) == 2
    assert {key for key in values if key.startswith("degraded")} == {
        f"degraded.{name}{region}" for name in ("psnr_db", "ssim", "rmse") for region in ("", "_region")
    }
    np.testing.assert_array_equal(values["degraded.psnr_db"], with_enhancer["degraded.psnr_db"])
    for metric in ("dice", "jaccard", "accuracy", "auc", "f1"):  # clamped, and so is what the oracle sees
        np.testing.assert_allclose(values[f"enhanced.{metric}"], with_enhancer[f"degraded.{metric}"])
        np.testing.assert_array_equal(values[f"clean.{metric}"], with_enhancer[f"clean.{metric}"])


@pytest.mark.parametrize("degraded", [True, False])
def test_what_a_recogniser_alone_reads_stands_under_the_states_that_differ(
    campaign: CampaignConfig, machine: MachineConfig, degraded: bool
) -> None:
    apart = alone(campaign, degraded=degraded)
    slices = disc_slices(3)
    found = read(Networks(nn.Identity(), Oracle()), slices, apart, machine)
    assert list(found) == (["degraded", "clean"] if degraded else ["clean"])
    assert judged(apart) == next(iter(found))
    assert found["clean"].found_NHW is not None
    assert torch.equal(found["clean"].found_NHW, slices.mask_NHW)


@pytest.mark.parametrize("head", ["masks", "diagnoses"])
def test_a_recogniser_with_one_head_is_judged_by_it(
    campaign: CampaignConfig, machine: MachineConfig, head: str
) -> None:
    learn = LearnConfig(segment=head == "masks", diagnose=head == "diagnoses")
    one = replace(alone(campaign, degraded=True), learn=learn)
    networks, slices = build_networks(one), disc_slices(4)
    scores = evaluate(networks, slices, one, machine, surfaces=True)
    metrics = {key.split(".", 1)[1] for key in scores.values if key.startswith("enhanced.")}
    of_masks, of_diagnoses = {"dice", "jaccard", "mask_ssim", "missed"}, {"accuracy", "f1", "auc"}
    assert (of_masks if head == "masks" else of_diagnoses) <= metrics
    assert not (of_diagnoses if head == "masks" else of_masks) & metrics
    said = read(networks, slices, one, machine)[judged(one)]
    assert (said.found_NHW is not None, said.probabilities_NK is not None) == (head == "masks", head == "diagnoses")
    assert all(moments.count for key, moments in summarise(scores).items() if key == "enhanced.accuracy")


def test_the_mean_over_classes_is_that_of_the_classes_that_are_there(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    slices = disc_slices(8)
    values = evaluate(perfect(campaign), slices, campaign, machine, surfaces=True).values
    for metric in ("dice", "jaccard", "precision", "recall", "mask_ssim"):
        np.testing.assert_allclose(values[f"clean.{metric}"], 1, rtol=1e-6)
    assert values["clean.hd_px"].tolist() == values["clean.missed"].tolist() == [0.0] * 8
    np.testing.assert_array_less(values["degraded.jaccard"], values["degraded.dice"])
    by_class = np.stack([values["degraded.dice.organ"], values["degraded.dice.lesion"]])
    np.testing.assert_allclose(values["degraded.dice"], np.nanmean(by_class, axis=0), rtol=1e-6)


def test_distances_are_measured_on_demand_in_the_unit_that_is_known(
    campaign: CampaignConfig, machine: MachineConfig
) -> None:
    def distances(slices: Slices, ingest: IngestConfig) -> dict[str, list[float]]:
        there = replace(campaign, data=replace(campaign.data, ingest=ingest))
        values = evaluate(perfect(there), slices, there, machine, surfaces=True).values
        wanted = ("enhanced.hd_", "enhanced.ahd_", "enhanced.hd95_")
        return {
            key.removeprefix("enhanced."): found.tolist() for key, found in values.items() if key.startswith(wanted)
        }

    slices, as_it_is = disc_slices(4), campaign.data.ingest
    assert not [key for key in evaluate(perfect(campaign), slices, campaign, machine).values if "hd" in key]
    pixels = distances(slices, as_it_is)
    assert set(pixels) == {"hd_px", "ahd_px", "hd95_px"}
    assert max(pixels["ahd_px"]) > 0
    agreed = distances(slices, replace(as_it_is, spacing_mm=(3.0, 0.5, 0.5)))
    assert agreed == {key.replace("px", "mm"): pytest.approx([v / 2 for v in px]) for key, px in pixels.items()}
    of_store = distances(replace(slices, spacing_N2=torch.full((4, 2), 2.0)), as_it_is)
    assert of_store["hd_mm"] == pytest.approx([2 * value for value in pixels["hd_px"]])
    some = torch.tensor([[2.0, 2.0], [0.0, 0.0], [2.0, 2.0], [2.0, 2.0]])
    mixed = distances(replace(slices, spacing_N2=some), as_it_is)
    assert np.isnan(mixed["hd_mm"]).tolist() == [False, True, False, False]
    assert mixed["hd_px"][1] == pixels["hd_px"][1]


def test_images_without_a_mask_have_no_distance(campaign: CampaignConfig, machine: MachineConfig) -> None:
    slices = replace(disc_slices(4), has_mask_N=torch.tensor([True, False, True, False]))
    values = evaluate(perfect(campaign), slices, campaign, machine, surfaces=True).values
    for metric in ("hd_px", "missed", "mask_ssim", "precision", "dice"):
        assert np.isnan(values[f"degraded.{metric}"]).tolist() == [False, True, False, True]


def test_a_saliency_bridge_is_judged_like_any_recogniser(campaign: CampaignConfig, machine: MachineConfig) -> None:
    bridge = replace(alone(campaign, degraded=False), learn=LearnConfig(kind="multimix", saliency=True))
    networks, slices = build_networks(bridge), disc_slices(4)
    assert networks.recogniser.saliency == "normalised"
    scores = evaluate(networks, slices, bridge, machine, surfaces=True)
    assert np.isfinite(scores.values["enhanced.dice"]).all()
    assert len(scores.values["enhanced.accuracy"]) == 4
    assert all(parameter.grad is None for parameter in networks.recogniser.parameters())
