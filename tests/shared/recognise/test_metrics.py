from __future__ import annotations

import numpy as np
import pytest
import torch

from shared.images.quality import ssim_B
from shared.recognise.metrics import (
    auc,
    correct_P,
    dice_BK,
    f1_K,
    mask_ssim_BK,
    mean_over_classes,
    of_all_patients,
    overlaps,
    per_patient,
)


def test_dice_of_overlapping_squares() -> None:
    truth, predicted = torch.zeros(2, 3, 10, 10, dtype=torch.int64)
    truth[0, 0:4, 0:4] = 1
    predicted[0, 2:6, 0:4] = 1  # half of each
    truth[1, 0:4, 0:4] = 2  # missed
    predicted[2, 0:2, 0:2] = 1  # invented
    dice = dice_BK(predicted, truth, 2)
    np.testing.assert_allclose(dice.numpy(), [[0.5, np.nan], [np.nan, 0.0], [0.0, np.nan]])
    np.testing.assert_allclose(mean_over_classes(dice.double().numpy()), [0.5, 0.0, 0.0])


def test_dice_is_monais_where_both_are_defined() -> None:
    from monai.metrics import DiceMetric

    rng = torch.Generator().manual_seed(0)
    truth, predicted = torch.randint(0, 3, (2, 4, 9, 9), generator=rng)
    metric = DiceMetric(include_background=False, reduction="none", num_classes=3)
    expected = metric(predicted[:, None], truth[:, None])
    torch.testing.assert_close(dice_BK(predicted, truth, 2), expected)


def test_overlaps_of_squares_done_by_hand() -> None:
    truth, predicted = torch.zeros(2, 4, 10, 10, dtype=torch.int64)
    truth[0, 0:4, 0:4] = 1  # 16 pixels
    predicted[0, 2:6, 0:2] = 1  # 8 pixels, 4 of them right
    truth[1, 0:4, 0:4] = 1  # missed
    predicted[2, 0:2, 0:2] = 1  # invented
    found = {name: values[:, 0].tolist() for name, values in overlaps(predicted, truth, 1).items()}
    nan = pytest.approx(np.nan, nan_ok=True)
    assert found["dice"] == [pytest.approx(8 / 24), 0, 0, nan]
    assert found["jaccard"] == [pytest.approx(4 / 20), 0, 0, nan]
    assert found["precision"] == [pytest.approx(4 / 8), 0, 0, nan]
    assert found["recall"] == [pytest.approx(4 / 16), 0, 0, nan]


def test_overlaps_are_torchmetrics_where_both_are_defined() -> None:
    from torchmetrics.functional.classification import (
        binary_f1_score,
        binary_jaccard_index,
        binary_precision,
        binary_recall,
    )

    oracles = {
        "dice": binary_f1_score,
        "jaccard": binary_jaccard_index,
        "precision": binary_precision,
        "recall": binary_recall,
    }
    rng = torch.Generator().manual_seed(1)
    truth, predicted = torch.randint(0, 4, (2, 5, 9, 7), generator=rng)
    for name, values_BK in overlaps(predicted, truth, 3).items():
        for image in range(5):
            for code in (1, 2, 3):
                expected = oracles[name](predicted[image] == code, (truth[image] == code).long())
                torch.testing.assert_close(values_BK[image, code - 1], expected)


def test_mask_ssim_is_that_of_the_two_maps_and_absent_classes_have_none() -> None:
    rng = torch.Generator().manual_seed(2)
    truth, predicted = torch.randint(0, 3, (2, 3, 16, 16), generator=rng)
    truth[0][truth[0] == 2] = 0
    predicted[0][predicted[0] == 2] = 0
    truth[1] = predicted[1]
    found = mask_ssim_BK(predicted, truth, 2)
    for image, code in ((0, 1), (1, 1), (1, 2), (2, 1), (2, 2)):
        maps = [(codes[image] == code).float()[None, None] for codes in (predicted, truth)]
        torch.testing.assert_close(found[image, code - 1], ssim_B(*maps)[0])
    assert found[0, 1].isnan()
    torch.testing.assert_close(found[1], torch.ones(2))


def test_mask_ssim_is_scikit_images() -> None:
    from skimage.metrics import structural_similarity

    truth, predicted = torch.zeros(2, 1, 24, 20, dtype=torch.int64)
    truth[0, 5:15, 4:14] = 1
    predicted[0, 7:17, 4:12] = 1
    expected = structural_similarity(
        truth[0].double().numpy(), predicted[0].double().numpy(), data_range=1.0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )  # fmt: skip
    assert mask_ssim_BK(predicted, truth, 1).item() == pytest.approx(expected, rel=1e-4)


def test_an_image_with_no_class_at_all_has_no_dice() -> None:
    assert np.isnan(mean_over_classes(np.array([[np.nan, np.nan], [1.0, np.nan]]))).tolist() == [True, False]


def test_a_patient_is_judged_by_the_mean_of_its_slices() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7], [0.5, 0.5]])
    patient, diagnosis = np.array([4, 4, 7, 2, 9]), np.array([0, 0, 1, 1, -1])
    means, of_patients = per_patient(probabilities, patient, diagnosis)
    np.testing.assert_allclose(means, [[0.3, 0.7], [0.55, 0.45], [0.4, 0.6]])
    assert of_patients.tolist() == [1, 0, 1]
    assert correct_P(means, of_patients).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_auc_is_scikit_learns(classes: int, seed: int) -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    diagnosis = rng.integers(0, classes, 40)
    scores = rng.random((40, classes)) + np.eye(classes)[diagnosis] * 0.3
    scores = np.round(scores / scores.sum(1, keepdims=True), 1)  # with ties
    scores[:, -1] = 1 - scores[:, :-1].sum(1)
    binary = [roc_auc_score(diagnosis == code, scores[:, code]) for code in range(classes)]
    assert auc(scores, diagnosis) == pytest.approx(float(np.mean(binary)))


def test_auc_needs_two_diagnoses() -> None:
    assert np.isnan(auc(np.array([[0.3, 0.7], [0.6, 0.4]]), np.array([1, 1])))


def test_no_patient_with_a_diagnosis_is_no_accuracy() -> None:
    means, of_patients = per_patient(np.ones((2, 2)) / 2, np.array([0, 1]), np.array([-1, -1]))
    assert len(correct_P(means, of_patients)) == 0


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_f1_is_torchmetrics_per_diagnosis_and_macro(classes: int, seed: int) -> None:
    from torchmetrics.functional.classification import multiclass_f1_score

    rng = np.random.default_rng(seed)
    diagnosis = rng.integers(0, classes - (classes > 2), 30)  # of four, one that nobody has
    scores = rng.random((30, classes)) + 0.6 * np.eye(classes)[diagnosis]
    predicted, truth = torch.from_numpy(scores.argmax(1)), torch.from_numpy(diagnosis)
    each = multiclass_f1_score(predicted, truth, classes, average="none").numpy()
    there = np.array([((predicted == code) | (truth == code)).any().item() for code in range(classes)])
    np.testing.assert_allclose(f1_K(scores, diagnosis)[there], each[there], rtol=1e-6)
    assert np.isnan(f1_K(scores, diagnosis)[~there]).all()
    found = of_all_patients(scores, diagnosis, [f"sign {code}" for code in range(classes)])
    macro = multiclass_f1_score(predicted, truth, classes, average="macro").item()
    assert found["f1"] == pytest.approx(macro, rel=1e-6)
    assert found["auc"] == auc(scores, diagnosis)
    assert list(found) == ["auc", "f1", *(f"f1.sign_{code}" for code in range(classes))]


def test_f1_of_a_small_confusion_done_by_hand() -> None:
    scores = np.eye(3)[[0, 0, 1, 0, 0]]  # nobody is said to have the third, nobody has it
    np.testing.assert_allclose(f1_K(scores, np.array([0, 0, 1, 1, 0])), [6 / 7, 2 / 3, np.nan])
    one_sided = f1_K(scores, np.array([2, 0, 1, 1, 0]))
    assert one_sided[2] == 0, "one has it and is not found"


def test_no_patient_has_no_f1() -> None:
    found = of_all_patients(np.zeros((0, 2)), np.zeros(0, dtype=np.int64), ["a", "b"])
    assert all(np.isnan(value) for value in found.values())
