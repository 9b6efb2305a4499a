"""Claims of a study on rows done by hand: values, fixed targets, and what does not hold stays."""

from __future__ import annotations

from typing import Any

import pytest
from scipy import stats

from server.study.promises import PROMISES
from simulation.study.claims import claims_of


def rows_of(method: str, psnr_db: tuple[float, ...], *, table: str, weight: float | None = None, **labels: Any) -> Any:
    """One cell per figure (seeds 0, 1, ...): its test row and a validation row of the same figure."""
    row = {
        "method": method, "table": table, "data": "hippocampus", "test_data": "hippocampus", "degradation": "gaussian",
        "sigma": 0.2, "setting": "pooled", "site": "all", "test_site": "all", "n": 4,
        "gate": {"gradprom": "global", "plain": "off"}.get(method, "on"),
        "recognition": "none" if method == "plain" else "supervised",
        **({} if weight is None else {"lambda": weight}), **labels,
    }  # fmt: skip
    return [
        row | {"seed": seed, "psnr_db": value, "split": split, "cell": f"{method}{weight}{labels.get('setting')}{seed}"}
        for seed, value in enumerate(psnr_db)
        for split in ("validation", "test")
    ]


def of(claims: list[dict[str, Any]], promise: str) -> list[dict[str, Any]]:
    return [claim for claim in claims if claim["promise"] == promise]


LAMBDA = [
    *rows_of("gradprom", (20.0, 23.0, 26.1), table="lambda", weight=1.0),
    *rows_of("joint", (19.8, 22.9, 25.7), table="lambda", weight=1.0),
    *rows_of("frozen", (20.5, 23.6, 26.5), table="lambda", weight=1.0),
    *rows_of("plain", (20.1, 22.8, 26.0), table="lambda"),
]


def test_rivals_are_compared_by_seed_with_their_interval() -> None:
    plain, joint, frozen = of(claims_of(LAMBDA), "rivals")
    assert [each["value"] for each in (plain, joint, frozen)] == pytest.approx([0.2 / 3, 0.7 / 3, -0.5])
    assert [each["holds"] for each in (plain, joint, frozen)] == [True, True, False]
    expected = stats.ttest_rel((20.0, 23.0, 26.1), (20.1, 22.8, 26.0)).confidence_interval(0.95)
    assert (plain["low"], plain["high"]) == pytest.approx((expected.low, expected.high))
    assert "holds 0: not settled" in plain["reason"]
    assert "does not hold 0" in frozen["reason"]
    assert plain["per_seed"] == {"0": pytest.approx(-0.1), "1": pytest.approx(0.2), "2": pytest.approx(0.1)}
    assert frozen["reason"].endswith("gradprom at lambda 1, frozen at lambda 1")


def test_no_loss_looks_at_the_upper_end_and_better_at_the_mean() -> None:
    claims = claims_of(LAMBDA)
    joint, frozen = of(claims, "lambda")
    assert joint["holds"]
    assert joint["value"] == pytest.approx(joint["high"])
    assert not frozen["holds"]  # -0.5, -0.6, -0.4: the whole interval is below 0
    assert frozen["value"] < 0
    assert [each["holds"] for each in of(claims, "large")] == [True, False]
    small = [row | {"lambda": 0.1} if "lambda" in row else row for row in LAMBDA]
    assert not of(claims_of(small), "large")


def test_a_loss_of_the_margin_is_ruled_out_by_the_lower_end_only() -> None:
    found = {claim["claim"].split("below ")[1].split("'")[0]: claim for claim in of(claims_of(LAMBDA), "margin")}
    low = stats.ttest_rel((20.0, 23.0, 26.1), (19.8, 22.9, 25.7)).confidence_interval(0.95).low
    joint, frozen = found["joint"], found["frozen"]
    assert (joint["value"], joint["target"], joint["unit"]) == (pytest.approx(low), -0.1, "dB")
    assert (joint["holds"], frozen["holds"]) == (bool(low > -0.1), False)

    def claimed(seeds: int, shift: float) -> tuple[bool, bool]:
        """The claim that a loss is not contradicted, and that of the margin, over `seeds` that spread by 0.2 dB."""
        ours = tuple(20.0 + shift + 0.1 * (-1) ** seed for seed in range(seeds))
        rows = rows_of("gradprom", ours, table="lambda", weight=1.0)
        rows += rows_of("joint", (20.0,) * seeds, table="lambda", weight=1.0)
        claims = claims_of(rows)
        return of(claims, "lambda")[0]["holds"], of(claims, "margin")[0]["holds"]

    assert claimed(2, -0.05) == (True, False)  # few seeds: nothing contradicted, nothing shown
    assert claimed(40, -0.05) == (False, True)  # many: a loss, and one below the margin
    assert claimed(40, -0.2) == (False, False)


def test_one_seed_says_so() -> None:
    claims = claims_of([row for row in LAMBDA if row["seed"] == 0])
    assert all("one seed, no interval" in claim["reason"] for claim in claims)
    assert all("low" not in claim for claim in claims)
    assert not of(claims, "margin")  # no interval, no lower end


def test_equal_is_not_above() -> None:
    rows = rows_of("gradprom", (20.0,), table="lambda", weight=1.0) + rows_of("plain", (20.0,), table="lambda")
    (claim,) = of(claims_of(rows), "rivals")
    assert (claim["value"], claim["holds"]) == (0.0, False)


def test_marks_of_the_paper_are_targets_that_do_not_move() -> None:
    ladder = {"table": "ladder", "sigma": 0.1}
    rows = [
        *rows_of("gradprom", (22.3, 22.2), weight=1.0, **ladder),
        *rows_of("frozen", (21.0, 21.0), weight=1.0, **ladder),
        *rows_of("gradprom", (29.0, 29.0), weight=1.0, **ladder, recognition="unsupervised"),
        *rows_of("gradprom", (22.3, 22.2), weight=1.0, table="composite", degradation="composite"),
        *rows_of("frozen", (22.0, 22.0), weight=1.0, table="composite", degradation="composite"),
    ]
    claims = claims_of(rows)
    (mark,), (composite,) = of(claims, "mark"), of(claims, "composite")
    assert (mark["target"], mark["value"], mark["holds"]) == (1.231, pytest.approx(1.25), True)
    assert (composite["target"], composite["value"], composite["holds"]) == (0.384, pytest.approx(0.25), False)


def test_main_loss_is_compared_with_plain_at_the_smallest_lambda() -> None:
    rows = rows_of("gradprom", (20.0, 20.0), table="lambda", weight=0.03)
    rows += rows_of("plain", (20.0, 20.0), table="lambda")
    cells = [
        {"key": f"gradprom0.03None{seed}", "overrides": [], "rounds": [{"loss_enhance": 9.0}, {"loss_enhance": loss}]}
        for seed, loss in ((0, 0.0105), (1, 0.0202))
    ]
    cells += [
        {"key": f"plainNoneNone{seed}", "overrides": [], "rounds": [{"loss_enhance": loss}]}
        for seed, loss in ((0, 0.0100), (1, 0.0200))
    ]
    (claim,) = of(claims_of(rows, cells), "main-loss")
    assert (claim["value"], claim["target"], claim["holds"]) == (pytest.approx(0.03), 0.01, False)
    assert not of(claims_of(rows), "main-loss")


@pytest.mark.parametrize(("worst", "holds"), [(0.0, True), (0.02, False)])
def test_one_step_uphill_under_sgd_breaks_the_guarantee(worst: float, holds: bool) -> None:
    rows = rows_of("gradprom", (20.0, 20.0), table="adam", weight=1.0, optimiser="sgd")
    rows += rows_of("gradprom", (20.0,), table="adam", weight=3.0, optimiser="adam")
    cells = [
        {"key": f"gradprom1.0None{seed}", "overrides": [], "rounds": [{"ascent_rate": rate}, {"ascent_rate": 0.0}]}
        for seed, rate in ((0, 0.0), (1, worst))
    ]
    cells.append({"key": "gradprom3.0None0", "overrides": [], "rounds": [{"ascent_rate": 0.3}]})
    (claim,) = of(claims_of(rows, cells), "ascent")  # Adam promises nothing
    assert (claim["value"], claim["target"], claim["holds"]) == (worst, 0.0, holds)


def test_federation_is_held_against_pooled_local_and_its_own_gate() -> None:
    def cell(table: str, setting: str, psnr_db: float, dice: float, **labels: Any) -> Any:
        return rows_of("gradprom", (psnr_db,), table=table, weight=1.0, setting=setting, dice=dice, **labels)

    rows = [
        *cell("federated", "federated", 26.0, 0.70, promotion="none"),
        *cell("federated", "federated", 26.1, 0.70, promotion="layer"),
        *cell("federated-pooled", "pooled", 26.15, 0.72),
        *cell("federated-local", "local", 26.5, 0.60),
    ]
    for row in rows:
        row["cell"] = row["setting"] + row.get("promotion", "")
    rounds = {"federatednone": [{"bytes_up": 100}, {"bytes_up": 100}], "federatedlayer": [{"bytes_up": 262}]}
    cells = [{"key": key, "overrides": [], "rounds": records} for key, records in rounds.items()]
    claims = claims_of(rows, cells)
    found = {claim["claim"].partition(": ")[2]: (claim["value"], claim["holds"]) for claim in claims}
    assert found == {
        "PSNR of federated gradprom within 0.2 dB of pooled": (pytest.approx(-0.15), True),
        "Dice of federated gradprom within 0.01 of pooled": (pytest.approx(-0.02), False),
        "PSNR of federated gradprom above the mean local model's": (pytest.approx(-0.5), False),
        "Dice of federated gradprom above the mean local model's": (pytest.approx(0.1), True),
        "PSNR with promotion=layer above that without": (pytest.approx(0.1), True),
        "bytes up with promotion=layer over those without": (pytest.approx(1.31), False),
    }


def test_todnet_region_networks_and_harm() -> None:
    ct = {"table": "todnet", "data": "totalseg", "test_data": "totalseg", "degradation": "low_dose", "sigma": None}
    rows = [
        *rows_of("todnet", (30.0,), **ct, weight=1.0, psnr_db_region=29.0, dice_unet=0.8, no_harm_dice_unet=0.894),
        *rows_of("todnet", (10.0,), **ct, weight=1.0, psnr_db_region=9.0, output="tanh"),
        *rows_of("mse-wgan", (33.0,), **ct, psnr_db_region=29.0),
        *rows_of("todnet", (25.0,), **ct, setting="degraded", psnr_db_region=23.0, dice_unet=0.8),
        *rows_of("todnet", (25.0,), **ct, setting="clean", dice_unet=0.9),
    ]
    claims = claims_of(rows)
    ((region,), (unet,), (harm,)) = (of(claims, promise) for promise in ("region", "downstream", "no-harm"))
    assert (region["value"], region["holds"]) == (pytest.approx(1.0), True)  # 6 dB inside, 5 dB over all
    assert (unet["value"], unet["holds"]) == (0.0, False)
    assert (harm["value"], harm["target"], harm["holds"]) == (pytest.approx(-0.006), -0.005, False)


def test_nothing_is_claimed_without_rows_and_every_claim_is_of_a_known_promise() -> None:
    assert claims_of([]) == []
    assert {claim["promise"] for claim in claims_of(LAMBDA)} <= PROMISES.keys()


def test_the_federation_is_held_against_every_local_model_away_from_home() -> None:
    def site_rows(setting: str, site: str, there: str, psnr_db: float) -> list[dict[str, Any]]:
        labels = {"setting": setting, "site": site, "test_site": there, "weight": 1.0}
        rows = rows_of(
            "gradprom", (psnr_db,), table="federated" if setting == "federated" else "federated-local", **labels
        )
        return [row for row in rows if row["split"] == "test"]

    rows = [
        *site_rows("federated", "all", "north", 25.0),
        *site_rows("federated", "all", "hill", 26.0),
        *site_rows("local", "north", "north", 29.0),  # at home a local model may win
        *site_rows("local", "north", "hill", 25.8),
        *site_rows("local", "hill", "north", 24.0),
    ]
    (claim,) = of(claims_of(rows), "federated")
    assert claim["value"] == pytest.approx(0.2)
    assert claim["holds"]
    assert claim["reason"].startswith("least: north's model on hill's tests")
