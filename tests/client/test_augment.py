"""What batches are made of: counts of what was drawn, what stands beside what, and nothing new where all is off."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from client.augment import ANY, NONE, Items, items
from client.batches import draw_cells, evaluation_batches, training_batches
from client.dataset import Slices, Synthetic, merge_slices
from client.labels import scarce
from shared.batch import Batch
from shared.config import AugmentConfig, CampaignConfig, LabelsConfig, SimulationConfig, load
from shared.seeding import generator
from tests.client.slices import disc_slices

VARIANTS = 3


def campaign(*overrides: str) -> CampaignConfig:
    small = ["data=phantom", "training.batch_size=4", "rounds=2", "seed=0"]
    return load("simulation", [*small, *overrides], SimulationConfig).campaign


def alone(*overrides: str) -> CampaignConfig:
    return campaign("enhance=none", "degrade=none", "objective=plain", "training.augment=false", *overrides)


def generated(*overrides: str) -> CampaignConfig:
    return alone("generate=emit-diff", "augment=emit-diff", *overrides)


def told(count: int = 10) -> Slices:
    """Slice n is n/100 in every pixel, its v-th synthetic image n/100 + (v + 1)/1000; every diagnosis is inherited, and
    the last slice has no synthetic image."""
    slices = disc_slices(count)
    slices.clean_NCHW[:] = torch.arange(count)[:, None, None, None] / 100
    source = torch.arange(count - 1).repeat(VARIANTS)
    variant = torch.arange(VARIANTS).repeat_interleave(count - 1)
    images = (source / 100 + (variant + 1) / 1000)[:, None, None, None].expand(-1, 1, 32, 32).clone()
    return replace(slices, synthetic=Synthetic(images, source, slices.diagnosis_N[source]))


def poor() -> Slices:
    """Two slices of 20 have diagnosis 1, four have none; one synthetic image of each other slice shows 1 as well."""
    slices = disc_slices(20)
    diagnosis = torch.zeros(20, dtype=torch.int64)
    diagnosis[:2], diagnosis[16:] = 1, -1
    slices.clean_NCHW[:] = torch.arange(20)[:, None, None, None] / 100
    source = torch.cat([torch.arange(20), torch.arange(2, 16)])
    images = (source / 100 + 0.001)[:, None, None, None].expand(-1, 1, 32, 32).clone()
    shown = torch.cat([diagnosis, torch.ones(14, dtype=torch.int64)])
    return replace(slices, diagnosis_N=diagnosis, synthetic=Synthetic(images, source, shown))


def drawn(slices: Slices, agreed: CampaignConfig, batches: int) -> Items:
    """`batches` batches as one."""
    found = [each for each, _ in itertools.islice(items(slices, agreed, "test"), batches)]
    return Items(*(torch.cat([getattr(each, name) for each in found]) for name in Items.__slots__))


def batches(slices: Slices, agreed: CampaignConfig, steps: int = 30) -> list[Batch]:
    return list(training_batches(slices, agreed, site="north", round=1, steps=steps))


def numbers(images_BCHW: Tensor) -> list[int]:
    """Thousandths of the first pixel: 10 n + (0 for the slice, v + 1 for its synthetic image v)."""
    return [round(1000 * float(image.flatten()[0])) for image in images_BCHW]


# The batches of the code that knew no generators (commit f26df94): digest of images and labels, sum of degraded images.
BEFORE = {
    "degrade=gaussian": ("5e7eaa87af83b0ad", 3411.3027),
    "training.augment=false": ("af864438c9385ad9", 3414.1213),
    "learn=multimix": ("ad98e1b394372fd5", 11390.7997),
}


@pytest.mark.parametrize("override", BEFORE)
def test_with_nothing_on_every_batch_is_what_it_was_before(override: str) -> None:
    streams = override.startswith("learn")
    agreed = campaign(
        override, *(["enhance=none", "degrade=none", "objective=plain"] if streams else ["degrade=gaussian"])
    )
    slices = disc_slices(10)
    if streams:
        slices = scarce(disc_slices(32, per_patient=2), LabelsConfig(masks=6, diagnoses=0.5), seed=0)
    synthetic = Synthetic(slices.clean_NCHW, torch.arange(len(slices)), slices.diagnosis_N)
    for present in (None, synthetic):  # images that are not asked for change nothing
        digest, total = hashlib.sha256(), 0.0
        for batch in training_batches(replace(slices, synthetic=present), agreed, site="north", round=2, steps=5):
            for tensor in (batch.clean_BCHW, batch.mask_BHW, batch.has_mask_B, batch.diagnosis_B):
                digest.update(tensor.contiguous().numpy().tobytes())
            digest.update(json.dumps([asdict(value) for value in batch.strong]).encode())
            total += float(batch.degraded_BCHW.double().sum())
            assert batch.synthetic_BCHW is None
        assert digest.hexdigest()[:16] == BEFORE[override][0]
        assert total == pytest.approx(BEFORE[override][1], abs=1e-2)


def test_a_share_of_images_gives_way_to_their_own_synthetic_ones() -> None:
    found = [
        number
        for batch in batches(told(), generated("augment.mix=images"), 100)
        for number in numbers(batch.clean_BCHW)
    ]
    with_variants = [number for number in found if number // 10 < 9]
    share = sum(number % 10 == 0 for number in with_variants) / len(with_variants)
    assert share == pytest.approx(0.6, abs=0.08)
    assert {number % 10 for number in with_variants} == {0, 1, 2, 3}
    assert all(number == 90 for number in found if number // 10 == 9)  # one without a synthetic image stays real
    assert Counter(number // 10 for number in found[:10]) == Counter(range(10))
    real = batches(told(), alone(), 100)
    assert [number // 10 for number in found] == [n // 10 for batch in real for n in numbers(batch.clean_BCHW)]


def test_all_or_none_of_the_images_are_real_where_that_is_asked_for() -> None:
    none = batches(told(), generated("augment.mix=images", "augment.real=0"), 20)
    assert all(n % 10 > 0 or n == 90 for batch in none for n in numbers(batch.clean_BCHW))
    plain = batches(told(), alone(), 20)
    for mix in ("images", "patches"):
        every = batches(told(), generated(f"augment.mix={mix}", "augment.real=1"), 20)
        for batch, other in zip(every, plain, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch.tensors(), other.tensors(), strict=True))


def test_a_synthetic_image_has_the_mask_of_its_slice_and_its_own_diagnosis() -> None:
    slices = told()
    assert slices.synthetic is not None
    other = replace(slices.synthetic, diagnosis_S=1 - slices.synthetic.diagnosis_S)
    for batch in batches(replace(slices, synthetic=other), generated("augment.mix=images"), 20):
        for number, mask_HW, diagnosis in zip(
            numbers(batch.clean_BCHW), batch.mask_BHW, batch.diagnosis_B, strict=True
        ):
            index, variant = divmod(number, 10)
            assert torch.equal(mask_HW, slices.mask_NHW[index].long())
            own = int(slices.diagnosis_N[index])
            assert int(diagnosis) == (1 - own if variant else own)


@pytest.mark.parametrize("kind", ["emit-diff", "emit-diff+spatial"])
def test_a_partner_moves_with_its_image_and_mask_and_is_the_image_itself_where_there_is_none(kind: str) -> None:
    slices = disc_slices(6)
    synthetic = Synthetic(0.5 * slices.clean_NCHW[:4], torch.arange(4), slices.diagnosis_N[:4])
    agreed = generated(f"augment={kind}", "training.augment=true")
    found, moved = 0, 0
    for batch in batches(replace(slices, synthetic=synthetic), agreed, 6):
        assert batch.synthetic_BCHW is not None
        assert batch.real_cells_BHW is not None
        assert torch.equal(batch.clean_BCHW, batch.degraded_BCHW)
        ratio_B = batch.synthetic_BCHW.sum((1, 2, 3)) / batch.clean_BCHW.sum((1, 2, 3))
        for factor, image_CHW, partner_CHW in zip(ratio_B, batch.clean_BCHW, batch.synthetic_BCHW, strict=True):
            assert min(abs(float(factor) - 0.5), abs(float(factor) - 1)) < 1e-4
            torch.testing.assert_close(partner_CHW, image_CHW * factor.round(decimals=1), rtol=0, atol=1e-6)
            found += float(factor) < 0.75
        disc_BHW = batch.clean_BCHW[:, 0] > 0.225  # half of the disc's intensity
        moved += int((disc_BHW != (batch.mask_BHW > 0)).sum())
    assert found == 16  # 24 images are every slice four times
    assert moved <= (0 if kind == "emit-diff" else 24 * 6)  # bilinear and nearest differ at outlines alone


def test_a_partner_is_degraded_as_images_are_with_noise_of_its_own() -> None:
    slices = disc_slices(6)
    slices = replace(slices, synthetic=Synthetic(slices.clean_NCHW, torch.arange(6), slices.diagnosis_N))
    agreed = generated("degrade=gaussian")
    without = batches(slices, alone("degrade=gaussian"), 3)
    for batch, other in zip(batches(slices, agreed, 3), without, strict=True):
        assert torch.equal(batch.degraded_BCHW, other.degraded_BCHW)
        assert batch.synthetic_BCHW is not None
        assert not torch.equal(batch.synthetic_BCHW, batch.degraded_BCHW)
        inside = batch.clean_BCHW == 0.45  # far enough from 0 and 1
        of_image, of_partner = ((each - 0.45)[inside].std() for each in (batch.degraded_BCHW, batch.synthetic_BCHW))
        assert float(of_partner) == pytest.approx(float(of_image), rel=0.3)


def test_cells_are_squares_of_which_the_asked_share_is_real() -> None:
    augment = AugmentConfig(kind="emit-diff", real=0.6, cell_px=8)
    cells = draw_cells(200, 32, 28, augment, generator(0, "cells"))
    assert cells.shape == (200, 32, 28)
    assert float(cells.float().mean()) == pytest.approx(0.6, abs=0.03)
    for row, column in itertools.product(range(0, 32, 8), range(0, 28, 8)):
        cell = cells[:, row : row + 8, column : column + 8].flatten(1).float()
        assert torch.equal(cell.amin(1), cell.amax(1))
    assert draw_cells(2, 8, 8, replace(augment, cell_px=100, real=1.0), generator(0, "cells")).all()


def test_balanced_diagnoses_come_equally_often_and_those_without_keep_their_share() -> None:
    slices = replace(poor(), synthetic=None)
    found = drawn(slices, alone("augment.balance=true"), 100)
    assert Counter(found.wanted_B.tolist()) == {-1: 80, 0: 160, 1: 160}  # 4 of 20 slices have none
    assert torch.equal(slices.diagnosis_N[found.slice_B], found.wanted_B)
    assert (found.variant_B == NONE).all()
    for wanted, count in ((-1, 4), (0, 14), (1, 2)):
        of_class = found.slice_B[found.wanted_B == wanted]
        for part in torch.split(of_class, count)[:-1]:  # everything once before anything again
            assert len(set(part.tolist())) == count
    plain = drawn(slices, alone(), 100)
    assert (plain.wanted_B == ANY).all()


@pytest.mark.parametrize("mix", ["images", "patches"])
def test_a_scarce_class_is_drawn_with_the_masks_of_other_patients(mix: str) -> None:
    slices = poor()
    assert slices.synthetic is not None
    found = drawn(slices, generated("augment.balance=true", f"augment.mix={mix}"), 200)
    assert Counter(found.wanted_B.tolist()) == {-1: 160, 0: 320, 1: 320}
    scarce_B = found.wanted_B == 1
    source_B = slices.synthetic.source_S[found.variant_B.clamp(min=0)]
    assert ((found.variant_B == NONE) | (source_B == found.slice_B)).all()
    elsewhere_B = scarce_B & (found.slice_B > 1)
    assert set(found.slice_B[elsewhere_B].tolist()) == set(range(2, 16))
    shown_B = slices.synthetic.diagnosis_S[found.variant_B.clamp(min=0)]
    assert (shown_B[elsewhere_B] == 1).all()
    # Of a class's turns 0.4 are a synthetic image's, each of the 16 (2 + 14 for the scarce one) equally often.
    assert float(elsewhere_B.sum() / scarce_B.sum()) == pytest.approx(0.4 * 14 / 16, abs=0.08)
    if mix == "images":
        of_class = found.variant_B[scarce_B & (found.variant_B != NONE)]
        assert float(len(of_class) / scarce_B.sum()) == pytest.approx(0.4, abs=0.08)
        for part in torch.split(of_class, 16)[:-1]:
            assert len(set(part.tolist())) == 16
    else:
        assert (found.variant_B != NONE).all()


@pytest.mark.parametrize("mix", ["images", "patches"])
def test_balanced_images_teach_the_diagnosis_that_they_were_drawn_for_and_no_other(mix: str) -> None:
    taught: Counter[int] = Counter()
    for batch in batches(poor(), generated("augment.balance=true", f"augment.mix={mix}"), 100):
        labels = [batch.diagnosis_B]
        if batch.synthetic_diagnosis_B is not None:
            labels.append(batch.synthetic_diagnosis_B)
        for pair in zip(*(label.tolist() for label in labels), strict=True):
            known = {label for label in pair if label >= 0}
            assert len(known) <= 1
            taught[known.pop() if known else -1] += 1
    assert taught == {-1: 80, 0: 160, 1: 160}


def test_a_class_that_a_site_has_synthetic_images_of_alone_is_shown_as_often() -> None:
    slices = poor()
    slices = replace(slices, diagnosis_N=slices.diagnosis_N.clamp(max=0))
    found = drawn(slices, generated("augment.balance=true", "augment.mix=images"), 100)
    assert Counter(found.wanted_B.tolist()) == {-1: 80, 0: 160, 1: 160}
    assert (found.variant_B[found.wanted_B == 1] != NONE).all()


def test_labelled_streams_are_mixed_and_balanced_and_unlabelled_ones_stay_real() -> None:
    slices = replace(poor(), has_mask_N=torch.arange(20) < 10)
    agreed = generated("learn=multimix", "recognise.depth=3", "augment.mix=images", "augment.balance=true")
    without = batches(slices, alone("learn=multimix", "recognise.depth=3"))
    diagnoses: Counter[int] = Counter()
    made = [0, 0]
    for batch, other in zip(batches(slices, agreed), without, strict=True):
        assert batch.streams == other.streams
        found, before = numbers(batch.clean_BCHW), numbers(other.clean_BCHW)
        assert [number // 10 for number in found[:4]] == [number // 10 for number in before[:4]]
        assert found[4:8] == before[4:8]
        assert found[12:] == before[12:]
        diagnoses.update(batch.diagnosis_B[8:12].tolist())
        made[0] += sum(number % 10 > 0 for number in found[:4])
        made[1] += sum(number % 10 > 0 for number in found[8:12])
    assert diagnoses == {0: 60, 1: 60}
    assert 30 < made[0] < 66  # of 120 images 48
    assert 30 < made[1] < 66


def test_a_stream_of_diagnosed_images_has_no_synthetic_one_without_a_diagnosis() -> None:
    slices = poor()
    assert slices.synthetic is not None
    unknown = replace(slices.synthetic, diagnosis_S=torch.where(torch.arange(34) % 2 == 0, -1, 1))
    agreed = generated("learn=umtl", "augment.mix=images", "augment.real=0")
    for batch in batches(replace(slices, synthetic=unknown), agreed, 10):
        assert batch.streams is not None
        first = batch.streams.segmented
        assert (batch.diagnosis_B[first : first + batch.streams.diagnosed] >= 0).all()


def test_the_draws_of_a_round_are_the_same_again_and_of_the_next_round_others() -> None:
    agreed = generated("augment=emit-diff+spatial", "augment.balance=true", "degrade=gaussian", "training.augment=true")

    def once(round: int) -> list[Tensor]:
        found = training_batches(poor(), agreed, site="north", round=round, steps=3)
        return [tensor for batch in found for tensor in batch.tensors()]

    assert all(torch.equal(a, b) for a, b in zip(once(1), once(1), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(once(1), once(2), strict=True))


@pytest.mark.parametrize("kind", ["contrast", "noise", "rotate", "scale", "deepstack"])
def test_a_baseline_varies_the_clean_image_before_it_is_degraded(kind: str) -> None:
    slices = disc_slices(8)
    agreed = campaign(f"augment={kind}", "degrade=gaussian")
    plain = campaign("degrade=gaussian")
    changed, masks = 0, 0
    for batch, other in zip(batches(slices, agreed, 6), batches(slices, plain, 6), strict=True):
        # The same slices, moves and noise of the degradation; where nothing is clamped the noise is what is left.
        assert torch.equal(batch.diagnosis_B, other.diagnosis_B)
        inside = (
            (batch.degraded_BCHW > 0)
            & (batch.degraded_BCHW < 1)
            & (other.degraded_BCHW > 0)
            & (other.degraded_BCHW < 1)
        )
        noise, before = batch.degraded_BCHW - batch.clean_BCHW, other.degraded_BCHW - other.clean_BCHW
        torch.testing.assert_close(noise[inside], before[inside], rtol=0, atol=1e-6)
        changed += int((batch.clean_BCHW != other.clean_BCHW).flatten(1).any(1).sum())
        masks += int((batch.mask_BHW != other.mask_BHW).sum())
    assert changed == 24 or (kind == "deepstack" and changed > 16)
    assert (masks == 0) == (kind in ("contrast", "noise"))


def test_real_pairs_are_varied_alike() -> None:
    slices = disc_slices(6)
    slices = replace(slices, degraded_NCHW=slices.clean_NCHW * 0.5)
    pairs = campaign("augment=rotate", "degrade=pairs")
    for batch in batches(slices, pairs, 3):
        torch.testing.assert_close(batch.degraded_BCHW, batch.clean_BCHW * 0.5)


def test_synthetic_images_are_never_evaluated_on() -> None:
    slices = told()
    for agreed in (
        generated(),
        generated("augment.mix=images", "augment.real=0"),
        generated("augment=emit-diff+spatial"),
    ):
        found = list(evaluation_batches(slices, agreed, 4))
        assert [number for batch in found for number in numbers(batch.clean_BCHW)] == list(range(0, 100, 10))
        assert all(batch.synthetic_BCHW is None and batch.real_cells_BHW is None for batch in found)
        assert all(torch.equal(batch.clean_BCHW, batch.degraded_BCHW) for batch in found)


def test_merged_sites_keep_whose_synthetic_images_are_whose() -> None:
    pooled = merge_slices([told(4), told(6)])
    assert pooled.synthetic is not None
    assert len(pooled.synthetic) == 3 * (3 + 5)
    for batch in batches(pooled, generated("augment.mix=patches"), 10):
        assert batch.synthetic_BCHW is not None
        for image, partner in zip(numbers(batch.clean_BCHW), numbers(batch.synthetic_BCHW), strict=True):
            assert image // 10 == partner // 10


def test_flips_and_shifts_are_independent_of_what_else_varies() -> None:
    slices = disc_slices(6)
    plain = batches(slices, alone("training.augment=true"), 3)
    toned = batches(slices, alone("training.augment=true", "augment=contrast"), 3)
    for batch, other in zip(plain, toned, strict=True):
        assert torch.equal(batch.mask_BHW, other.mask_BHW)
