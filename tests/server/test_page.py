"""The words of the page: counts, verdicts and figures that a reader would repeat must be right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.findings import read_findings
from server.page import lead, learnt, page, sites_of, verdict
from server.report import summary_table, write_report
from server.wording import bytes_shown, duration_shown, shown


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ([], ""),
        ([True], "The claim holds."),
        ([True] * 3, "All 3 claims hold."),
        ([True, False], "1 of 2 claims hold."),
    ],
)
def test_verdict_counts_the_claims_that_hold(held: list[bool], words: str) -> None:
    assert verdict([{"holds": each} for each in held]) == words


def test_lead_tells_sites_rounds_images_and_gain(simulated_run: Path) -> None:
    findings = read_findings(simulated_run)
    words = lead(findings, sites_of(findings))
    assert words.startswith("Three sites trained an enhancer and a recogniser together in eight rounds")
    assert "On 150 test images" in words
    assert "Dice 0.835 (degraded 0.680) and accuracy 0.855 (degraded 0.700)" in words


def test_site_names_keep_the_order_of_the_data_sheet(simulated_run: Path) -> None:
    assert sites_of(read_findings(simulated_run)) == ["north", "coast", "valley"]


def test_data_without_masks_is_shown_without_dice(simulated_run: Path) -> None:
    record = json.loads((simulated_run / "record.json").read_text())
    for row in record["rows"]:
        row.pop("dice", None)
    (simulated_run / "record.json").write_text(json.dumps(record))
    shown_page = page(read_findings(simulated_run))
    assert "dice" not in shown_page["quality"]
    assert {matrix.metric for matrix in shown_page["matrices"]} == {"psnr_db", "accuracy"}


def test_a_recogniser_alone_is_told_without_enhancer_and_degraded_images(simulated_run: Path) -> None:
    record = json.loads((simulated_run / "record.json").read_text())
    record["rows"] = [row for row in record["rows"] if row["setting"] not in ("degraded", "clean")]
    for row in record["rows"]:
        for key in ("psnr_db", "ssim", "rmse"):
            row.pop(key, None)
        row |= {"f1": 0.8, "jaccard": 0.7, "hd95_mm": 3.0, "missed": 0.1}
    record["config"]["campaign"]["enhance"] = {"kind": "none"}
    (simulated_run / "record.json").write_text(json.dumps(record))
    findings = read_findings(simulated_run)
    words = lead(findings, sites_of(findings))
    assert words.startswith("Three sites trained a recogniser together in eight rounds")
    assert "On 150 test images of patients that no training had seen the recogniser reaches Dice 0.835 and " in words
    shown_page = page(findings)
    assert shown_page["quality"] == ["dice", "jaccard", "hd95_mm", "missed", "accuracy", "f1"]
    assert [(tile["name"], tile["gain"], tile["mark"]) for tile in shown_page["tiles"]] == [
        ("Dice", "", ""), ("accuracy", "", ""), ("F1", "", "")
    ]  # fmt: skip
    assert not [limit for limit in shown_page["limits"] if "PSNR" in limit or "enhancer" in limit]


@pytest.mark.parametrize(
    ("campaign", "words"),
    [
        ({}, ""),
        ({"learn": {"kind": "supervised"}, "selfreg": {"consistency_weight": 0.0, "distillation_weight": 0}}, ""),
        ({"learn": {"kind": "multimix"}}, "multimix"),
        ({"learn": {"kind": "multimix"}, "selfreg": {"consistency_weight": 0.015}}, "multimix+scr"),
        ({"learn": {"kind": "unet"}, "selfreg": {"distillation_weight": 0.015}}, "unet+ifd"),
        ({"selfreg": {"consistency_weight": 0.015, "distillation_weight": 0.015}}, "supervised+selfreg"),
        ({"learn": "all", "selfreg": [1]}, ""),
        ({"learn": {"kind": "enc"}, "selfreg": {"consistency_weight": "much"}}, "enc"),
    ],
)
def test_page_says_how_the_recogniser_learns(deployed_run: Path, campaign: dict[str, Any], words: str) -> None:
    findings = read_findings(deployed_run)
    assert learnt(replace(findings, config={**findings.config, **campaign})) == words
    assert learnt(replace(findings, config={"campaign": {**findings.config, **campaign}})) == words


def test_deployed_page_names_no_comparator(deployed_run: Path) -> None:
    shown_page = page(read_findings(deployed_run))
    assert {setting for (_, setting), _ in shown_page["summary"]} == {"clean", "degraded", "federated"}
    assert shown_page["parts"][0]["spreads"], "the sites' quantiles are shown"
    assert not shown_page["parts"][0]["strips"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (shown("psnr_db", 26.304, unit=True), "26.30 dB"),
        (shown("dice", 0.8349), "0.835"),
        (bytes_shown(999), "999 B"),
        (bytes_shown(4_200_000), "4.2 MB"),
        (duration_shown(59.94), "59.9 s"),
        (duration_shown(185), "3 min 05 s"),
        (duration_shown(3 * 3600 + 61), "3 h 01 min"),
    ],
)
def test_figures_read_as_people_write_them(text: str, expected: str) -> None:
    assert text == expected


def test_legend_of_the_spreads_names_the_settings_that_there_are(simulated_run: Path) -> None:
    """A recogniser alone has no degraded images."""
    legend = "</span>degraded</li>"
    assert legend in write_report(simulated_run).read_text()
    record = json.loads((simulated_run / "record.json").read_text())
    record["rows"] = [row for row in record["rows"] if row["setting"] != "degraded"]
    (simulated_run / "record.json").write_text(json.dumps(record))
    assert legend not in write_report(simulated_run).read_text()


def test_accuracy_comes_with_the_patients_that_it_is_a_share_of(simulated_run: Path) -> None:
    assert "(n patients)" not in write_report(simulated_run).read_text(), "where nobody counted them"
    record = json.loads((simulated_run / "record.json").read_text())
    for row in record["rows"]:
        row["patients"] = 36 if row["test_site"] == "all" else 12
    (simulated_run / "record.json").write_text(json.dumps(record))
    text = write_report(simulated_run).read_text()
    findings = read_findings(simulated_run)
    assert lead(findings, sites_of(findings)).endswith("accuracy 0.855 (degraded 0.700) of 36 patients.")
    assert [tile["name"] for tile in page(findings)["tiles"]] == ["PSNR", "Dice", "accuracy of 36 patients"]
    assert "<th>accuracy (n patients)</th>" in text
    assert "<td>0.855 (36)</td>" in text
    assert "<th>north<br>n 12</th><th>coast<br>n 12</th><th>valley<br>n 12</th><th>all<br>n 36</th>" in text
    assert "<th>north</th><th>coast</th><th>valley</th><th>all</th>" in text, "Dice and PSNR are of images"
    table = summary_table(findings.report)
    assert table.title == "mni: all sites' tests; accuracy of 36 patients"


@pytest.mark.parametrize(
    ("gain", "shown_as", "mark"),
    [(0.0, "±0.000", "same"), (0.0004, "±0.000", "same"), (-0.0004, "±0.000", "same"), (0.02, "+0.020", ""),
     (-0.02, "-0.020", "worse")],
)  # fmt: skip
def test_a_gain_of_nought_is_neither_good_nor_bad(simulated_run: Path, gain: float, shown_as: str, mark: str) -> None:
    record = json.loads((simulated_run / "record.json").read_text())
    for row in record["rows"]:
        row["dice"] = 0.7 + gain * (row["setting"] == "federated")
    (simulated_run / "record.json").write_text(json.dumps(record))
    tile = page(read_findings(simulated_run))["tiles"][1]
    assert (tile["name"], tile["gain"], tile["mark"]) == ("Dice", shown_as, mark)
    text = write_report(simulated_run).read_text()
    assert (f'<em class="{mark}">{shown_as}</em>' if mark else f"<em>{shown_as}</em>") in text
