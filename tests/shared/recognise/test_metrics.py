from __future__ import annotations

import numpy as np
import pytest
import torch

from shared.recognise.metrics import auc, correct_P, dice_BK, mean_over_classes, per_patient


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
