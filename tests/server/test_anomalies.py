"""Whose updates stand out: by arithmetic on records that were made up, and in the page."""

from __future__ import annotations

from typing import Any

import pytest

from server.anomalies import HIDDEN, NO_BOUND, anomalies_of

VISIBLE: dict[str, Any] = {"secagg": {"kind": "visible_updates"}, "strategy": {"norm_bound": None}}
MASKED: dict[str, Any] = {"secagg": {"kind": "masked"}, "strategy": {"norm_bound": None}}
SITES = ("coast", "hill", "north")


def record(number: int, dropped: tuple[str, ...] = (), **updates: tuple[float, float]) -> dict[str, Any]:
    return {
        "round": number,
        "training": {site: {"loss": 0.1} for site in updates},
        "dropped": dict.fromkeys(dropped, "a reason"),
        "sites_updates": {site: {"norm": norm, "cosine": cosine} for site, (norm, cosine) in updates.items()},
    }


def test_norms_are_told_against_the_median_and_what_stands_out_in_words() -> None:
    rounds = [
        record(1, coast=(1.0, 0.9), hill=(2.0, 0.8), north=(20.0, -0.5)),
        record(2, coast=(1.0, 0.7), hill=(1.0, 0.6), north=(30.0, -0.9)),
    ]
    found = anomalies_of(rounds, SITES, VISIBLE)
    assert found is not None
    coast, hill, north = found.sites
    assert (coast.ratio, coast.longest) == (0.75, 1.0)  # 1 / 2 and 1 / 1
    assert (north.ratio, north.longest) == (20.0, 30.0)  # 20 / 2 and 30 / 1
    assert (hill.cosine, hill.lowest) == (pytest.approx(0.7), 0.6)
    assert [words.split(":")[0] for words in found.words] == ["north", "north"]
    assert "20.0 times" in found.words[0]
    assert "−0.70" in found.words[1] or "-0.70" in found.words[1]


def test_refusals_and_what_the_aggregation_left_out_are_shares_of_rounds() -> None:
    first = record(1, coast=(1.0, 0.9), hill=(1.0, 0.9), north=(1.0, 0.9))
    second = record(2, dropped=("north",), coast=(1.0, 0.9), hill=(1.0, 0.9))
    robust = {"kind": "multi_krum", "chosen": ["coast"], "dropped": ["hill"]}
    found = anomalies_of([{**first, "robust": robust}, {**second, "robust": robust}], SITES, VISIBLE)
    assert found is not None
    assert [site.refused for site in found.sites] == [0, 0, 0.5]
    assert [site.left_out for site in found.sites] == [0, 1, 0]
    assert [site.rounds for site in found.sites] == [2, 2, 1]
    assert "hill: left out by the aggregation in 100% of its rounds." in found.words


def test_under_secure_aggregation_it_says_that_it_sees_nothing() -> None:
    plain = {"round": 1, "training": {"coast": {}, "hill": {}}, "dropped": {}}
    found = anomalies_of([plain], SITES, MASKED)
    assert found is not None
    assert not found.seen
    assert found.words == (HIDDEN, NO_BOUND)
    assert all(site.ratio is None and site.cosine is None for site in found.sites)
    bounded = anomalies_of([plain], SITES, {**MASKED, "strategy": {"norm_bound": 2.0}})
    assert bounded is not None
    assert bounded.words == (HIDDEN,)


def test_runs_of_before_have_no_such_section() -> None:
    assert anomalies_of([{"round": 1, "training": {"coast": {}}, "dropped": {}}], SITES, {}) is None
    assert anomalies_of([], SITES, MASKED) is None


@pytest.mark.parametrize("broken", ["text", None, 3, [], {"coast": 3}, {"coast": {"norm": "x", "cosine": True}}])
def test_a_record_of_somebody_elses_making_shows_nothing_false(broken: object) -> None:
    whole = record(1, coast=(1.0, 0.9), hill=(1.0, 0.9))
    found = anomalies_of([whole, {**whole, "round": 2, "sites_updates": broken}], SITES, VISIBLE)
    assert found is not None
    assert found.sites[0].ratio == 1
    assert found.sites[0].cosine == 0.9


def test_the_section_shows_every_site_and_the_words() -> None:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    import server.page

    folder = server.page.Path(server.page.__file__).parent / "templates"
    page = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    rounds = [record(1, ("hill",), coast=(1.0, 0.9), north=(9.0, -0.5), west=(1.0, 0.9))]
    for campaign in (VISIBLE, MASKED):
        part = {"updates": anomalies_of(rounds, SITES, campaign), "method": "plain", "seed": 0}
        text = page.get_template("anomalies.html").render(part=part, parts=[part], report={"seeds": [0]})
        assert all(f"<td>{site}</td>" in text for site in (*SITES, "west"))
        assert "pointed against the others" in text
        assert ("saw their sum alone" in text) == (campaign is MASKED)
