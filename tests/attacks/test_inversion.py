"""Adversary: a coordinator that looks for the image behind a site's update. It succeeds on visible updates, and does no
better than without any where it sees the sum of three sites, or noise (simulation/inversion.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared.errors import ConfigError
from simulation.inversion import (
    CASES,
    Setting,
    attack,
    inverted,
    main,
    phantom,
    prior_of,
    psnr_db,
    searched,
    setting_of,
)

TINY = Setting(image=16, channels=8, components=6, generations=45)
MARGIN_DB = 3.0


@pytest.fixture(scope="module")
def figures() -> dict[str, float]:
    return attack(TINY)[0]


def test_a_visible_update_gives_the_image_away(figures: dict[str, float]) -> None:
    assert set(figures) == set(CASES)
    assert figures["visible"] > figures["nothing"] + MARGIN_DB
    assert figures["visible"] <= figures["best"] + 0.5, "nothing is drawn that the prior cannot show"


@pytest.mark.parametrize("case", ["masked", "site", "patient"])
def test_the_sum_of_three_sites_or_noise_does_not(figures: dict[str, float], case: str) -> None:
    assert figures[case] < figures["visible"] - MARGIN_DB
    assert figures[case] < figures["nothing"] + MARGIN_DB / 2, "hardly better than guessing without an update"


def test_noise_alone_makes_a_picture_of_nothing() -> None:
    """An update that has nothing to do with the patient: what is drawn is an image all the same."""
    from shared.networks import build_networks
    from shared.weights import to_arrays
    from simulation.inversion import campaign_of

    rng = np.random.default_rng(0)
    shapes = {name: values.shape for name, values in to_arrays(build_networks(campaign_of(TINY))).items()}
    noise = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    truth, prior = phantom(TINY, 1), prior_of(TINY)
    drawn = inverted(noise, prior, TINY)
    assert drawn.shape == truth.shape
    assert psnr_db(drawn, truth) < psnr_db(prior.mean_D, truth) + 1


def test_the_search_finds_the_lowest_place_of_an_ellipsoid() -> None:
    goal, axes = np.array([1.0, -2.0, 0.5, 0.0]), np.array([1.0, 10.0, 3.0, 0.1])
    found = searched(lambda x: float(axes @ np.square(x - goal)), 4, 120, np.random.default_rng(0))
    np.testing.assert_allclose(found, goal, atol=1e-3)


def test_the_patient_is_not_among_those_that_the_attacker_knows() -> None:
    prior = prior_of(TINY)
    truth = phantom(TINY, 1)
    assert psnr_db(prior.mean_D, truth) < psnr_db(prior.projected(truth), truth) < 60


@pytest.mark.parametrize(("word", "reason"), [("magic=1", "expected KEY=VALUE"), ("image=x", "must be a number"),
                                              ("epsilon=-1", "must be above 0")])  # fmt: skip
def test_what_cannot_be_is_refused(word: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        setting_of([word])
    assert main([str(tmp_path / "out"), word]) == 2
    assert not (tmp_path / "out").exists()
