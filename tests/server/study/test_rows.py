"""Which row is of what, which lambda validation patients choose, and what a cell's sheet adds."""

from __future__ import annotations

from typing import Any

import pytest

from server.study.page import _sentences
from server.study.rows import Model, Trained, condition_of, enriched, model_of, searched, sheet_of, tuned, undecided
from server.study.wording import gathered

from .conftest import both, row


def model(rows: Any, method: str) -> Model:
    return next(each for each in sheet_of(rows, ["lambda"]).models if each.method == method)


def test_rows_are_found_by_model_condition_and_lambda(lambda_rows: list[dict[str, Any]]) -> None:
    sheet = sheet_of(lambda_rows, ["lambda"])
    (condition,) = sheet.conditions
    joint = model(lambda_rows, "joint")
    assert sheet.task_weights(joint, condition) == (0.1, 1.0)
    assert sheet.values(Trained(joint, condition, 1.0), "psnr_db") == {0: 19.5, 1: 22.52, 2: 25.48}
    assert sheet.of_state("degraded", condition, "psnr_db") == {0: 15.0, 1: 18.0, 2: 21.0}
    assert sheet.task_weights(model(lambda_rows, "plain"), condition) == (None,)


def test_lambda_is_chosen_on_validation_patients_whatever_the_test_says(lambda_rows: list[dict[str, Any]]) -> None:
    sheet = sheet_of(lambda_rows, ["lambda"])
    (condition,) = sheet.conditions
    assert tuned(sheet, model(lambda_rows, "gradprom"), condition) == 1.0  # worse on the test by 0.1 dB
    assert tuned(sheet, model(lambda_rows, "joint"), condition) == 0.1
    assert tuned(sheet, model(lambda_rows, "plain"), condition) is None


def test_lambdas_are_compared_on_the_seeds_that_all_have() -> None:
    # seed 1 is 9 dB easier and was run with lambda 3 only: that must not make 3 the best
    rows = [
        *both("joint", 0, 20.0, 20.0, weight=0.1),
        *both("joint", 0, 19.0, 19.0, weight=3.0),
        *both("joint", 1, 28.0, 28.0, weight=3.0),
    ]
    sheet = sheet_of(rows, ["lambda"])
    assert tuned(sheet, sheet.models[0], sheet.conditions[0]) == 0.1


def test_without_a_common_seed_no_lambda_is_chosen_and_the_page_says_so() -> None:
    # joint at 1 stands on a seed that is 9 dB easier; frozen has a seed with both of its lambdas
    rows = both("joint", 0, 20.0, 20.0, weight=0.1) + both("joint", 1, 28.0, 28.0, weight=1.0)
    rows += [each for weight in (0.1, 1.0) for each in both("frozen", 0, 21.0, 20.0 + weight, weight=weight)]
    rows += both("frozen", 1, 29.0, 29.0, weight=0.1)
    sheet = sheet_of(rows, ["lambda"])
    (condition,) = sheet.conditions
    chosen = {each.method: tuned(sheet, each, condition) for each in sheet.models}
    assert chosen == {"joint": None, "frozen": 1.0}
    assert {each.method: undecided(sheet, each, condition) for each in sheet.models} == {"joint": True, "frozen": False}
    (sentence,) = _sentences("lambda", sheet)
    assert sentence.startswith("joint: lambda not yet chosen (hippocampus, gaussian, sigma 0.2)")


def test_another_data_set_is_tested_at_the_lambda_chosen_at_home() -> None:
    away = {"test_data": "mni"}
    rows = [
        *both("joint", 0, 20.0, 21.0, weight=0.1),
        *both("joint", 0, 20.0, 20.0, weight=1.0),
        row("joint", 0, 10.0, weight=0.1, **away),
        row("joint", 0, 15.0, weight=1.0, **away),
    ]
    sheet = sheet_of(rows, ["lambda"])
    there = next(each for each in sheet.conditions if each.test_data == "mni")
    assert tuned(sheet, sheet.models[0], there) == 0.1


def test_rows_of_other_tables_stay_out_and_shared_cells_count_once(lambda_rows: list[dict[str, Any]]) -> None:
    shared = [each | {"table": "gates"} for each in lambda_rows]
    sheet = sheet_of([*lambda_rows, *shared], ["lambda", "gates"])
    (condition,) = sheet.conditions
    assert len(sheet.values(Trained(model(lambda_rows, "plain"), condition), "psnr_db")) == 3
    assert not sheet_of(lambda_rows, ["gates"]).test


def test_what_only_a_sheet_tells_goes_into_the_rows_of_its_cell() -> None:
    rows = [row("gradprom", 0, 20.0, weight=1.0, cell="a"), row("gradprom", 0, 15.0, cell="a", setting="degraded")]
    rounds = [
        {"loss_enhance": 0.5, "ascent_rate": 0.5},  # the warm-up: nothing of recognition was looked at
        {"loss_enhance": 0.2, "ascent_rate": 0.1, "gate_open_rate": 0.4, "mean_cosine": -0.1},
        {"loss_enhance": 0.1, "ascent_rate": 0.2, "gate_open_rate": 0.6, "mean_cosine": 0.3},
    ]
    overrides = ["objective.mask_weight=1.0", "objective=gradprom objective.mask_weight=0"]
    trained, degraded = enriched(rows, [{"key": "a", "rounds": rounds, "overrides": overrides}])
    assert trained["loss_enhance"] == 0.1
    assert (trained["gate_open_rate"], trained["mean_cosine"]) == pytest.approx((0.5, 0.1))
    assert trained["ascent_rate"] == pytest.approx(0.15)
    assert trained["ascent_most"] == 0.5
    assert trained["auxiliaries"] == "diagnosis only"
    assert "loss_enhance" not in degraded


def test_a_row_says_its_settings_itself_and_the_overrides_are_for_cells_of_earlier_code() -> None:
    new = {"learning_rate": 0.002, "warmup": 0.25, "rounds": 24, "local_steps": 50, "output": "tanh"}
    weights = {"mask_weight": 1.0, "diagnosis_weight": 0, "adversarial_weight": 0.01}
    rows = [
        row("todnet", 0, 20.0, cell="new", scanners="equal", table="federated", **new, **weights),
        row("todnet", 0, 20.0, cell="old", table="federated-iid"),
        row("todnet", 0, 20.0, cell="bare", table="federated"),
    ]
    words = "training.learning_rate=4e-3 rounds=16 enhance.output=tanh objective.critic.adversarial_weight=1.0"
    cells = [
        {"key": "new", "rounds": [], "overrides": ["objective=todnet", words]},  # what the row says counts
        {"key": "old", "rounds": [], "overrides": ["objective=todnet", words, "objective.diagnosis_weight=0"]},
        {"key": "bare", "rounds": [], "overrides": ["objective=todnet"]},
    ]
    full = enriched(rows, cells)
    assert [each["settings"] for each in full] == [
        {"learning rate": 0.002, "warm-up": 0.25, "rounds": 24, "local steps": 50},
        {"learning rate": 0.004, "rounds": 16},
        {},
    ]
    assert [model_of(each).adversarial_weight for each in full] == [0.01, 1.0, None]
    assert [model_of(each).output for each in full] == ["tanh", "tanh", "linear"]
    assert [model_of(each).auxiliaries for each in full] == ["masks only", "masks only", "together"]
    assert [condition_of(each).scanners for each in full] == ["equal", "equal", "as they are"]


def test_the_search_over_training_stands_beside_the_usual_settings() -> None:
    rows = [
        row("joint", 0, 20.0, weight=1.0, settings={"learning rate": 0.002, "rounds": 8.0}),
        row("joint", 0, 21.0, weight=3.0, settings={"learning rate": 0.002, "rounds": 8.0}),
        row("joint", 0, 22.0, weight=1.0, table="tuning", settings={"learning rate": 0.004, "rounds": 8.0}),
        row("joint", 0, 22.0, weight=1.0, table="gates", settings={"learning rate": 0.004, "rounds": 8.0}),
        row(
            "joint", 1, 29.0, weight=1.0, settings={"learning rate": 0.002, "rounds": 8.0}
        ),  # a seed that was not searched with
    ]
    found = {(each["tuning"], each["psnr_db"]) for each in searched(rows, "tuning")}
    assert found == {("learning rate 0.002", 20.0), ("learning rate 0.004", 22.0)}


def test_the_best_settings_are_named_per_objective() -> None:
    rows = []
    for rate, joint, plain in ((0.001, 20.0, 22.0), (0.004, 21.0, 21.0)):
        labels = {"table": "tuning", "settings": {"learning rate": rate, "warm-up": 0.25}}
        rows += both("joint", 0, 99.0, joint, weight=1.0, **labels) + both("plain", 0, 99.0, plain, **labels)
    sheet = sheet_of(searched(rows, "tuning"), ["tuning"], split="validation")
    assert _sentences("tuning", sheet) == (
        "joint: best with learning rate 0.004 (21.00 dB), of 2 tried.",
        "plain: best with learning rate 0.001 (22.00 dB), of 2 tried.",
    )


def test_conditions_that_differ_in_the_noise_are_gathered() -> None:
    rows = [row("plain", 0, 20.0, sigma=sigma) for sigma in (0.2, 0.1)] + [row("plain", 0, 20.0, data="mni")]
    assert gathered(sheet_of(rows, ["lambda"]).conditions) == (
        "hippocampus, gaussian, sigma 0.1, 0.2", "mni → hippocampus, gaussian, sigma 0.2",
    )  # fmt: skip


def test_lambda_is_searched_among_what_every_objective_was_run_with() -> None:
    # frozen was only run at 1 so far: choosing gradprom's among two would be a longer search than frozen's
    rows = both("frozen", 0, 20.0, 20.0, weight=1.0)
    rows += both("gradprom", 0, 20.0, 20.0, weight=1.0) + both("gradprom", 0, 21.0, 21.0, weight=0.1)
    rows += both("estr", 0, 20.0, 20.0, weight=0.001, relative=False)
    sheet = sheet_of(rows, ["lambda"])
    (condition,) = sheet.conditions
    chosen = {each.method: tuned(sheet, each, condition) for each in sheet.models}
    assert chosen == {"frozen": 1.0, "gradprom": 1.0, "estr": 0.001}
    rows += both("frozen", 0, 19.0, 19.0, weight=0.1)
    sheet = sheet_of(rows, ["lambda"])
    assert {each.method: tuned(sheet, each, condition) for each in sheet.models} == {
        "frozen": 1.0, "gradprom": 0.1, "estr": 0.001,
    }  # fmt: skip
