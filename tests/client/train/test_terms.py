"""Logits merged cell by cell against a loop over pixels, and what real and unknown partners make of the loss."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from client.batches import training_batches
from client.dataset import Synthetic
from client.train.local import batch_gradients, train_round
from client.train.recognise import alone_gradients
from client.train.terms import Share, merged_losses, supervised, supervised_terms
from shared.batch import Batch
from shared.config import CampaignConfig, MachineConfig, SimulationConfig, load
from shared.networks import Networks, build_networks
from shared.recognise.losses import labelled, supervised_losses
from shared.recognise.recognition import Recognition
from tests.client.slices import disc_slices

MACHINE = MachineConfig(device="cpu", threads=1)
SIDE = 16


def campaign(*overrides: str) -> CampaignConfig:
    small = ["data=phantom", "recognise.channels=4", "recognise.depth=3", "training.batch_size=6", "rounds=2", "seed=0"]
    alone = ["enhance=none", "degrade=none", "objective=plain", "generate=emit-diff", "augment=emit-diff"]
    return load("simulation", [*small, *alone, *overrides], SimulationConfig).campaign


def pairs(size: int = 6) -> Batch:
    """Some without a mask; diagnoses known of both, of one or the other, and of neither image of a pair."""
    rng = torch.Generator().manual_seed(0)
    image, synthetic = torch.rand(2, size, 1, SIDE, SIDE, generator=rng)
    has_mask = torch.arange(size) % 3 > 0
    mask = torch.randint(0, 3, (size, SIDE, SIDE), generator=rng) * has_mask[:, None, None]
    diagnosis = torch.tensor([0, 1, -1, -1, 1, 0])[:size]
    partners = torch.tensor([0, 0, 1, -1, -1, 1])[:size]
    cells = (torch.rand(size, 4, 4, generator=rng) < 0.6).repeat_interleave(4, 1).repeat_interleave(4, 2)
    return Batch(image, image, mask, has_mask, diagnosis, synthetic_BCHW=synthetic, synthetic_diagnosis_B=partners,
                 real_cells_BHW=cells)  # fmt: skip


def whole(batch: Batch) -> Share:
    return Share(1.0, labelled(batch))


def said(size: int = 6) -> Recognition:
    """Logits of 2 * `size` images out of the blue."""
    rng = torch.Generator().manual_seed(1)
    return Recognition(torch.randn(2 * size, 3, SIDE, SIDE, generator=rng), torch.randn(2 * size, 2, generator=rng), [])


def looped_mask_loss(logits_KHW: Tensor, other_KHW: Tensor, real_HW: Tensor, mask_HW: Tensor) -> float:
    """Soft Dice of the classes that are shown plus cross-entropy of one image, pixel by pixel."""
    classes = logits_KHW.shape[0]
    overlap, sizes, entropy = [0.0] * classes, [0.0] * classes, 0.0
    for y in range(SIDE):
        for x in range(SIDE):
            chosen = logits_KHW if bool(real_HW[y, x]) else other_KHW
            powers = [math.exp(float(chosen[k, y, x])) for k in range(classes)]
            truth = int(mask_HW[y, x])
            for k in range(classes):
                probability = powers[k] / sum(powers)
                overlap[k] += probability * (k == truth)
                sizes[k] += probability + (k == truth)
            entropy -= math.log(powers[truth] / sum(powers))
    shown = [k for k in range(1, classes) if bool((mask_HW == k).any())]
    dice = [1 - (2 * overlap[k] + 1) / (sizes[k] + 1) for k in shown]
    return (sum(dice) / len(dice) if dice else 0.0) + entropy / SIDE**2


def test_merged_logits_have_the_loss_of_a_loop_over_pixels() -> None:
    agreed, batch, recognition = campaign("objective.mask_weight=2"), pairs(), said()
    assert recognition.mask_logits_BKHW is not None
    assert batch.real_cells_BHW is not None
    loss, _ = merged_losses(recognition, batch, agreed, labelled(batch))
    looped = [
        looped_mask_loss(*(recognition.mask_logits_BKHW[[n, n + 6]]), batch.real_cells_BHW[n], batch.mask_BHW[n])
        for n in range(6)
        if bool(batch.has_mask_B[n])
    ]
    assert len(looped) == 4
    assert float(loss) == pytest.approx(2 * sum(looped) / 4, rel=1e-5)


def test_each_image_of_a_pair_is_diagnosed_by_its_share_and_alone_where_the_other_is_unknown() -> None:
    agreed, batch, recognition = campaign("augment.real=0.7", "objective.diagnosis_weight=0.5"), pairs(), said()
    assert recognition.diagnosis_logits_BN is not None
    _, loss = merged_losses(recognition, batch, agreed, labelled(batch))
    log = F.log_softmax(recognition.diagnosis_logits_BN, 1).neg().tolist()
    expected = [
        0.7 * log[0][0] + 0.3 * log[6][0],
        0.7 * log[1][1] + 0.3 * log[7][0],
        log[8][1],  # the synthetic image's alone
        log[4][1],  # the real image's alone
        0.7 * log[5][0] + 0.3 * log[11][1],
    ]
    assert float(loss) == pytest.approx(0.5 * sum(expected) / 5, rel=1e-5)


def test_with_nothing_but_real_cells_it_is_the_supervised_loss() -> None:
    agreed = campaign("augment.real=1")
    batch = pairs()
    partners = torch.where(batch.diagnosis_B >= 0, torch.tensor([1, 0, 0, 1, -1, 1]), -1)
    every = replace(batch, real_cells_BHW=torch.ones(6, SIDE, SIDE, dtype=torch.bool), synthetic_diagnosis_B=partners)
    recognition = said()
    assert recognition.mask_logits_BKHW is not None
    assert recognition.diagnosis_logits_BN is not None
    of_real = Recognition(recognition.mask_logits_BKHW[:6], recognition.diagnosis_logits_BN[:6], [])
    merged = merged_losses(recognition, every, agreed, labelled(every))
    plain = Batch(*batch.tensors()[:5])
    for loss, expected in zip(
        merged, supervised_losses(of_real, plain, agreed.objective, labelled(plain)), strict=True
    ):
        torch.testing.assert_close(loss, expected)
    networks = build_networks(agreed)
    found = supervised_terms(networks.recogniser, batch.clean_BCHW, every, whole(every), campaign=agreed)
    alone = supervised_terms(networks.recogniser, batch.clean_BCHW, plain, whole(plain), campaign=agreed)
    for loss, other in zip(found.losses, alone.losses, strict=True):
        torch.testing.assert_close(loss, other)
    assert {name: int(count) for name, count in found.sums.items()} == {
        name: int(count) for name, count in alone.sums.items()
    }


def test_beside_itself_an_image_has_the_supervised_loss_whatever_the_cells() -> None:
    agreed, batch = campaign(), pairs()
    itself = replace(batch, synthetic_BCHW=batch.clean_BCHW, synthetic_diagnosis_B=batch.diagnosis_B)
    plain = Batch(*batch.tensors()[:5])
    networks = build_networks(agreed)
    found = alone_gradients(networks, itself, whole(itself), agreed)
    alone = alone_gradients(networks, plain, whole(plain), agreed)
    assert found.recogniser_D is not None
    assert alone.recogniser_D is not None
    torch.testing.assert_close(found.recognise_loss, alone.recognise_loss)
    torch.testing.assert_close(found.recogniser_D, alone.recogniser_D, rtol=1e-4, atol=1e-6)


def test_a_pair_counts_as_one_image() -> None:
    agreed, batch = campaign(), pairs()
    terms = supervised(agreed)(build_networks(agreed).recogniser, batch.clean_BCHW, batch, whole(batch))
    counts = {name: int(count) for name, count in terms.sums.items()}
    # Two images without a mask; one pair of which nothing is known, and that one has no mask either.
    assert counts == {"images.encoder": 5, "images.decoder": 4, "images.diagnosis": 5}


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("selfreg", ["none", "selfreg"])
def test_micro_batches_of_pairs_add_up_to_the_batch(size: int, selfreg: str) -> None:
    agreed, batch = campaign(f"selfreg={selfreg}"), pairs()
    networks = build_networks(agreed)

    def gradients(micro_size: int) -> tuple[Tensor, dict[str, Tensor]]:
        found, _ = batch_gradients(networks, batch, agreed, MACHINE, alone_gradients, micro_size)
        assert found.recogniser_D is not None
        return found.recogniser_D, dict(found.sums)

    (once, sums), (parts, sums_of_parts) = gradients(6), gradients(size)
    torch.testing.assert_close(parts, once, rtol=1e-4, atol=1e-6)
    assert sums.keys() == sums_of_parts.keys()
    for name, value in sums.items():
        torch.testing.assert_close(sums_of_parts[name], value, rtol=1e-4, atol=1e-6, check_dtype=False)


def test_the_recogniser_is_run_once_on_both_images_and_learns_from_both() -> None:
    agreed, batch = campaign(), pairs()
    recogniser = build_networks(agreed).recogniser
    calls: list[int] = []
    recogniser.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    image = batch.clean_BCHW.clone().requires_grad_()
    synthetic = batch.synthetic_BCHW
    assert synthetic is not None
    shown = replace(batch, synthetic_BCHW=synthetic.clone().requires_grad_())
    assert shown.synthetic_BCHW is not None
    terms = supervised(agreed)(recogniser, image, shown, whole(batch))
    of_both = torch.autograd.grad(torch.stack(terms.losses).sum(), [image, shown.synthetic_BCHW])
    assert calls == [12]
    assert all(bool(gradient.abs().sum() > 0) for gradient in of_both)


def test_a_recogniser_of_masks_or_of_diagnoses_alone_learns_from_pairs() -> None:
    batch = pairs()
    for what, parts in (("data.diagnoses=[]", (4, 0)), ("data.masks=[]", (0, 5))):
        agreed = campaign(what)
        terms = supervised(agreed)(build_networks(agreed).recogniser, batch.clean_BCHW, batch, whole(batch))
        assert len(terms.losses) == 1
        assert (int(terms.sums["images.decoder"]), int(terms.sums["images.diagnosis"])) == parts


@pytest.mark.parametrize("overrides", [("augment=emit-diff+spatial",), ("augment.mix=images", "augment.balance=true"),
                                       ("augment.balance=true", "degrade=gaussian")], ids=str)  # fmt: skip
def test_a_round_trains_on_synthetic_images_and_repeats_to_the_last_bit(overrides: tuple[str, ...]) -> None:
    slices = disc_slices(8)
    synthetic = Synthetic(0.8 * slices.clean_NCHW, torch.arange(8), slices.diagnosis_N)
    agreed = campaign(*overrides)

    def trained(present: Synthetic | None) -> tuple[Networks, dict[str, float]]:
        networks = build_networks(agreed)
        record, _ = train_round(
            networks, replace(slices, synthetic=present), agreed, MACHINE, site="north", round=1, steps=3
        )
        return networks, dict(record)

    def weights(networks: Networks) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in networks.recogniser.parameters()])

    (first, record), (again, _), (without, _) = trained(synthetic), trained(synthetic), trained(None)
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(without))
    assert record["samples"] == record["images.decoder"] == record["images.diagnosis"] == 18


def test_pairs_come_out_of_training_batches_as_the_loss_expects_them() -> None:
    slices = disc_slices(8)
    slices = replace(slices, synthetic=Synthetic(0.8 * slices.clean_NCHW, torch.arange(8), slices.diagnosis_N))
    agreed = campaign("augment.real=0.5")
    (batch,) = training_batches(slices, agreed, site="north", round=1, steps=1)
    terms = supervised(agreed)(build_networks(agreed).recogniser, batch.degraded_BCHW, batch, whole(batch))
    assert all(bool(torch.isfinite(loss)) for loss in terms.losses)
