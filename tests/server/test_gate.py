"""Where the gate opened: a round without a gate is a gap and never a nought, and old records still make a page."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from server import figures
from server.findings import Run, read_findings
from server.gate import _values, gate_charts, promoted
from server.report import write_report

HEADING = "Where the gate opened"


def run_of(*rounds: dict[str, Any]) -> Run:
    return Run("gradprom", 0, tuple({"round": number, **record} for number, record in enumerate(rounds, start=1)))


def trained(**site: float) -> dict[str, Any]:
    return {"training": {"a": {"loss_enhance": 0.1, **site}}}


WARM = trained(ascent_rate=0.1)
OPEN = trained(gate_open_rate=0.5, mean_cosine=0.1, added_share=0.05, ascent_rate=0.0)


def test_round_without_a_gate_is_a_gap_and_not_nought() -> None:
    values = _values([WARM, OPEN, {"training": {"b": {}}}], "a", "gate_open_rate")
    assert math.isnan(values[0])
    assert values[1] == 0.5
    assert math.isnan(values[2]), "a site that did not answer"


def test_every_quantity_that_was_measured_has_its_chart_and_the_warm_up_is_named() -> None:
    charts = gate_charts(run_of(WARM, OPEN, OPEN), ["a"])
    assert [chart.title for chart in charts] == [
        "gate open, share of steps",
        "cosine of the two gradients, mean",
        "what recognition added, relative to the rest",
        "steps that went up the main loss, share",
    ]
    assert ["warm-up" in chart.svg for chart in charts] == [True, True, True, False]


def test_records_without_the_newer_keys_have_the_charts_that_they_can() -> None:
    charts = gate_charts(run_of(trained(gate_open_rate=0.5, mean_cosine=0.1)), ["a"])
    assert len(charts) == 2


def test_nobody_looked_at_the_task_gradient_nothing_to_show() -> None:
    assert gate_charts(run_of(WARM, WARM), ["a"]) == []
    assert gate_charts(Run("plain", 0, ()), ["a"]) == []


def test_gate_of_the_coordinator_stands_beside_the_sites_gates() -> None:
    promotion = {"promotion": {"open": 1.0, "cosine": 0.2, "added_share": 0.03}}
    run = run_of(WARM, OPEN | promotion, OPEN | {"promotion": {"open": 0.0, "cosine": -0.2, "added_share": 0.02}})
    assert promoted(run)
    assert not promoted(run_of(WARM, OPEN))
    with_it, without = gate_charts(run, ["a"]), gate_charts(run_of(WARM, OPEN, OPEN), ["a"])
    dashed = [len(re.findall("stroke-dasharray", chart.svg)) for chart in with_it]
    assert [count > 0 for count in dashed] == [True, True, True, False]
    assert not any("stroke-dasharray" in chart.svg for chart in without)


def test_gate_of_the_coordinator_that_nothing_came_to_is_a_gap() -> None:
    nothing = {"promotion": {"open": 0.0, "cosine": 0.0, "added_share": 0.0}}
    gate = gate_charts(run_of(WARM | nothing, OPEN), ["a"])[0]
    assert "warm-up" in gate.svg
    assert "stroke-dasharray" not in gate.svg


@pytest.mark.parametrize("odd", ["yes", None, [], {"open": "wide"}, {"open": None}])
def test_promotion_of_another_form_is_no_figure(odd: Any) -> None:
    charts = gate_charts(run_of(OPEN | {"promotion": odd}), ["a"])
    assert not any("stroke-dasharray" in chart.svg for chart in charts)


def test_lines_are_told_apart_without_colour() -> None:
    assert len({marker for marker, _ in figures.SITE_MARKERS}) == len(figures.SITE_COLOURS)
    assert figures.site_marker(0) != figures.site_marker(1)
    assert figures.site_sign(8) == figures.site_sign(0)


def test_chart_keeps_all_rounds_on_its_axis_and_repeats_itself() -> None:
    line = figures.Line("#3b74e0", "o", [math.nan, math.nan, 0.5])
    axis = figures.Axis(low=0, high=1)
    first = figures.round_chart([1, 2, 3], [line], axis, label="gate")
    assert first == figures.round_chart([1, 2, 3], [line], axis, label="gate")
    for tick in ("1", "2", "3", "0.0", "1.0"):
        assert re.search(rf">{re.escape(tick)}</text>", first), tick


def test_page_tells_where_the_gate_opened_in_a_simulation_and_in_a_deployment(
    simulated_run: Path, tmp_path: Path
) -> None:
    assert HEADING in write_report(simulated_run).read_text()
    record = json.loads((simulated_run / "record.json").read_text())
    record["runs"][0]["rounds"] = [{**r, "promotion": {"open": 1, "cosine": 0.1}} for r in record["runs"][0]["rounds"]]
    (simulated_run / "record.json").write_text(json.dumps(record))
    assert "coordinator's own gate" in write_report(simulated_run).read_text()
    for each in record["runs"][0]["rounds"]:
        del each["promotion"]
        for site in each["training"].values():
            del site["gate_open_rate"], site["mean_cosine"]
    (simulated_run / "record.json").write_text(json.dumps(record))
    assert HEADING not in write_report(simulated_run).read_text(), "an objective that looks at no gradient has no gate"


def test_deployed_campaign_shows_its_gate(deployed_run: Path) -> None:
    run = read_findings(deployed_run).runs[0]
    assert len(gate_charts(run, ["north", "coast", "valley"])) == 2
    assert HEADING in write_report(deployed_run).read_text()
