"""The bench measures what it says, on small arrays: both sides do their whole work, and ours opens to a true sum."""

from __future__ import annotations

import json

import numpy as np
import pytest

from shared.secagg.fixed_point import add_packed, grid_for, quantise
from shared.secagg.protocol import Offer, Reveal, mask, reveal, unmask
from simulation.bench import secagg
from simulation.bench.secagg import LOST, RANGE, SITES, WEIGHT, OurSites, measure_peak, measure_time, random_update

SMALL = {"a.weight": (300, 70), "b.bias": (3,)}
COUNT = 300 * 70 + 3


def test_what_the_measured_site_sends_opens_with_the_others_to_the_exact_sum() -> None:
    sites, arrays = OurSites(), random_update(SMALL)
    _, sent = sites.work(arrays)
    offers = {name: Offer.from_json(values) for name, values in json.loads(sent["offers"]).items()}
    survivors = sites.terms.cohort[LOST:]
    assert sites.site in survivors
    total = np.zeros(COUNT, np.uint64)
    add_packed(total, sent["masked"])
    reveals = {sites.site: Reveal.from_json(json.loads(sent["reveal"]))}
    for name in set(survivors) - {sites.site}:
        session, data = mask(sites.made[name][0], offers, np.full(COUNT, 5, np.uint64), sites.identities[name])
        add_packed(total, data)
        _, reveals[name] = reveal(session, survivors)
    own = quantise(arrays, dict.fromkeys(arrays, WEIGHT), grid_for(RANGE, SITES * WEIGHT))
    expected = (own + np.uint64(5 * (len(survivors) - 1))) & np.uint64(2**40 - 1)
    np.testing.assert_array_equal(unmask(total, sites.terms, offers, survivors, reveals), expected)


def test_both_sides_are_measured_and_count_their_bytes() -> None:
    measured = measure_time(SMALL, repeats=1)
    assert all(seconds > 0 for seconds in measured.values())
    assert 1.25 < measured["bytes"] / measured["plain_bytes"] < 1.4  # keys and shares weigh little even here
    assert measured["rival_bytes"] > 2 * measured["plain_bytes"]  # int64 on its wire


def test_the_peak_is_that_of_a_process() -> None:
    assert measure_peak(SMALL)["peak_mb"] > 10


@pytest.mark.parametrize(
    ("changed", "holds"), [({}, True), ({"ours": 1.1}, False), ({"bytes": 135.0}, False), ({"unmask": 99.0}, True)]
)
def test_a_case_holds_only_if_time_and_bytes_do(changed: dict[str, float], holds: bool) -> None:
    measured = {"ours": 0.9, "rival": 1.0, "bytes": 126.0, "plain_bytes": 100.0, "rival_bytes": 200.0, "unmask": 1.0}
    case = secagg._case({**measured, "received": 1000.0, **changed}, peak=500.0)
    assert case["holds"] is holds
    assert case["bytes_target"] == 1.3
    assert case["target"] == 1.0
