"""Which row is compared with which, what a drop is, and what only a cell's sheet tells."""

from __future__ import annotations

from typing import Any

import pytest

from server.recognition.rows import enriched, sheet_of, sites_without
from server.recognition.tables import blocks_of, details_of, rows_for
from server.recognition.unseen import drops
from server.study.tables import Block, Score

from .conftest import Rows, both, rows_of


def score(block: Block, line: str, heading: str) -> Score:
    found = next(each for each in block.lines if each.label == line)
    made = found.scores[block.columns.index(heading)]
    assert made is not None
    return made


def sheet(key: str, overrides: list[str], **record: float) -> dict[str, Any]:
    return {"key": key, "overrides": overrides, "rounds": [record] if record else []}


def test_a_method_stands_beside_the_supervised_network_for_the_task(few: Rows) -> None:
    masks, diagnoses = blocks_of(sheet_of(enriched(few, []), ["few"]), "few")
    dice, accuracy = score(masks, "MultiMix", "Dice ↑"), score(diagnoses, "MultiMix", "accuracy ↑")
    assert dice.mean == pytest.approx((0.60 + 0.72 + 0.64) / 3)
    assert dice.difference is not None
    assert dice.difference.mean == pytest.approx(0.31 / 3)
    assert dice.difference.verdict == "above"
    assert accuracy.difference is not None
    assert accuracy.difference.mean == pytest.approx(0.1 / 3)
    assert accuracy.difference.verdict == "open"
    assert [line.label for line in masks.lines if line.ours] == ["U-Net"]
    assert [line.label for line in diagnoses.lines if line.ours] == ["Enc"]


def test_methods_stand_in_the_papers_order_each_before_what_regularises_it() -> None:
    names = ("multimix+ifd", "umtl", "multimix", "unet", "umtl-ssl", "unet+scr", "unet+selfreg")
    rows = [row for name in names for row in rows_of(name, "few", {"dice": 0.5})]
    (block,) = blocks_of(sheet_of(enriched(rows, []), ["few"]), "few")
    assert [line.label for line in block.lines] == [
        "U-Net", "U-Net + SelfReg", "U-Net + SCR", "UMTL", "UMTL-SSL", "MultiMix", "MultiMix + IFD",
    ]  # fmt: skip


def test_selfreg_is_compared_with_the_same_network_only() -> None:
    rows = [
        *rows_of("unet", "selfreg", {"dice": 0.5}, {"dice": 0.6}),
        *rows_of("unet+selfreg", "selfreg", {"dice": 0.52}, {"dice": 0.61}),
        *rows_of("multimix", "selfreg", {"dice": 0.8}, {"dice": 0.8}),
        *rows_of("multimix+selfreg", "selfreg", {"dice": 0.7}, {"dice": 0.7}),
    ]
    (block,) = blocks_of(sheet_of(enriched(rows, []), ["selfreg"]), "selfreg")
    unet, multimix = (score(block, f"{name} + SelfReg", "Dice ↑").difference for name in ("U-Net", "MultiMix"))
    assert unet is not None
    assert multimix is not None
    assert (unet.mean, multimix.mean) == pytest.approx((0.015, -0.1))


def test_one_seed_makes_no_interval(few: Rows) -> None:
    one = [row for row in few if row["seed"] == 0]
    masks, _ = blocks_of(sheet_of(enriched(one, []), ["few"]), "few")
    difference = score(masks, "MultiMix", "Dice ↑").difference
    assert difference is not None
    assert (difference.low, difference.high, difference.verdict) == (None, None, "one seed")


def test_a_ladder_has_its_label_settings_across_fewest_first() -> None:
    rows = []
    for masks, dice in ((None, 0.9), (50, 0.8), (5, 0.6)):
        words = f"{masks or 'all'} masks, 10 % diagnoses"
        rows += rows_of("unet", "ladder-masks", {"dice": dice}, labels=words, masks=masks)
    (block,) = blocks_of(sheet_of(enriched(rows, []), ["ladder-masks"]), "ladder-masks")
    assert block.title == "Dice ↑"
    assert [words.split(",")[0] for words in block.columns] == ["5 masks", "50 masks", "all masks"]
    assert [each.mean for each in block.lines[0].scores if each] == [0.6, 0.8, 0.9]


def test_cells_that_no_label_tells_apart_are_named_by_what_was_typed() -> None:
    rows = rows_of("multimix", "few", {"dice": 0.5}, seed=0, cell="a") + rows_of(
        "multimix", "few", {"dice": 0.6}, cell="b"
    )
    cells = [
        sheet("a", ["learn=multimix", "learn.threshold=0.5"]),
        sheet("b", ["learn=multimix", "learn.threshold=0.9"]),
    ]
    (block,) = blocks_of(sheet_of(enriched(rows, cells), ["few"]), "few")
    assert {line.label: line.scores[0].mean for line in block.lines if line.scores[0]} == {
        "MultiMix, learn.threshold=0.5": 0.5,
        "MultiMix, learn.threshold=0.9": 0.6,
    }


UNSEEN = {"unseen": "hill", "labels": "all masks, all diagnoses", "masks": None, "diagnoses": None}


def unseen_rows() -> Rows:
    """Federated drops by 0.05; north's model by 0.2 and harbour's by 0.1 from their own hospital's tests."""
    away = UNSEEN | {"domain": "cross"}
    rows = [
        *rows_of("multimix", "unseen", {"dice": 0.80}, {"dice": 0.90}, setting="federated", **UNSEEN),
        *rows_of("multimix", "unseen", {"dice": 0.75}, {"dice": 0.85}, setting="federated", **away),
    ]
    for site, own, other, cross in (("north", 0.8, 0.7, 0.6), ("harbour", 0.7, 0.5, 0.6)):
        place = UNSEEN | {"setting": "local", "site": site, "cell": "local"}
        for there in ("north", "harbour"):
            dice = {"dice": own if there == site else other}
            rows += rows_of("multimix", "unseen-local", dice, dice, **place, test_site=there)
        crossed = place | {"domain": "cross", "test_site": "hill"}
        rows += rows_of("multimix", "unseen-local", {"dice": cross}, {"dice": cross}, **crossed)
    return rows


def test_a_local_models_drop_is_from_its_own_hospital_and_their_mean_over_models() -> None:
    found = sheet_of(enriched(unseen_rows(), []), ["unseen", "unseen-local"])
    by_model = {(each.model.setting, each.model.site): each.by_seed for each in drops(found, "dice")}
    assert by_model["federated", "all"] == pytest.approx({0: 0.05, 1: 0.05})
    assert by_model["local", "north"] == pytest.approx({0: 0.2, 1: 0.2})
    assert by_model["local", "all"] == pytest.approx({0: 0.15, 1: 0.15})
    (block,) = blocks_of(found, "unseen")
    drop = score(block, "MultiMix, federated", "drop ↓")
    assert drop.difference is not None
    assert drop.difference.mean == pytest.approx(-0.10)


def test_what_grows_with_distance_is_a_drop_too() -> None:
    rows = [row | {"hd95_mm": 10 * (1 - row["dice"])} for row in unseen_rows()]
    blocks = blocks_of(sheet_of(enriched(rows, []), ["unseen", "unseen-local"]), "unseen")
    assert score(blocks[1], "MultiMix, federated", "drop ↓").mean == pytest.approx(0.5)


def test_a_local_models_pooled_test_is_its_hospitals_tests_weighted_by_images() -> None:
    rows = [
        *rows_of(
            "multimix", "thirds-local", *both((0.5, 0.4)), setting="local", site="a", test_site="a", n=30, cell="x"
        ),
        *rows_of(
            "multimix", "thirds-local", *both((0.9, 0.8)), setting="local", site="a", test_site="b", n=10, cell="x"
        ),
    ]
    pooled = [row for row in enriched(rows, []) if row["test_site"] == "all"]
    assert [(row["dice"], row["accuracy"], row["n"]) for row in pooled] == [pytest.approx((0.6, 0.5, 40))]
    whole = rows_of("multimix", "thirds-local", *both((0.55, 0.5)), setting="local", site="a", cell="x")
    assert [row["dice"] for row in enriched(rows + whole, []) if row["test_site"] == "all"] == [0.55]


@pytest.mark.parametrize(
    ("typed", "masks", "diagnoses"),
    [
        (
            "data.labels={north:{masks:4,diagnoses:0},harbour:{masks:0,diagnoses:0.3},hill:{masks:3}}",
            "harbour",
            "north",
        ),
        ("data.labels={north: {masks: 10, diagnoses: 0.0}, harbour: {masks: 0}}", "harbour", "north"),
        ("data.labels.harbour.masks=0 data.labels.north.diagnoses=0.0 data.labels.hill.masks=05", "harbour", "north"),
        ("+data.labels.harbour={masks: 0, diagnoses: 0.5}", "harbour", ""),
        ("data.labels={north:{masks:4,diagnoses:0.1}}", "", ""),
    ],
)
def test_sites_without_labels_are_read_off_what_was_typed(typed: str, masks: str, diagnoses: str) -> None:
    cells = [sheet("a", ["data=mni", typed])]
    assert sites_without("masks", cells) == {"a": frozenset({masks} - {""})}
    assert sites_without("diagnoses", cells) == {"a": frozenset({diagnoses} - {""})}


def test_a_part_of_the_network_that_a_site_never_trained_is_not_judged() -> None:
    typed = ["data.labels={north:{masks:4,diagnoses:0},harbour:{masks:0,diagnoses:0.3}}"]
    rows = rows_of("multimix", "thirds", *both((0.6, 0.6)), setting="federated", cell="f")
    for site in ("north", "harbour"):
        rows += rows_of("multimix", "thirds-local", *both((0.3, 0.3)), setting="local", site=site, cell="l")
    cells = [sheet("f", typed), sheet("l", typed)]
    tables = ["thirds", "thirds-local"]
    masks, diagnoses = blocks_of(sheet_of(enriched(rows, cells), tables), "thirds", cells)
    assert [line.label for line in masks.lines] == ["MultiMix, federated", "MultiMix, local, north's model"]
    assert [line.label for line in diagnoses.lines] == ["MultiMix, federated", "MultiMix, local, harbour's model"]


def test_pseudo_labels_are_counted_over_training_and_a_rate_of_nothing_is_none(few: Rows) -> None:
    rounds = [
        {"pseudo_offered": 100.0, "pseudo_accepted.kind_a": 10.0, "pseudo_accepted.none": 40.0, "feature_rank": 3.0},
        {"pseudo_offered": 0.0, "pseudo_accepted.kind_a": 0.0, "pseudo_accepted.none": 0.0, "feature_rank": 2.0},
        {"feature_rank": None},
    ]
    cells = [{"key": row["cell"], "overrides": [], "rounds": rounds} for row in few if row["method"] == "multimix"]
    block = details_of(sheet_of(enriched(few, cells), ["few"]), "few")[-1]
    assert block.title == "Pseudo-labels in training"
    (line,) = block.lines
    assert {heading: each.mean for heading, each in zip(block.columns, line.scores, strict=True) if each} == {
        "offered": 100.0, "accepted, share": 0.5, "accepted of kind a": 10.0, "accepted of none": 40.0,
    }  # fmt: skip
    assert all(row["feature_rank"] == 2.0 for row in enriched(few, cells) if row["method"] == "multimix")


def test_weights_of_selfreg_are_named_and_stand_beside_the_published_ones_and_none() -> None:
    rows = [
        *rows_of("unet", "selfreg", {"dice": 0.5}),
        *rows_of("unet+scr", "selfreg", {"dice": 0.51}),
        *rows_of("unet+scr", "selfreg-weights", {"dice": 0.53}, cell="w"),
    ]
    cells = [sheet("w", ["learn=unet", "selfreg.consistency_weight=0.15"])]
    full = rows_for(enriched(rows, cells), ["selfreg-weights"])
    (block,) = blocks_of(sheet_of(full, ["selfreg-weights"]), "selfreg-weights")
    assert [line.label for line in block.lines] == ["U-Net", "U-Net + SCR", "U-Net + SCR, consistency_weight=0.15"]
    difference = score(block, "U-Net + SCR, consistency_weight=0.15", "Dice ↑").difference
    assert difference is not None
    assert difference.mean == pytest.approx(0.03)
