"""Tables: hand-made rows, each figure and each paired difference where it belongs."""

from __future__ import annotations

from typing import Any

import pytest

from server.study.rows import Model, sheet_of
from server.study.tables import _GROUPS, Block, Score, blocks_of, ordered, reference_of
from server.study.wording import SHOWN, label

from .conftest import both, row


def score(block: Block, name: str, column: str) -> Score | None:
    line = next(line for line in block.lines if line.label == name)
    return line.scores[block.columns.index(column)]


def test_differences_are_ours_minus_the_rival_paired_by_seed(lambda_rows: list[dict[str, Any]]) -> None:
    psnr, judge = blocks_of(sheet_of(lambda_rows, ["lambda"]), "lambda")
    assert (psnr.title, judge.title) == ("PSNR, dB ↑", "judge Dice ↑")
    assert psnr.columns == ("lambda 0.1", "lambda 1")
    joint = score(psnr, "joint", "lambda 1")
    assert joint is not None
    assert joint.difference is not None
    assert joint.mean == pytest.approx(22.5)
    assert joint.difference.mean == pytest.approx(0.4)  # -0.1 minus -0.5, though seeds are 3 dB apart
    assert joint.difference.verdict == "above"
    ours = score(psnr, "gradprom", "lambda 1")
    assert ours is not None
    assert ours.difference is None


def test_a_rival_without_lambda_stands_in_every_column(lambda_rows: list[dict[str, Any]]) -> None:
    psnr, _ = blocks_of(sheet_of(lambda_rows, ["lambda"]), "lambda")
    plain = [score(psnr, "plain", column) for column in psnr.columns]
    assert [each.mean for each in plain if each] == [23.0, 23.0]
    assert [each.difference.mean for each in plain if each and each.difference] == pytest.approx([0.0, -0.1])


def test_elsewhere_each_objective_stands_at_its_own_lambda(lambda_rows: list[dict[str, Any]]) -> None:
    rows = [each | {"table": "rivals-hippocampus"} for each in lambda_rows]
    (block,) = blocks_of(sheet_of(rows, ["rivals-hippocampus"]), "rivals-hippocampus")
    assert block.columns == ("PSNR, dB ↑", "judge Dice ↑")
    joint = score(block, "joint", "PSNR, dB ↑")
    assert joint is not None
    assert joint.difference is not None
    assert joint.difference.mean == pytest.approx(-0.1)  # gradprom at 1, joint at 0.1
    notes = {line.label: line.note for line in block.lines}
    assert notes["gradprom"] == "lambda 1 of 0.1, 1"
    assert notes["joint"] == "lambda 0.1 of 0.1, 1"
    assert notes["plain"] == ""


def test_states_are_the_images_and_no_model(lambda_rows: list[dict[str, Any]]) -> None:
    psnr, judge = blocks_of(sheet_of(lambda_rows, ["lambda"]), "lambda")
    assert [line.label for line in psnr.lines if line.state] == ["degraded images"]  # a clean image has no PSNR
    assert [line.label for line in judge.lines if line.state] == ["degraded images", "clean images"]


def test_a_rival_is_compared_with_the_model_most_like_it() -> None:
    models = [
        Model("gradprom"),
        Model("gradprom", optimiser="sgd"),
        Model("gradprom", adam_states="two"),
        Model("joint", gate="on", optimiser="sgd"),
        Model("plain", gate="off", recognition="none"),
    ]
    assert reference_of(models[3], models) == models[1]
    assert reference_of(models[4], models) == models[0]
    assert reference_of(models[2], models) == models[0]
    assert reference_of(models[0], models) is None
    assert [label(model, models) for model in models] == [
        "gradprom, Adam, one state", "gradprom, SGD", "gradprom, Adam, two states",
        "joint, SGD", "plain, Adam, one state",
    ]  # fmt: skip


def test_federation_pooled_and_local_stand_in_one_table() -> None:
    rows = []
    for table, setting, psnr_db in (
        ("federated", "federated", 26.0), ("federated-pooled", "pooled", 27.0), ("federated-local", "local", 25.0)
    ):  # fmt: skip
        rows += both("gradprom", 0, psnr_db, 20.0, weight=1.0, table=table, setting=setting)
    (block,) = blocks_of(sheet_of(rows, ["federated", "federated-pooled", "federated-local"]), "federated")
    assert [line.label for line in block.lines] == ["gradprom, federated", "gradprom, pooled", "gradprom, local"]
    pooled = score(block, "gradprom, pooled", "PSNR, dB ↑")
    assert pooled is not None
    assert pooled.difference is not None
    assert pooled.difference.mean == -1.0


def test_harm_is_measured_against_the_untouched_clean_image() -> None:
    ct = {"table": "todnet", "data": "totalseg", "test_data": "totalseg", "degradation": "low_dose", "sigma": None}
    rows = [
        row("todnet", 0, 30.0, weight=1.0, **ct, dice_vnet=0.8, no_harm_dice_vnet=0.885),
        row("todnet", 0, 25.0, **ct, setting="degraded", dice_vnet=0.6),
        row("todnet", 0, 25.0, **ct, setting="clean", dice_vnet=0.9),
    ]
    quality, dice, harm = blocks_of(sheet_of(rows, ["todnet"]), "todnet")
    assert quality.title == "image quality"
    assert [(line.label, line.scores[0].mean if line.scores[0] else None) for line in dice.lines] == [
        ("degraded images", 0.6), ("clean images", 0.9), ("todnet", 0.8),
    ]  # fmt: skip
    of_todnet = harm.lines[-1].scores[0]
    assert of_todnet is not None
    assert of_todnet.difference is not None
    assert of_todnet.difference.mean == pytest.approx(-0.015)
    assert harm.lines[0].label == "clean images"


def test_own_recognisers_of_different_models_make_no_row_of_states(lambda_rows: list[dict[str, Any]]) -> None:
    rows = [each | {"table": "auxiliaries", "dice": 0.5} for each in lambda_rows]
    (block,) = blocks_of(sheet_of(rows, ["auxiliaries"]), "auxiliaries")
    assert score(block, "degraded images", "Dice ↑") is None
    assert score(block, "plain", "Dice ↑") is not None


def test_every_metric_of_a_table_has_its_words() -> None:
    assert {metric for groups in _GROUPS.values() for _, metrics in groups for metric in metrics} <= SHOWN.keys()


def test_what_learns_nothing_says_so() -> None:
    models = [Model("todnet", adversarial_weight=0.01), Model("nlm")]
    assert [label(each, models) for each in models] == ["todnet", "non-local means, learns nothing"]


def test_adversarial_weights_are_models_of_their_own_each_against_its_like() -> None:
    ct = {"table": "todnet", "data": "totalseg", "test_data": "totalseg", "degradation": "low_dose"}
    rows = [
        row("todnet", 0, 27.0, **ct),  # a kept cell of earlier code
        row("todnet", 0, 30.0, **ct, adversarial_weight=0.01),
        row("todnet", 0, 28.0, **ct, adversarial_weight=1.0),
        row("mse-wgan", 0, 29.0, **ct, adversarial_weight=1.0),
    ]
    models = ordered(sheet_of(rows, ["todnet"]).models)
    assert [label(each, models) for each in models] == [
        "todnet, adversarial weight 0.01",
        "todnet, adversarial weight 1",
        "todnet, adversarial weight not recorded",
        "mse-wgan",
    ]
    assert reference_of(models[3], models, "todnet") == models[1]
    assert reference_of(models[1], models, "todnet") == models[0]


def test_a_model_whose_lambda_is_not_chosen_yet_has_no_figure_at_its_best() -> None:
    labels = {"table": "rivals-mni"}
    rows = both("gradprom", 0, 20.0, 20.0, weight=0.1, **labels) + both("gradprom", 1, 28.0, 28.0, weight=1.0, **labels)
    rows += both("plain", 0, 20.0, 20.0, **labels)
    (block,) = blocks_of(sheet_of(rows, ["rivals-mni"]), "rivals-mni")
    assert [line.label for line in block.lines] == ["plain"]
