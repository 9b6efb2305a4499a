"""The feature distance against the closed form for Gaussians, and its interval against what it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shared.config import RecogniserConfig
from shared.generate.quality import distance_interval, feature_distance, features_of
from shared.recognise.networks import build_recogniser
from shared.seeding import numpy_generator

SPREAD = np.array([0.5, 1.0, 2.0])
SHIFT = np.array([1.0, -1.0, 0.5])


def gaussian(count: int, purpose: str, spread: object = 1.0, shift: object = 0.0) -> np.ndarray:
    return numpy_generator(0, "test", purpose).normal(size=(count, 3)) * spread + shift


def test_it_is_the_closed_form_where_covariances_commute() -> None:
    """Diagonal covariances: |m - m'|^2 + sum (s - s')^2. The crowds are whitened, so that it holds to the last bits."""
    drawn = gaussian(500, "drawn")
    white = (drawn - drawn.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(drawn, rowvar=False)).T)
    expected = float((SHIFT**2).sum() + ((SPREAD - 1) ** 2).sum())
    assert feature_distance(white, white * SPREAD + SHIFT) == pytest.approx(expected, abs=1e-9)


def test_it_is_the_closed_form_where_they_do_not() -> None:
    """Of equal means: tr(A) + tr(B) - 2 sum sqrt(eigenvalues of A B), which needs no square root of a matrix."""
    mixing = np.array([[1.0, 0.4, 0.0], [0.0, 0.7, -0.3], [0.2, 0.0, 1.5]])
    one, other = gaussian(400, "one"), gaussian(400, "other") @ mixing
    one, other = one - one.mean(0), other - other.mean(0)
    a, b = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    expected = np.trace(a) + np.trace(b) - 2 * np.sqrt(np.linalg.eigvals(a @ b).real).sum()
    assert feature_distance(one, other) == pytest.approx(expected, abs=1e-9)


def test_a_crowd_is_at_no_distance_from_itself_even_with_features_that_never_move() -> None:
    crowd = np.concatenate([gaussian(50, "drawn"), np.zeros((50, 2))], axis=1)
    assert feature_distance(crowd, crowd[::-1]) == pytest.approx(0, abs=1e-9)


def test_it_does_not_care_which_is_which_or_how_the_features_are_turned() -> None:
    one, other = gaussian(60, "one"), gaussian(80, "other", SPREAD, SHIFT)
    turn, _ = np.linalg.qr(gaussian(3, "turn"))
    assert feature_distance(other, one) == pytest.approx(feature_distance(one, other), abs=1e-9)
    assert feature_distance(one @ turn, other @ turn) == pytest.approx(feature_distance(one, other), abs=1e-9)


def test_the_interval_holds_the_true_distance_nine_times_in_ten() -> None:
    true = float((SHIFT**2).sum() + ((SPREAD - 1) ** 2).sum())
    rng, held = numpy_generator(1, "test", "interval"), 0
    for trial in range(40):
        real, drawn = gaussian(150, f"real {trial}"), gaussian(150, f"drawn {trial}", SPREAD, SHIFT)
        low, high = distance_interval(real, drawn, rng, level=0.95, resamples=60)
        held += low <= true <= high
    assert held >= 34


def test_the_interval_of_two_crowds_of_one_kind_reaches_down_to_nought() -> None:
    low, high = distance_interval(gaussian(200, "one"), gaussian(200, "other"), numpy_generator(0, "test", "same"))
    assert low == 0
    assert high < 0.15  # that of the other tests is 2.9


def test_features_are_the_deepest_means_and_do_not_depend_on_the_batch() -> None:
    recogniser = build_recogniser(RecogniserConfig(kind="unet", channels=4, depth=2), 1, 2, 2, 0).train()
    image = torch.rand(70, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    features = features_of(recogniser, image)
    recogniser.eval()
    with torch.no_grad():
        expected = recogniser(image[65:]).features[0].mean((2, 3)).double().numpy()
    np.testing.assert_allclose(features[65:], expected, rtol=0, atol=1e-5)
    assert features.shape[0] == 70


def test_the_recogniser_is_left_in_the_mode_that_it_was_in() -> None:
    recogniser = build_recogniser(RecogniserConfig(kind="unet", channels=4, depth=2), 1, 2, 2, 0).train()
    features_of(recogniser, torch.rand(2, 1, 16, 16))
    assert recogniser.training
