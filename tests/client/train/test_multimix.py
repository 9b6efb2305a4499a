"""MultiMix's losses against their equations, and what must never happen to a graph, a gradient or an empty stream."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from client.batches import training_batches
from client.labels import scarce
from client.train import gradprom, recognise
from client.train.local import train_round
from client.train.multimix import (
    MeanMaps,
    divergence,
    multimix,
    official_divergence,
    pixel_consistency,
    pseudo_labels,
    unlabelled_masks,
)
from client.train.terms import Share
from shared.batch import Batch, Streams
from shared.config import CampaignConfig, LabelsConfig, LearnConfig, MachineConfig, SimulationConfig, load
from shared.errors import ConfigError, DataError
from shared.images.augment import Strong
from shared.networks import Networks, build_networks
from shared.recognise.losses import labelled
from shared.recognise.recognition import Recognition
from shared.weights import to_arrays
from tests.client.slices import disc_slices

MACHINE = MachineConfig(device="cpu", threads=1)


def campaign(*overrides: str) -> CampaignConfig:
    small = ["data=phantom", "recognise.channels=4", "recognise.depth=3", "training.batch_size=4", "rounds=2", "seed=0"]
    alone = ["enhance=none", "degrade=none", "objective=plain"] if "objective=gradprom" not in overrides else []
    return load("simulation", [*small, "learn=multimix", *alone, *overrides], SimulationConfig).campaign


def slices() -> Any:
    return scarce(disc_slices(32, per_patient=2), LabelsConfig(masks=6, diagnoses=0.5), seed=0)


def batch_of(agreed: CampaignConfig) -> Batch:
    return next(training_batches(slices(), agreed, site="north", round=1, steps=1))


def share_of(batch: Batch) -> Share:
    return Share(1.0, labelled(batch))


def test_a_batch_holds_as_many_images_of_each_stream_with_the_labels_of_that_stream_alone() -> None:
    batch = batch_of(campaign())
    assert batch.streams == Streams(4, 4, 4, 4)
    assert batch.has_mask_B.tolist() == [True] * 4 + [False] * 12
    assert ((batch.diagnosis_B >= 0) == torch.tensor([False] * 8 + [True] * 4 + [False] * 4)).all()
    assert len(batch.strong) == 4
    assert not batch.mask_BHW[4:].any()


def test_no_parameter_gets_a_gradient_from_the_saliency() -> None:
    agreed = campaign()
    networks, batch = build_networks(agreed), batch_of(agreed)
    multimix(agreed, MeanMaps())(networks.recogniser, batch.clean_BCHW, batch, share_of(batch))
    assert all(parameter.grad is None for parameter in networks.recogniser.parameters())


def test_micro_batches_add_up_to_the_whole_batch_but_for_the_divergence_of_mean_maps() -> None:
    agreed = campaign("learn.mask_ssl=none")
    networks, batch = build_networks(agreed), batch_of(agreed)
    terms = multimix(agreed, MeanMaps())
    whole = recognise.alone_gradients(networks, batch, share_of(batch), agreed, recognition=terms)
    parts = [
        recognise.alone_gradients(
            networks, part, Share(part.size / batch.size, labelled(batch)), agreed, recognition=terms
        )
        for part in batch.micro_batches(8)
    ]
    assert len(parts) == 2
    total = parts[0] + parts[1]
    assert whole.recogniser_D is not None
    assert total.recogniser_D is not None
    torch.testing.assert_close(total.recogniser_D, whole.recogniser_D, rtol=1e-4, atol=1e-6)
    for name, value in whole.sums.items():
        torch.testing.assert_close(total.sums[name], value, rtol=1e-4, atol=1e-5)


def test_the_released_divergence_is_zero_with_a_gradient_of_zero() -> None:
    rng = torch.Generator().manual_seed(0)
    first, second = (torch.rand(3, 1, 8, 8, generator=rng) for _ in range(2))
    second.requires_grad_()
    loss = official_divergence(first, second)
    (gradient,) = torch.autograd.grad(loss, second)
    assert loss.item() == 0.0
    assert not gradient.any()


def test_the_divergence_of_two_classes_is_that_of_two_coins() -> None:
    p, q = torch.tensor([[0.2, 0.7]]), torch.tensor([[0.5, 0.4]])
    coins = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    both = divergence(torch.stack([1 - p, p]), torch.stack([1 - q, q]))
    torch.testing.assert_close(both, coins)
    assert divergence(torch.stack([1 - p, p]), torch.stack([1 - p, p])).item() == pytest.approx(0, abs=1e-7)


def maps(seed: int, count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).softmax(1)


def term(form: str, with_mask: Tensor, without: Tensor, known: MeanMaps | None = None) -> Tensor | None:
    agreed = campaign(f"learn.mask_ssl={form}")
    networks, batch = build_networks(agreed), batch_of(agreed)
    known = known or MeanMaps()
    found = unlabelled_masks(networks.recogniser, with_mask, without, torch.zeros(0), batch, agreed.learn, known)
    return None if found is None else found.loss


def test_prior_does_not_care_which_images_stand_side_by_side_and_pairwise_does() -> None:
    first, second = maps(0, 4), maps(1, 4)
    shuffled = second[torch.tensor([2, 0, 3, 1])]
    prior, again = term("prior", first, second), term("prior", first, shuffled)
    pairwise, other = term("pairwise", first, second), term("pairwise", first, shuffled)
    assert prior is not None
    assert again is not None
    torch.testing.assert_close(prior, again)
    assert pairwise is not None
    assert other is not None
    assert not torch.isclose(pairwise, other)


@pytest.mark.parametrize("form", ["prior", "pairwise"])
def test_the_labelled_side_of_the_divergence_gets_no_gradient(form: str) -> None:
    first, second = maps(0, 4).requires_grad_(), maps(1, 4).requires_grad_()
    loss = term(form, first, second)
    assert loss is not None
    by_first, by_second = torch.autograd.grad(loss, [first, second], allow_unused=True)
    assert by_first is None or not by_first.any()
    assert by_second.any()


def test_a_site_without_masks_computes_the_divergence_once_the_federations_map_is_there() -> None:
    none, without = maps(0, 0), maps(1, 4)
    assert term("prior", none, without) is None
    assert term("federated", none, without) is None
    shared_map = maps(2, 5).mean(0)
    found = term("federated", none, without, MeanMaps(labelled_KHW=shared_map, fixed=True))
    assert found is not None
    torch.testing.assert_close(found, divergence(shared_map, without.mean(0)))


def test_the_moving_average_of_the_labelled_map_is_that_of_the_batches() -> None:
    batches = [maps(seed, 2).mean(0) for seed in range(3)]
    found = MeanMaps()
    for each in batches:
        found = found.joined(each, None, 0.9)
    assert found.unlabelled_KHW is None
    assert found.labelled_KHW is not None
    torch.testing.assert_close(found.labelled_KHW, 0.9 * (0.9 * batches[0] + 0.1 * batches[1]) + 0.1 * batches[2])


class Oracle(torch.nn.Module):
    """Says of every image the two logits that stand in its first two pixels."""

    def forward(self, image_BCHW: Tensor) -> Recognition:
        return Recognition(None, image_BCHW[:, 0, 0, :2], [])


def test_a_pseudo_label_counts_from_the_threshold_on() -> None:
    confidence = torch.tensor([0.69, 0.71, 0.9])
    images = torch.zeros(3, 1, 4, 4)
    images[:, 0, 0, 1] = (confidence / (1 - confidence)).log()
    codes, accepted = pseudo_labels(Oracle(), images, 0.7)
    assert codes.tolist() == [1, 1, 1]
    assert accepted.tolist() == [False, True, True]


class Brightness(torch.nn.Module):
    """Masks what is bright: logits 0 of background, 8 (image - 1/2) of the one class."""

    def forward(self, image_BCHW: Tensor) -> Recognition:
        return Recognition(torch.cat([0 * image_BCHW, 8 * image_BCHW - 4], dim=1), None, [])


def test_confident_pixels_are_learnt_where_the_strong_view_moves_them_and_no_others() -> None:
    rng = torch.Generator().manual_seed(0)
    images, said = torch.rand(2, 1, 6, 5, generator=rng), torch.randn(2, 2, 6, 5, generator=rng).softmax(1)
    strong = (Strong((("flip", 1.0),)), Strong((("translate_x", 0.4),)))  # the second: two pixels to the right
    batch = replace(batch_of(campaign()), strong=strong)
    found = pixel_consistency(Brightness(), said, images, batch, 0.7)
    total, learnt_from = 0.0, set()
    for image, row, column in itertools.product(range(2), range(6), range(5)):
        source = 4 - column if image == 0 else column - 2
        if source < 0 or float(said[image, :, row, source].max()) < 0.7:
            continue
        foreground = torch.sigmoid(8 * images[image, 0, row, source] - 4)
        of_class = foreground if int(said[image, :, row, source].argmax()) else 1 - foreground
        total -= float(of_class.log())
        learnt_from.add(image)
    assert float(found.loss) == pytest.approx(total / 60, rel=1e-5)
    assert float(found.images) == len(learnt_from) == 2
    assert pixel_consistency(Brightness(), said, images, batch, 1.0).loss == 0


@pytest.mark.parametrize("threshold", [1.0, 0.0])
def test_a_batch_with_nothing_or_everything_accepted_is_finite(threshold: float) -> None:
    agreed = campaign(f"learn.threshold={threshold}")
    networks, batch = build_networks(agreed), batch_of(agreed)
    terms = multimix(agreed, MeanMaps())(networks.recogniser, batch.clean_BCHW, batch, share_of(batch))
    assert torch.stack(terms.losses).isfinite().all()
    assert terms.sums["accepted_N"].sum() == (0 if threshold else 4)
    if threshold:
        assert terms.sums["loss_diagnosis_ssl"] == 0
        assert terms.sums["images.diagnosis"] == 4


SITES = {
    "masks only": LabelsConfig(diagnoses=0.0),
    "diagnoses only": LabelsConfig(masks=0),
    "none": LabelsConfig(masks=0, diagnoses=0.0),
    "both": LabelsConfig(masks=6, diagnoses=0.5),
}


@pytest.mark.parametrize("labels", SITES)
@pytest.mark.parametrize("form", ["prior", "federated", "pairwise", "official0", "consistency", "none"])
def test_a_site_leaves_out_what_it_cannot_compute_and_moves_nothing_that_it_has_no_label_for(
    labels: str, form: str
) -> None:
    agreed = campaign(f"learn.mask_ssl={form}", "learn.threshold=1.0")  # no pseudo-label is accepted
    networks = build_networks(agreed)
    before = to_arrays(networks)
    scarcely = scarce(disc_slices(16), SITES[labels], seed=0)
    record, _ = train_round(networks, scarcely, agreed, MACHINE, site="north", round=1, steps=2)
    moved = {name for name, values in to_arrays(networks).items() if (values != before[name]).any()}
    has_masks, has_diagnoses = labels in ("masks only", "both"), labels in ("diagnoses only", "both")
    assert (record["images.decoder"] > 0) == any(name.startswith("recogniser.up.") for name in moved)
    assert (record["images.decoder"] > 0) >= has_masks
    assert (record["images.diagnosis"] > 0) == has_diagnoses
    assert has_diagnoses == any(name.startswith("recogniser.diagnosis_head") for name in moved)


def test_a_site_without_what_a_method_learns_from_is_told_so() -> None:
    agreed = campaign("learn=unet")
    with pytest.raises(DataError, match="learn=unet learns from masks"):
        training_batches(scarce(disc_slices(8), LabelsConfig(masks=0), 0), agreed, site="north", round=1, steps=1)


def test_such_a_site_takes_part_with_a_recogniser_alone_and_moves_nothing() -> None:
    agreed = campaign("learn=unet")
    networks = build_networks(agreed)
    before = to_arrays(networks)
    unmasked = scarce(disc_slices(8), LabelsConfig(masks=0), 0)
    record, _ = train_round(networks, unmasked, agreed, MACHINE, site="north", round=1, steps=2)
    assert record["samples"] == record["images.encoder"] == record["images.decoder"] == 0
    assert all((values == before[name]).all() for name, values in to_arrays(networks).items())


def test_an_unlabelled_image_counts_as_much_less_than_a_labelled_one_as_its_term_weighs_less() -> None:
    agreed = campaign("learn.threshold=0.0", "learn.mask_ssl_weight=0.5", "learn.dice_weight=2.0")
    networks, batch = build_networks(agreed), batch_of(agreed)
    sums = multimix(agreed, MeanMaps())(networks.recogniser, batch.clean_BCHW, batch, share_of(batch)).sums
    assert float(sums["images.decoder"]) == 4 + 4 * 0.25
    assert float(sums["images.diagnosis"]) == 4 + 4 * 0.25
    assert float(sums["images.encoder"]) == 10


def test_an_unlabelled_image_never_counts_more_than_a_labelled_one_for_a_coordinator_believes_no_more() -> None:
    agreed = campaign("learn.threshold=0.0", "learn.mask_ssl_weight=20", "learn.diagnosis_ssl_weight=9")
    record, _ = train_round(build_networks(agreed), slices(), agreed, MACHINE, site="north", round=1, steps=2)
    assert record["images.decoder"] == record["images.diagnosis"] == 2 * (4 + 4)
    assert record["images.encoder"] == record["samples"] == 2 * 16


def test_inside_gradprom_the_recogniser_reads_enhanced_images_and_its_gradient_reaches_the_enhancer() -> None:
    agreed = campaign("objective=gradprom", "selfreg=selfreg", "enhance.channels=4")
    networks, batch = build_networks(agreed), batch_of(agreed)
    terms = multimix(agreed, MeanMaps())
    found = gradprom.gradients(networks, batch, share_of(batch), agreed, recognition=terms)
    assert found.task_D[0].abs().sum() > 0
    enhanced = networks.enhancer(batch.degraded_BCHW).detach()
    there = recognise._on(enhanced, networks, batch, share_of(batch), terms)
    assert found.recogniser_D is not None
    torch.testing.assert_close(found.recogniser_D, there[0], rtol=1e-3, atol=1e-6)


def trained(agreed: CampaignConfig, seed: int) -> Networks:
    networks = build_networks(replace(agreed, seed=seed))
    train_round(networks, slices(), replace(agreed, seed=seed), MACHINE, site="north", round=1, steps=3)
    return networks


def test_the_same_seed_trains_the_same_weights_to_the_last_bit() -> None:
    agreed = campaign("selfreg=selfreg", "selfreg.consistency=random")
    first, second, other = (to_arrays(trained(agreed, seed)) for seed in (0, 0, 1))
    assert all((first[name] == second[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


def test_a_larger_label_budget_keeps_what_a_smaller_one_kept() -> None:
    everything = disc_slices(32, per_patient=4)
    kept = [scarce(everything, LabelsConfig(masks=count), 0).has_mask_N for count in (3, 8, 100)]
    assert [int(each.sum()) for each in kept] == [3, 8, 32]
    assert (kept[0] <= kept[1]).all()
    first = everything.patient_N[kept[1]]
    assert len(set(first.tolist())) == 8  # of as many patients as there are masks
    shares = [scarce(everything, LabelsConfig(diagnoses=share), 0).diagnosis_N >= 0 for share in (0.0, 0.25, 0.5, 1.0)]
    assert [int(each.sum()) // 4 for each in shares] == [0, 2, 4, 8]
    assert (shares[1] <= shares[2]).all()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"segment": False, "diagnose": False}, "nothing is left to learn"),
        ({"segment": False, "saliency": True}, "leads from the class head into the decoder"),
        ({"diagnose": False, "saliency": True}, "leads from the class head into the decoder"),
        ({"diagnose": False, "pseudo_labels": True}, "set learn.diagnose=true"),
        ({"segment": False, "mask_ssl": "prior"}, "set learn.segment=true"),
        ({"kind": "supervised", "pseudo_labels": True}, "choose learn=multimix"),
        ({"prior_patients": 1}, "one patient's map is no aggregate"),
        ({"prior_decay": 1.0}, "must lie in"),
        ({"mask_ssl_weight": -0.1}, "must not be negative"),
    ],
    ids=str,
)
def test_flags_that_make_no_sense_together_are_refused(flags: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        LearnConfig(**{"kind": "multimix", **flags})


def test_a_batch_of_streams_that_fits_in_memory_is_one_piece() -> None:
    agreed = campaign()
    _, state = train_round(build_networks(agreed), slices(), agreed, MACHINE, site="north", round=1, steps=1)
    assert [part.size for part in batch_of(agreed).micro_batches(state.micro_size)] == [16]
