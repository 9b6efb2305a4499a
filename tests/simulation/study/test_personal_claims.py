"""Claims of the personalisation study, held against rows made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from simulation.study.personal_claims import claims_of

Rows = list[dict[str, Any]]


def rows_of(method: str, gains: list[tuple[float, float]], **labels: Any) -> Rows:
    """Per seed a row of the new scanner (24 dB and the gain) and one of the old ones (30 dB and the gain)."""
    label = {
        "method": method, "table": "main", "data": "mni", "split": "test", "site": "all", "test_site": "all",
        "release": "federated", "judged": "quality", "old_degradation": "gaussian", "new_degradation": "composite",
        "setting": "personalised", "n": 10, **labels,
    }  # fmt: skip
    figures = {"new": 24.0, "old": 30.0}
    return [
        {**label, "seed": seed, "cell": f"{method} {seed}", "domain": domain, "psnr_db": figures[domain] + gain}
        for seed, both in enumerate(gains)
        for domain, gain in zip(("new", "old"), both, strict=True)
    ]


def by_promise(rows: Rows) -> dict[str, dict[str, Any]]:
    return {claim["promise"]: claim for claim in claims_of(rows)}


NONE = [(0.0, 0.0)] * 3
FINETUNE = [(1.9, -1.0), (2.0, -1.1), (2.1, -0.9)]


def test_tgd_that_gains_nearly_as_much_and_forgets_little_holds_all_three() -> None:
    tgd = [(1.8, -0.05), (1.9, -0.04), (2.0, -0.06)]
    claims = by_promise([*rows_of("none", NONE), *rows_of("finetune", FINETUNE), *rows_of("tgd", tgd)])
    assert claims.keys() == {"gain", "kept", "forgets"}
    assert all(claim["holds"] for claim in claims.values())
    assert claims["gain"]["value"] == pytest.approx(1.9 - 0.9 * 2.0)
    assert "a share of 0.95" in claims["gain"]["reason"]
    assert (claims["kept"]["value"], claims["kept"]["target"]) == (pytest.approx(0.05), 0.1)
    assert claims["forgets"]["value"] == pytest.approx(0.95)
    assert claims["forgets"]["low"] < 0.95 < claims["forgets"]["high"]


def test_tgd_that_gains_too_little_and_forgets_too_much_is_said_not_to_hold() -> None:
    tgd = [(1.0, -1.2), (1.1, -1.2), (0.9, -1.2)]
    claims = by_promise([*rows_of("none", NONE), *rows_of("finetune", FINETUNE), *rows_of("tgd", tgd)])
    assert claims.keys() == {"gain", "kept", "forgets"}
    assert not any(claim["holds"] for claim in claims.values())


def test_without_fine_tuning_nothing_is_said_of_its_gain() -> None:
    claims = by_promise([*rows_of("none", NONE), *rows_of("tgd", [(1.0, 0.0)] * 3)])
    assert claims.keys() == {"kept"}
    assert not claims_of(rows_of("tgd", [(1.0, 0.0)])), "nor anything without the release"


def test_tgd_from_few_studies_is_held_against_fine_tuning_from_as_many() -> None:
    few = {"table": "few"}
    rows = rows_of("none", NONE, **few)
    for studies, gain in ((2, 1.0), (8, 3.0)):
        rows += rows_of("finetune", [(gain, -1.0)] * 3, studies=studies, **few)
        rows += rows_of("tgd", [(gain, 0.0)] * 3, studies=studies, **few)
    values = [claim["value"] for claim in claims_of(rows) if claim["promise"] == "gain"]
    assert values == pytest.approx([0.1, 0.3])


def orders(bias: dict[str, float], noise: dict[str, float]) -> Rows:
    rows: Rows = []
    for method in bias:
        figures = {"lesion_bias": bias[method], "noise_cov": noise[method]}
        made = rows_of(method, [(0.0, 0.0)] * 2, table="orders", judged="orders")
        rows += [{**row, **(figures if row["domain"] == "new" else {})} for row in made]
    return rows


def test_the_figures_of_the_paper_are_in_the_order_of_the_paper() -> None:
    bias = {"none": -6.30, "alone": -4.07, "lastblocks": -4.71, "tgd": -3.77}
    noise = {"none": 6.02, "alone": 8.56, "lastblocks": 7.87, "tgd": 6.46}
    found = [claim for claim in claims_of(orders(bias, noise)) if claim["promise"] in ("bias", "noise")]
    assert len(found) == 6
    assert all(claim["holds"] for claim in found)
    assert found[0]["value"] == pytest.approx(4.07 - 3.77), "the size, whichever side of 0 it lies on"
    wrong = [claim for claim in claims_of(orders({**bias, "tgd": 9.0}, noise)) if claim["promise"] == "bias"]
    assert [claim["holds"] for claim in wrong] == [False, True, True]


def test_what_online_adaptation_brings_on_its_study_is_a_claim() -> None:
    same = {"table": "online", "judged": "online"}
    (claim,) = claims_of([*rows_of("none", NONE, **same), *rows_of("tgd", [(0.5, -0.1)] * 3, **same)])
    assert (claim["promise"], claim["value"], claim["holds"]) == ("online", pytest.approx(0.5), True)
