"""Claims of the recognition study on rows done by hand; and its page in Markdown, which says what report.html says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from server.recognition.promises import MARKS, PROMISES
from server.report import write_report
from simulation.results import main
from simulation.study.recognition import claims_of

Rows = list[dict[str, Any]]


def rows_of(method: str, table: str, dice: tuple[float, ...], accuracy: tuple[float, ...] = (), **labels: Any) -> Rows:
    """One test row per seed 0, 1, ..."""
    added = method.partition("+")[2]
    row = {
        "method": method, "table": table, "data": "mni", "degradation": "none", "split": "test", "setting": "pooled",
        "site": "all", "test_site": "all", "domain": "in", "n": 10, "recogniser": "multimix", "mask_ssl": "none",
        "labels": "10 masks, 10 % diagnoses", "masks": 10, "diagnoses": 0.1, "selfreg": added or "none",
    }  # fmt: skip
    rows = []
    for seed in range(max(len(dice), len(accuracy))):
        figures = {"dice": dice[seed]} if dice else {}
        figures |= {"accuracy": accuracy[seed]} if accuracy else {}
        rows.append({**row, "seed": seed, "cell": f"{method} {sorted(labels.items())} {seed}", **labels, **figures})
    return rows


def of(claims: list[dict[str, Any]], promise: str) -> list[dict[str, Any]]:
    return [claim for claim in claims if claim["promise"] == promise]


def few(*multimix: float) -> Rows:
    unet = (0.50, 0.60, 0.55)[: len(multimix)]
    return rows_of("unet", "few", unet) + rows_of("multimix", "few", multimix, mask_ssl="prior")


def test_few_labels_hold_only_where_the_lower_end_is_above_0_too() -> None:
    (clear,) = of(claims_of(few(0.60, 0.72, 0.64)), "few-dice")
    assert clear["holds"]
    assert clear["value"] == pytest.approx(0.31 / 3)
    expected = stats.ttest_rel((0.60, 0.72, 0.64), (0.50, 0.60, 0.55)).confidence_interval(0.95)
    assert (clear["low"], clear["high"]) == pytest.approx((expected.low, expected.high))
    assert "lower end above 0" in clear["reason"]
    (open_one,) = of(claims_of(few(0.60, 0.62, 0.54)), "few-dice")
    assert open_one["value"] > 0
    assert open_one["low"] < 0
    assert not open_one["holds"]
    assert "holds 0: no difference shown" in open_one["reason"]
    (worse,) = of(claims_of(few(0.40, 0.48, 0.46)), "few-dice")
    assert not worse["holds"]
    assert "wholly below 0" in worse["reason"]


def test_one_seed_makes_no_interval() -> None:
    (claim,) = of(claims_of(few(0.60)), "few-dice")
    assert claim["holds"]
    assert claim["reason"] == "one seed, no interval"
    assert "low" not in claim


def test_the_papers_marks_are_margins_over_its_own_baselines() -> None:
    assert pytest.approx({"dice": 0.320, "accuracy": 0.068}) == MARKS
    rows = few(0.60, 0.72, 0.64) + rows_of("enc", "few-pneumonia", (), (0.6, 0.7), data="pneumonia")
    rows += rows_of("multimix", "few-pneumonia", (), (0.7, 0.8), data="pneumonia")
    claims = claims_of(rows)
    (dice,), (accuracy,) = of(claims, "mark-dice"), of(claims, "mark-accuracy")
    assert (dice["holds"], accuracy["holds"]) == (False, True)
    assert accuracy["value"] == pytest.approx(0.1)
    assert accuracy["table"] == "few-pneumonia"


def test_selfreg_is_claimed_once_per_network_in_dice_or_else_in_accuracy() -> None:
    rows = [
        *rows_of("unet", "selfreg", (0.5, 0.6), (0.5, 0.5)),
        *rows_of("unet+selfreg", "selfreg", (0.52, 0.6201), (0.4, 0.4)),
        *rows_of("unet+scr", "selfreg", (0.9, 0.9)),
        *rows_of("enc", "selfreg", (), (0.5, 0.6)),
        *rows_of("enc+selfreg", "selfreg", (), (0.52, 0.5)),
    ]
    unet, enc = of(claims_of(rows), "selfreg")
    assert (unet["holds"], enc["holds"]) == (True, False)
    assert unet["value"] == pytest.approx(0.02005)
    assert "Dice of U-Net with SelfReg" in unet["claim"]
    assert "accuracy of Enc with SelfReg" in enc["claim"]
    assert "holds 0: no difference shown" in enc["reason"]


def test_the_prior_is_claimed_against_none_and_other_forms_are_not() -> None:
    rows = [
        *rows_of("multimix", "mask-ssl", (0.5, 0.5)),
        *rows_of("multimix", "mask-ssl", (0.51, 0.53), mask_ssl="prior"),
        *rows_of("multimix", "mask-ssl", (0.9, 0.9), mask_ssl="pairwise"),
    ]
    (prior,) = of(claims_of(rows), "mask-ssl")
    assert (prior["value"], prior["holds"]) == (pytest.approx(0.02), True)


@pytest.mark.parametrize(("other", "words"), [("none", "no divergence"), ("prior", "each site's own prior")])
def test_the_federated_prior_is_judged_where_no_masks_were(other: str, words: str) -> None:
    typed = ["data.labels={north:{masks:9},hill:{masks:0}}"]
    rows, cells = [], []
    for mask_ssl, at_hill in ((other, 0.4), ("federated", 0.5)):
        labels = {"mask_ssl": mask_ssl, "setting": "federated", "cell": mask_ssl}
        rows += rows_of("multimix", "thirds", (0.6,), **labels)
        rows += rows_of("multimix", "thirds", (at_hill,), test_site="hill", **labels)
        cells.append({"key": mask_ssl, "overrides": typed, "rounds": []})
    (claim,) = of(claims_of(rows, cells), "federated-prior")
    assert (claim["value"], claim["table"]) == (pytest.approx(0.1), "thirds")
    assert f"{words}, on the tests of hill, without masks in training" in claim["claim"]


def test_methods_with_selfreg_alone_are_compared_with_those_of_the_table_without_it() -> None:
    rows = [*rows_of("enc", "few", (), (0.5, 0.6)), *rows_of("umtl", "few", (0.5, 0.5)),
            *rows_of("enc+selfreg", "ablation", (), (0.6, 0.701))]  # fmt: skip
    (claim,) = of(claims_of(rows), "selfreg")
    assert (claim["table"], claim["holds"]) == ("ablation", True)
    assert claim["value"] == pytest.approx(0.1005)


def thirds(federated: float, pooled: float) -> tuple[Rows, list[dict[str, Any]]]:
    typed = ["data.labels={north:{masks:9,diagnoses:0},harbour:{masks:0,diagnoses:0.5},hill:{masks:9,diagnoses:0.5}}"]
    rows = rows_of("multimix", "thirds", (federated,) * 2, (federated,) * 2, setting="federated")
    rows += rows_of("multimix", "thirds-pooled", (pooled,) * 2, (pooled,) * 2)
    for site, score in (("north", 0.5), ("harbour", 0.55), ("hill", 0.6)):
        labels = {"setting": "local", "site": site, "cell": "local"}
        rows += rows_of("multimix", "thirds-local", (score,) * 2, (score,) * 2, **labels)
    return rows, [{"key": "local", "overrides": typed, "rounds": []}]


def test_thirds_are_judged_by_what_a_site_could_learn_and_against_pooled() -> None:
    claims = claims_of(*thirds(0.59, 0.60))
    local = {(re.findall("model of (.*) alone", each["claim"])[0], each["claim"].split(": ")[1].split()[0]): each
             for each in of(claims, "thirds-local")}  # fmt: skip
    assert {key: each["holds"] for key, each in local.items()} == {
        ("north", "Dice"): True, ("hill", "Dice"): False, ("harbour", "accuracy"): True, ("hill", "accuracy"): False,
    }  # fmt: skip
    assert [each["holds"] for each in of(claims, "thirds-pooled")] == [True, True]
    assert [each["holds"] for each in of(claims_of(*thirds(0.57, 0.60)), "thirds-pooled")] == [False, False]


def unseen(federated: float, local: float) -> Rows:
    """Figures on the hospital that nobody trained on; at home everybody has 0.8."""
    place = {"unseen": "hill"}
    away = place | {"domain": "cross", "test_site": "hill"}
    fed, site = {"setting": "federated"}, {"setting": "local", "site": "north", "cell": "l"}
    return [
        *rows_of("multimix", "unseen", (0.8, 0.8), (0.8, 0.8), **fed, **place),
        *rows_of("multimix", "unseen", (federated,) * 2, (federated,) * 2, **fed, **away),
        *rows_of("multimix", "unseen-local", (0.8, 0.8), (0.8, 0.8), **site, **place, test_site="north"),
        *rows_of("multimix", "unseen-local", (local,) * 2, (local,) * 2, **site, **away),
    ]


@pytest.mark.parametrize(("federated", "local", "holds"), [(0.75, 0.6, True), (0.69, 0.6, False), (0.8, 0.85, False)])
def test_an_unseen_hospital_costs_the_federation_at_most_half(federated: float, local: float, holds: bool) -> None:
    claims = of(claims_of(unseen(federated, local)), "unseen")
    assert [claim["holds"] for claim in claims] == [holds, holds]
    assert claims[0]["value"] == pytest.approx((0.8 - federated) - 0.5 * (0.8 - local))
    assert claims[0]["at_most"]
    assert ("there is nothing to halve" in claims[0]["reason"]) == (local > 0.8)


def test_the_whole_system_is_compared_inside_the_same_objective() -> None:
    inside = {"objective": "gradprom", "degradation": "gaussian", "sigma": 0.2}
    rows = [
        *rows_of("umtl", "whole", (0.5, 0.6), (0.5, 0.6), **inside, recogniser="unet"),
        *rows_of("umtl", "whole", (0.9, 0.9), (0.9, 0.9), **inside | {"objective": "plain"}),
        *rows_of("multimix+selfreg", "whole", (0.6, 0.7), (0.4, 0.6), **inside, mask_ssl="prior"),
    ]
    dice, accuracy = of(claims_of(rows), "whole")
    assert (dice["value"], dice["holds"]) == (pytest.approx(0.1), True)
    assert (accuracy["value"], accuracy["holds"]) == (pytest.approx(-0.05), False)


def test_no_rows_make_no_claims_and_every_claim_is_of_a_promise() -> None:
    assert claims_of([]) == []
    rows = [*few(0.6, 0.7, 0.6), *unseen(0.7, 0.6), *thirds(0.6, 0.6)[0]]
    claims = claims_of(rows)
    assert {claim["promise"] for claim in claims} <= set(PROMISES)
    assert all({"claim", "value", "target", "holds", "promise", "table", "reason"} <= set(claim) for claim in claims)


def test_markdown_says_the_pages_numbers(tmp_path: Path) -> None:
    rows = [*few(0.60, 0.72, 0.64), *unseen(0.75, 0.6), *thirds(0.59, 0.60)[0]]
    tables = ["few", "unseen", "unseen-local", "thirds", "thirds-pooled", "thirds-local", "whole"]
    cells = [
        {"key": row["cell"], "tables": [row["table"]], "setting": row["setting"], "seed": row["seed"], "seconds": 1.0,
         "overrides": [], "rounds": [{"pseudo_accept_rate": 0.25}]}
        for row in rows
    ]  # fmt: skip
    table = {"title": "T|<b>", "question": "Q?", "common": [], "planned": 1, "done": 1, "missing": []}
    study = {"kind": "recognition", "budget": "full", "planned": 99, "cells": cells}
    study["tables"] = [{**table, "name": name} for name in tables]
    record = {
        "experiment": "recognition", "seeds": [0, 1, 2], "config_digest": "d", "versions": {}, "wall_s": 1.0,
        "rows": rows, "claims": claims_of(rows, cells), "study": study,
    }  # fmt: skip
    (tmp_path / "record.json").write_text(json.dumps(record))
    page = write_report(tmp_path).read_text()
    out = tmp_path / "docs" / "results" / "recognition.md"
    assert main(["--title", "Recognition", "--out", str(out), str(tmp_path)]) == 0
    text = out.read_text()
    figures = re.compile(r"[+−]?\d\.\d{3}(?!\d)")
    shown = set(figures.findall(re.sub(r"<style>.*?</style>|<svg.*?</svg>|<pre>.*?</pre>", "", page, flags=re.S)))
    assert {"+0.103", "0.653", "−0.150"} <= shown
    assert set(figures.findall(text)) == shown
    assert text.count("not examined") == page.count("not examined: cells not yet run") > 0
    assert "T|&lt;b&gt;" in text
    assert (tmp_path / "docs" / "images" / "recognition-few.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_of_cells_lie_beside_the_charts_and_never_in_their_place(tmp_path: Path) -> None:
    rows = few(0.6)
    dot = "data:image/png;base64,iVBORw0KGgo="
    names = ("few", "selfreg", "selfreg-attention")
    rounds = [{"feature_rank": 3.0}]
    rows = [{**row, "table": name} for row in rows for name in names]
    looks = [{"kind": kind, "caption": "c", "uri": dot} for kind in ("contours", "attention")]
    cells = [
        {"key": key, "tables": list(names), "setting": "pooled", "seed": 0, "seconds": 1.0, "overrides": [],
         "rounds": rounds, "pictures": looks}
        for key in dict.fromkeys(row["cell"] for row in rows)
    ]  # fmt: skip
    table = {"title": "T", "question": "Q?", "common": [], "planned": 2, "done": 2, "missing": []}
    study = {"kind": "recognition", "budget": "full", "planned": 6, "cells": cells}
    study["tables"] = [{**table, "name": name} for name in names]
    record = {
        "experiment": "recognition", "seeds": [0], "config_digest": "d", "versions": {}, "wall_s": 1.0, "rows": rows,
        "claims": [], "study": study,
    }  # fmt: skip
    (tmp_path / "report.json").write_text(json.dumps(record))
    out = tmp_path / "docs" / "results" / "recognition.md"
    assert main(["--out", str(out), str(tmp_path)]) == 0
    images = tmp_path / "docs" / "images"
    links = re.findall(r"\(\.\./images/(.*?)\)", out.read_text())
    assert len(links) == len(set(links))
    assert {path.name for path in images.iterdir()} == set(links)
    assert {"recognition-few-look-contours.png", "recognition-selfreg-look-attention.png"} <= set(links)
    assert (images / "recognition-selfreg-attention.png").stat().st_size > 1000
