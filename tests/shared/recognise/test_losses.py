from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from shared.batch import Batch
from shared.config import ObjectiveConfig
from shared.recognise.losses import labelled, mask_loss_B, recognition_loss, soft_dice_loss_B
from shared.recognise.recognition import Recognition

OBJECTIVE = ObjectiveConfig(kind="gradprom", mask_weight=1.0, diagnosis_weight=0.5)


def example(size: int = 5) -> tuple[Recognition, Batch]:
    rng = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(size, 3, 12, 12, generator=rng)).requires_grad_(True)
    diagnosis_logits = torch.randn(size, 2, generator=rng).requires_grad_(True)
    image = torch.rand(size, 1, 12, 12, generator=rng)
    mask = torch.randint(0, 3, (size, 12, 12), generator=rng)
    mask[1] = mask[1].clamp(max=1)  # one image without the second class
    has_mask = torch.tensor([True, True, False, True, False])[:size]
    diagnosis = torch.tensor([0, -1, 1, 1, -1])[:size]
    return Recognition(logits, diagnosis_logits, []), Batch(image, image, mask, has_mask, diagnosis)


def test_the_mask_loss_is_monais() -> None:
    from monai.losses import DiceLoss

    recognition, batch = example()
    assert recognition.mask_logits_BKHW is not None
    dice = DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, smooth_nr=1.0, smooth_dr=1.0, reduction="none"
    )
    by_class_BK = dice(recognition.mask_logits_BKHW, batch.mask_BHW[:, None]).flatten(1)
    expected = by_class_BK.mean(1)
    expected[1] = by_class_BK[1, 0]  # it shows the first class only
    ours = soft_dice_loss_B(recognition.mask_logits_BKHW.softmax(1), batch.mask_BHW)
    torch.testing.assert_close(ours, expected)
    cross_entropy = F.cross_entropy(recognition.mask_logits_BKHW, batch.mask_BHW, reduction="none").mean((1, 2))
    torch.testing.assert_close(mask_loss_B(recognition.mask_logits_BKHW, batch.mask_BHW), expected + cross_entropy)


def test_with_absent_classes_the_dice_loss_is_the_published_one_over_all_of_them() -> None:
    probabilities = torch.zeros(1, 3, 2, 2)
    probabilities[0, 1, 0] = 0.5  # of class 1, which is there in two pixels, half of each is found
    probabilities[0, 2, 1] = 0.25  # of class 2, which is not there, a quarter of two pixels is
    probabilities[0, 0] = 1 - probabilities[0, 1:].sum(0)
    truth = torch.tensor([[[1, 1], [0, 0]]])
    of_first, of_second = 1 - (2 * 1 + 1) / (1 + 2 + 1), 1 - 1 / (0.5 + 1)
    shown = soft_dice_loss_B(probabilities, truth)
    torch.testing.assert_close(shown, torch.tensor([of_first]))
    both = soft_dice_loss_B(probabilities, truth, of_absent=True)
    torch.testing.assert_close(both, torch.tensor([(of_first + of_second) / 2]))


def test_the_loss_is_that_of_the_labelled_images_alone() -> None:
    recognition, batch = example()
    mask_logits, diagnosis_logits = recognition.mask_logits_BKHW, recognition.diagnosis_logits_BN
    assert mask_logits is not None
    assert diagnosis_logits is not None
    masked, known = [0, 1, 3], [0, 2, 3]
    expected = mask_loss_B(mask_logits[masked], batch.mask_BHW[masked]).mean()
    expected = expected + 0.5 * F.cross_entropy(diagnosis_logits[known], batch.diagnosis_B[known])
    torch.testing.assert_close(recognition_loss(recognition, batch, OBJECTIVE), expected)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_add_up_to_the_whole(size: int) -> None:
    recognition, batch = example()
    mask_logits, diagnosis_logits = recognition.mask_logits_BKHW, recognition.diagnosis_logits_BN
    assert mask_logits is not None
    assert diagnosis_logits is not None
    counts = labelled(batch)
    total = torch.zeros(())
    for start, part in zip(range(0, 5, size), batch.micro_batches(size), strict=True):
        chosen = slice(start, start + size)
        said = Recognition(mask_logits[chosen], diagnosis_logits[chosen], [])
        total = total + recognition_loss(said, part, OBJECTIVE, counts)
    torch.testing.assert_close(total, recognition_loss(recognition, batch, OBJECTIVE))


def test_a_batch_without_labels_costs_nothing_and_pulls_nowhere() -> None:
    recognition, batch = example()
    unlabelled = replace(
        batch,
        has_mask_B=torch.zeros(5, dtype=torch.bool),
        diagnosis_B=torch.full((5,), -1),
        mask_BHW=0 * batch.mask_BHW,
    )
    loss = recognition_loss(recognition, unlabelled, OBJECTIVE)
    assert float(loss.detach()) == 0
    gradients = torch.autograd.grad(loss, [recognition.mask_logits_BKHW, recognition.diagnosis_logits_BN])  # type: ignore[list-item]
    assert all(float(gradient.abs().max()) == 0 for gradient in gradients)


def test_a_class_that_is_falsely_found_is_pushed_back() -> None:
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    loss = mask_loss_B(logits, torch.zeros(1, 4, 4, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert bool((gradient[:, 1] > 1e-3).all())
