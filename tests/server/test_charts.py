"""Charts read the run's own numbers: an evaluation stands at the round whose weights it judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from server import charts
from server.findings import Run, read_findings
from server.report import write_report


def test_evaluation_stands_one_round_before_the_record_that_carries_it() -> None:
    record = {"round": 3, "training": {"a": {"loss": 0.5}}, "evaluation": {"a": {"psnr": {"count": 4, "total": 100.0}}}}
    assert charts._series([record], "training", "loss", "a") == ([3], [0.5])
    assert charts._series([record], "evaluation", "psnr", "a") == ([2], [25.0])
    assert charts._series([record], "evaluation", "psnr", "absent") == ([], [])


def test_what_was_not_measured_gives_no_chart() -> None:
    run = Run("plain", 0, ({"round": 1, "training": {"a": {"loss_enhance": 0.1}}, "evaluation": {}},))
    assert [chart.title for chart in charts.curves(run, ["a"])] == ["enhancement loss, training"]
    assert charts.spreads(run, None, ["a"]) == []
    assert charts.histogram({}, ["a"]) is None


def test_both_error_maps_of_a_strip_share_one_scale(simulated_run: Path) -> None:
    run = read_findings(simulated_run).runs[0]
    assert run.pictures is not None
    pictures = charts.load_pictures(run.pictures)
    strips = charts.strips(pictures, ["north"], ["organ", "lesion"])
    assert [strip.which for strip in strips] == ["median", "worst"]
    error = np.abs(pictures["example/north/median/degraded"] - pictures["example/north/median/clean"])
    assert strips[0].largest_error == float(np.quantile(error.astype(np.float64), 0.995))
    titles = [panel.title for panel in strips[0].panels]
    assert titles == ["clean", "degraded", "enhanced", "error before", "error after"]


def test_dice_stands_beside_the_contours_it_belongs_to(simulated_run: Path) -> None:
    run = read_findings(simulated_run).runs[0]
    assert run.pictures is not None
    strip = charts.strips(charts.load_pictures(run.pictures), ["coast"], ["organ", "lesion"])[0]
    degraded, enhanced = strip.panels[1], strip.panels[2]
    assert degraded.figures == ("PSNR 20.00 dB", "Dice 0.690")
    assert enhanced.figures == ("PSNR 26.40 dB", "Dice 0.840")
    assert [is_truth for _, _, is_truth in enhanced.contours] == [True, True, False, False]


def test_right_or_wrong_is_no_spread_over_images() -> None:
    """Accuracy is a share of patients: its box would span all from 0 to 1, or nothing."""
    quantiles = [0.0, 0.0, 0.5, 1.0, 1.0]
    scores = {
        f"enhanced.{metric}": {"count": 9, "total": 5.0, "quantiles": quantiles} for metric in ("accuracy", "dice")
    }
    run = Run("plain", 0, ({"round": 1, "training": {}, "evaluation": {"a": scores}},))
    assert [chart.title for chart in charts.spreads(run, None, ["a"])] == ["Dice per image"]


def test_a_recognition_loss_of_nought_is_explained_and_no_other_is() -> None:
    def losses(value: float) -> dict[str, float]:
        return {"loss_recognise": value, "loss_enhance": 0.0}

    records = [{"round": n, "training": {"a": losses(0.0), "b": losses(0.3 / n)}, "evaluation": {}} for n in (1, 2)]
    enhance, recognise = charts.curves(Run("plain", 0, tuple(records)), ["a", "b"])
    assert recognise.note.startswith("0 in every round at a: no training image there has a label")
    assert enhance.note == ""
    learning = [{**record, "training": {"b": record["training"]["b"]}} for record in records]
    assert [chart.note for chart in charts.curves(Run("plain", 0, tuple(learning)), ["a", "b"])] == ["", ""]


def test_a_distance_below_an_image_is_explained(simulated_run: Path) -> None:
    sentence = "HD95 is the distance within which 95 % of the predicted outline lies from the true one"
    assert sentence not in write_report(simulated_run).read_text()
    path = simulated_run / "pictures" / "gradprom-seed0.npz"
    pictures = {**charts.load_pictures(path), "example/north/median/hd95_mm_enhanced": np.float32(3.2)}
    np.savez_compressed(path, **pictures)
    assert sentence in write_report(simulated_run).read_text()
