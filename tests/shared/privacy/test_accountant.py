"""Epsilon against published figures, Mironov's formula summed by hand and the exact curve of the Gaussian mechanism."""

from __future__ import annotations

import math

import pytest

from shared.privacy.accountant import Steps, epsilon, least_multiplier, rounds_within

PUBLISHED = [
    # Abadi et al. 2016, section 5.2 and figure 2: the moments accountant after 100 epochs.
    pytest.param(0.01, 4.0, 10_000, 1e-5, 1.26, id="abadi-2016"),
    # Tutorials of TensorFlow Privacy, MNIST: (batch size, noise multiplier, epochs) -> epsilon at delta 1e-5.
    pytest.param(256 / 60_000, 1.3, 15 * 60_000 // 256, 1e-5, 1.19, id="tf-privacy-15-epochs"),
    pytest.param(256 / 60_000, 1.1, 60 * 60_000 // 256, 1e-5, 3.01, id="tf-privacy-60-epochs"),
    pytest.param(256 / 60_000, 0.7, 45 * 60_000 // 256, 1e-5, 7.10, id="tf-privacy-45-epochs"),
    pytest.param(250 / 60_000, 1.3, 15 * 60_000 // 250, 1e-5, 1.18, id="tf-privacy-classification"),
]


def mironov(order: int, rate: float, multiplier: float) -> float:
    """Renyi divergence of the sampled Gaussian at an integer order (Mironov, Talwar, Zhang 2019, section 3.3)."""
    logs = [
        math.log(math.comb(order, k)) + (order - k) * math.log1p(-rate) + k * math.log(rate)
        + (k * k - k) / (2 * multiplier**2)
        for k in range(order + 1)
    ]  # fmt: skip
    largest = max(logs)
    return (largest + math.log(math.fsum(math.exp(each - largest) for each in logs))) / (order - 1)


def classic(rate: float, multiplier: float, steps: int, delta: float) -> float:
    """The conversion of Mironov 2017, proposition 3, which the published figures were made with."""
    return min(steps * mironov(a, rate, multiplier) + math.log(1 / delta) / (a - 1) for a in range(2, 65))


def improved(rate: float, multiplier: float, steps: int, delta: float) -> float:
    """That of Canonne, Kamath, Steinke 2020, proposition 12."""
    return min(
        steps * mironov(a, rate, multiplier) + math.log1p(-1 / a) - math.log(delta * a) / (a - 1) for a in range(2, 65)
    )


def exact_delta(eps: float, multiplier: float) -> float:
    """Balle and Wang 2018, theorem 8: delta of the Gaussian mechanism of sensitivity 1."""

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    low = -0.5 / multiplier - eps * multiplier
    return phi(0.5 / multiplier - eps * multiplier) - math.exp(eps) * phi(low)


def exact_epsilon(multiplier: float, delta: float) -> float:
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if exact_delta(middle, multiplier) > delta else (low, middle)
    return high


@pytest.mark.parametrize(("rate", "multiplier", "steps", "delta", "published"), PUBLISHED)
def test_the_published_figures_follow_from_the_same_curve_and_ours_are_tighter(
    rate: float, multiplier: float, steps: int, delta: float, published: float
) -> None:
    assert classic(rate, multiplier, steps, delta) == pytest.approx(published, rel=0.005)  # whole orders alone
    found = epsilon([Steps(multiplier, rate, steps)], delta)
    assert found == pytest.approx(improved(rate, multiplier, steps, delta), rel=0.005)
    assert found < published


@pytest.mark.parametrize("steps", [1, 14, 100])
@pytest.mark.parametrize("multiplier", [2.0, 5.0, 20.0])
def test_without_sampling_it_is_a_little_above_the_exact_gaussian_mechanism(multiplier: float, steps: int) -> None:
    exact = exact_epsilon(multiplier / math.sqrt(steps), 1e-5)  # n in a row are one with a noise of 1/sqrt(n)
    found = epsilon([Steps(multiplier, 1.0, steps)], 1e-5)
    assert exact <= found <= 1.15 * exact


@pytest.mark.parametrize(("rate", "multiplier", "steps"), [(4 / 14, 4.9, 700), (0.02, 0.75, 700), (0.01, 4.0, 10_000)])
def test_with_sampling_it_is_above_the_privacy_loss_distribution(rate: float, multiplier: float, steps: int) -> None:
    dp_accounting = pytest.importorskip("dp_accounting")
    from dp_accounting import pld

    exact = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-3)
    exact.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(multiplier)), steps)
    found = epsilon([Steps(multiplier, rate, steps)], 1e-5)
    assert exact.get_epsilon(1e-5) <= found * 1.001
    assert found <= 1.2 * exact.get_epsilon(1e-5)


def test_campaigns_in_a_row_add_up_like_one_of_all_their_steps() -> None:
    whole = epsilon([Steps(2.0, 0.1, 300)], 1e-5)
    assert epsilon([Steps(2.0, 0.1, 100), Steps(2.0, 0.1, 200)], 1e-5) == pytest.approx(whole)
    mixed = epsilon([Steps(2.0, 0.1, 300), Steps(3.0, 1.0, 5)], 1e-5)
    assert whole < mixed < whole + epsilon([Steps(3.0, 1.0, 5)], 1e-5)
    # Curves add up order by order: Gaussians of two sizes are one with 1/s^2 = 1/s1^2 + 1/s2^2.
    both = epsilon([Steps(3.0, 1.0, 1), Steps(4.0, 1.0, 1)], 1e-5)
    assert both == pytest.approx(epsilon([Steps(2.4, 1.0, 1)], 1e-5))
    assert epsilon([], 1e-5) == epsilon([Steps(1.0, 0.5, 0)], 1e-5) == 0


@pytest.mark.parametrize(("target", "rate", "steps"), [(8.0, 0.1, 300), (50.0, 0.25, 200), (1.0, 1.0, 10)])
def test_the_least_noise_keeps_epsilon_and_hardly_less_does_not(target: float, rate: float, steps: int) -> None:
    found = least_multiplier(target, 1e-5, rate=rate, steps=steps)
    assert found is not None
    assert epsilon([Steps(found, rate, steps)], 1e-5) <= target
    assert epsilon([Steps(0.995 * found, rate, steps)], 1e-5) > target


def test_what_was_spent_before_leaves_less_and_nothing_leaves_none() -> None:
    alone = least_multiplier(8.0, 1e-5, rate=1.0, steps=7)
    assert alone is not None
    after = least_multiplier(8.0, 1e-5, rate=1.0, steps=7, spent=(Steps(2 * alone, 1.0, 7),))
    assert after is not None
    assert after > alone
    assert epsilon([Steps(2 * alone, 1.0, 7), Steps(after, 1.0, 7)], 1e-5) <= 8.0
    assert least_multiplier(8.0, 1e-5, rate=1.0, steps=7, spent=(Steps(alone / 2, 1.0, 7),)) is None


def test_rounds_are_counted_until_epsilon_is_spent() -> None:
    one = Steps(3.0, 1.0, 1)
    most = rounds_within(8.0, 1e-5, one, 1000)
    assert epsilon([Steps(3.0, 1.0, most)], 1e-5) <= 8.0 < epsilon([Steps(3.0, 1.0, most + 1)], 1e-5)
    assert rounds_within(8.0, 1e-5, one, 3) == 3
