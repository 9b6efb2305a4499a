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
from server.gate import _values, gate_charts, promotion_charts
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
        "cos(g, v), mean over steps",
        "|added| / |g|, mean over steps",
        "steps uphill to first order, share",
    ]
    assert ["warm-up" in chart.svg for chart in charts] == [True, True, True, False]


def test_records_without_the_newer_keys_have_the_charts_that_they_can() -> None:
    charts = gate_charts(run_of(trained(gate_open_rate=0.5, mean_cosine=0.1)), ["a"])
    assert len(charts) == 2


def test_nobody_looked_at_the_task_gradient_nothing_to_show() -> None:
    assert gate_charts(run_of(WARM, WARM), ["a"]) == []
    assert gate_charts(Run("plain", 0, ()), ["a"]) == []


def test_gate_of_the_coordinator_has_charts_of_its_own() -> None:
    promotion = {"promotion": {"open": 1.0, "cosine": 0.2, "added_share": 0.03}}
    run = run_of(WARM, OPEN | promotion, OPEN | {"promotion": {"open": 0.0, "cosine": -0.2, "added_share": 0.02}})
    assert gate_charts(run, ["a"]) == gate_charts(run_of(WARM, OPEN, OPEN), ["a"])
    assert [chart.title for chart in promotion_charts(run)] == [
        "coordinator's gate open, share",
        "cos(A, M) of the round",
        "|A| / |M| of the round, before the gate",
    ]
    assert promotion_charts(run_of(WARM, OPEN)) == []


def test_gate_of_the_coordinator_that_nothing_came_to_is_a_gap() -> None:
    nothing = {"promotion": {"open": 0.0, "cosine": 0.0, "added_share": 0.0}}
    something = {"promotion": {"open": 1.0, "cosine": 0.5, "added_share": 0.1}}
    assert promotion_charts(run_of(WARM | nothing, OPEN)) == []
    assert all("warm-up" in chart.svg for chart in promotion_charts(run_of(WARM | nothing, OPEN | something)))


@pytest.mark.parametrize("odd", ["yes", None, [], {"open": "wide"}, {"open": None}])
def test_promotion_of_another_form_is_no_figure(odd: Any) -> None:
    assert promotion_charts(run_of(OPEN | {"promotion": odd})) == []


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
    text = write_report(simulated_run).read_text()
    assert "At the coordinator" in text
    assert text.index("cos(g, v)") < text.index("M is the rest of that mean change") < text.index("cos(A, M)")
    assert "&lt;change of weights, g&gt; ≥ 0, on the step's own batch" in text
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
