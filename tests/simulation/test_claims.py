"""Claims: differences done by hand, the target as configured, and a failure that stays and says where."""

from __future__ import annotations

from typing import Any

import pytest

from shared.config import CompareConfig
from simulation.claims import claims_of

CONFIG = CompareConfig(gain_db=4.0, pooled_gap_db=0.3, pooled_gap_dice=0.02)


def rows_of(
    seed: int = 0, method: str = "gradprom", task: str = "dice", **overrides: tuple[float, float]
) -> list[dict]:
    figures = {
        "degraded": (20.0, 0.60),
        "local": (25.0, 0.78),
        "pooled": (26.0, 0.81),
        "federated": (25.8, 0.80),
        **overrides,
    }
    rows: list[dict[str, Any]] = []
    for setting, (psnr_db, score) in figures.items():
        for test_site, off in (("a", 0.5), ("b", -0.5), ("all", 0.0)):
            gap = off if setting == "federated" else 0.0
            labels = {"method": method, "seed": seed, "setting": setting, "site": "all", "test_site": test_site}
            rows.append({**labels, "data": "mni", "psnr_db": psnr_db + gap, task: score})
    return rows


def test_values_are_differences_over_all_tests_held_against_the_configured_targets() -> None:
    claims = claims_of(rows_of(), CONFIG, masks=True)
    assert [claim["value"] for claim in claims] == pytest.approx([5.8, 0.8, 0.02, -0.2, -0.01])
    assert [claim["target"] for claim in claims] == [4.0, 0.0, 0.0, -0.3, -0.02]
    assert all(claim["holds"] for claim in claims)
    assert all("reason" not in claim for claim in claims)


def test_without_an_enhancer_nothing_is_promised_of_images() -> None:
    claims = claims_of(rows_of(), CONFIG, masks=True, enhancer=False)
    assert [claim["value"] for claim in claims] == pytest.approx([0.02, -0.01])
    assert not [claim for claim in claims if "unit" in claim]


def test_claim_that_does_not_hold_stays_and_says_where() -> None:
    claims = claims_of(rows_of(federated=(23.0, 0.80)), CONFIG, masks=True)
    assert [claim["holds"] for claim in claims] == [False, False, True, False, True]
    assert [claim["target"] for claim in claims] == [4.0, 0.0, 0.0, -0.3, -0.02]
    assert claims[0]["reason"] == "federated minus degraded is lowest on the tests of b: +2.50 dB"


def test_value_equal_to_the_target_holds() -> None:
    claims = claims_of(rows_of(federated=(24.0, 0.78), local=(24.0, 0.78)), CONFIG, masks=True)
    assert [claim["holds"] for claim in claims[:3]] == [True, True, True]


def test_several_seeds_give_their_mean_and_their_spread() -> None:
    rows = rows_of(seed=0) + rows_of(seed=1, federated=(24.8, 0.79))
    gain = claims_of(rows, CONFIG, masks=True)[0]
    assert gain["value"] == pytest.approx(5.3)
    assert (gain["lowest"], gain["highest"]) == pytest.approx((4.8, 5.8))
    assert gain["per_seed"] == {"0": pytest.approx(5.8), "1": pytest.approx(4.8)}
    assert gain["reason"] == "2 seeds: +4.80 dB to +5.80 dB"


def test_data_without_masks_is_judged_by_accuracy() -> None:
    claims = claims_of(rows_of(task="accuracy"), CONFIG, masks=False)
    assert [claim["claim"].split()[1] for claim in claims] == ["PSNR", "PSNR", "accuracy", "PSNR", "accuracy"]


def test_comparator_that_was_not_asked_for_makes_no_claim() -> None:
    alone = CompareConfig(local=False, pooled=False)
    assert [claim["claim"] for claim in claims_of(rows_of(), alone, masks=True)] == [
        "federated PSNR at least 4 dB above degraded"
    ]


def test_each_method_has_its_own_claims() -> None:
    claims = claims_of(rows_of() + rows_of(method="plain"), CONFIG, masks=True)
    assert [claim["method"] for claim in claims] == ["gradprom"] * 5 + ["plain"] * 5
    assert claims[5]["claim"].startswith("plain: federated PSNR")


def test_rows_judged_on_another_data_set_are_no_part_of_the_claims() -> None:
    away = [row | {"psnr_db": 0.0, "test_data": "hippocampus"} for row in rows_of()]
    here = [row | {"test_data": "mni"} for row in rows_of()]
    assert claims_of([*here, *away], CONFIG, masks=True) == claims_of(rows_of(), CONFIG, masks=True)


def local_rows(site: str, masks: int, diagnoses: int, **metrics: float) -> list[dict[str, Any]]:
    labels = {"method": "gradprom", "seed": 0, "data": "mni", "setting": "local", "site": site}
    labels |= {"train_masks": masks, "train_diagnoses": diagnoses}
    return [{**labels, "test_site": test_site, **metrics} for test_site in ("a", "b", "all")]


def test_federated_is_held_against_the_best_local_model_that_had_labels_of_that_kind() -> None:
    """c's Dice of 0.95 came from no mask, and b's accuracy of 0.99 from no diagnosis: neither counts."""
    rows = [
        *({**row, "accuracy": 0.7} for row in rows_of()),
        *local_rows("a", 10, 5, dice=0.79, accuracy=0.72),
        *local_rows("b", 10, 0, dice=0.75, accuracy=0.99),
        *local_rows("c", 0, 5, dice=0.95, accuracy=0.6),
    ]
    claims = claims_of(rows, CONFIG, masks=True, enhancer=False)
    best = {claim["claim"].split()[1]: claim for claim in claims if "best" in claim["claim"]}
    assert best["Dice"]["value"] == pytest.approx(0.80 - 0.79)
    assert best["Dice"]["target"] == 0.0
    assert best["Dice"]["holds"]
    assert best["Dice"]["reason"] == "without c: it had no masks to train with"
    assert best["accuracy"]["value"] == pytest.approx(0.70 - 0.72)
    assert not best["accuracy"]["holds"]
    assert best["accuracy"]["reason"] == (
        "without b: it had no diagnoses to train with; federated minus best local is lowest on the tests of a: -0.020"
    )
    mean = next(claim for claim in claims if "mean of the local" in claim["claim"])
    assert mean["reason"] == "without c: it had no masks to train with"


def test_best_local_model_is_each_seeds_own() -> None:
    rows = rows_of() + rows_of(seed=1)
    for seed, (first, second) in enumerate(((0.7, 0.9), (0.8, 0.6))):
        for site, dice in (("a", first), ("b", second)):
            rows += [{**row, "seed": seed} for row in local_rows(site, 1, 1, dice=dice)]
    (best,) = [claim for claim in claims_of(rows, CONFIG, masks=True) if "best" in claim["claim"]]
    assert best["per_seed"] == {"0": pytest.approx(0.8 - 0.9), "1": pytest.approx(0.8 - 0.8)}
