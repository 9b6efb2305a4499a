from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.metrics import moments, pool

values = st.lists(st.floats(-100, 100), min_size=1, max_size=30)


@given(st.lists(values, min_size=1, max_size=4))
def test_pooling_sites_is_the_same_as_pooling_images(sites: list[list[float]]) -> None:
    pooled = pool([{"psnr_db": moments(site)} for site in sites])["psnr_db"]
    images = np.concatenate(sites)
    assert pooled.count == len(images)
    assert pooled.mean == pytest.approx(images.mean(), abs=1e-9)
    assert pooled.std == pytest.approx(images.std(), abs=1e-5)


def test_quantiles_are_numpys_and_do_not_pool() -> None:
    site = np.arange(101.0)
    assert moments(site).quantiles == (5.0, 25.0, 50.0, 75.0, 95.0)
    assert pool([{"dice": moments(site)}])["dice"].quantiles == ()


def test_what_is_undefined_for_an_image_is_not_counted() -> None:
    of_site = moments([1.0, float("nan"), 3.0, float("inf")])
    assert (of_site.count, of_site.total, of_site.total_sq) == (2, 4.0, 10.0)
    nothing = moments([float("nan")])
    assert (nothing.count, nothing.total, nothing.quantiles) == (0, 0.0, ())


def test_a_site_without_a_metric_does_not_stand_in_the_way() -> None:
    pooled = pool([{"dice": moments([0.5])}, {"psnr_db": moments([30.0])}, {"dice": moments([])}])
    assert pooled["dice"].mean == 0.5
    assert pooled["psnr_db"].mean == 30.0
