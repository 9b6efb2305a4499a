"""What stands behind each diagnosis and what the blocks see: from a run's own arrays, absent for older runs."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from server.charts import load_pictures, strips
from server.looks import diagnoses_shown, features_shown
from server.report import write_report

SIDE = 64


def behind(codes: dict[int, int], *, bridge: bool = True) -> dict[str, np.ndarray]:
    """Code -> the true one (-1 unknown), all read with 0.75."""
    arrays: dict[str, np.ndarray] = {}
    for code, truth in codes.items():
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[10:20, 10:20] = 1
        arrays |= {
            f"behind/{code}/image": np.zeros((SIDE, SIDE), np.float32),
            f"behind/{code}/saliency": np.arange(64, dtype=np.uint8).reshape(8, 8) * 4,
            f"behind/{code}/site": np.array("north"),
            f"behind/{code}/probability": np.float32(0.75),
            f"behind/{code}/bridge": np.array(bridge),
            f"behind/{code}/truth": mask,
        }
        if truth >= 0:
            arrays[f"behind/{code}/diagnosis"] = np.int16(truth)
    return arrays


def features() -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {
        "features/site": np.array("coast"),
        "features/image": np.zeros((SIDE, SIDE), np.float32),
        "features/compared": np.array(["shallow", "deep"]),
        "features/blocks": np.array(["encoder 1", "deepest", "decoder 1"]),
    }
    for when, cosine in (("before", -127), ("after", 0)):
        for name in ("shallow", "deep"):
            arrays[f"features/{when}/similarity/{name}"] = np.array([[127, cosine], [cosine, 127]], np.int8)
            arrays[f"features/{when}/redundancy/{name}"] = np.float32(abs(cosine) / 127)
        for name, side in (("encoder 1", 64), ("deepest", 8), ("decoder 1", 16)):
            arrays[f"features/{when}/attention/{name}"] = np.full((side, side), 255, np.uint8)
    arrays["features/after/attention/deepest"] = np.zeros((8, 8), np.uint8)
    return arrays


def of_run(run_dir: Path) -> dict[str, np.ndarray]:
    return dict(load_pictures(run_dir / "pictures" / "gradprom-seed0.npz"))


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")).astype(int)


def test_each_diagnosis_is_told_of_with_its_image_or_that_there_is_none() -> None:
    found = diagnoses_shown(behind({0: 2, 2: -1}), ["none", "lesion", "other"])
    assert found is not None
    assert found.bridge
    none, lesion, other = found.found
    assert none.words == ("north", "read as it with 0.75", "in truth other")
    assert (lesion.image, lesion.words) == ("", ())
    assert other.words == ("north", "read as it with 0.75")
    assert pixels(none.saliency).shape == (8, 8, 3), "as it entered the decoder"
    assert none.contour.startswith("M")
    assert diagnoses_shown({}, ["none", "lesion"]) is None
    assert diagnoses_shown(behind({7: 0}), ["none", "lesion"]) is None, "a code that the campaign does not have"


def test_cosine_of_one_is_red_of_minus_one_blue_and_of_none_grey() -> None:
    found = features_shown(features())
    assert found is not None
    assert found.similarity.columns == ("first encoder block, 2 channels", "deepest block, 2 channels")
    (_, before), (_, after) = found.similarity.rows
    red, blue = pixels(before[0].uri)[0]
    grey = pixels(after[0].uri)[0, 1]
    assert red[0] > red[2] + 100
    assert blue[2] > blue[0] + 100
    assert np.ptp(grey) < 10
    assert [square.words for square in (before[0], after[0])] == ["mean |cosine| 1.00", "mean |cosine| 0.00"]


def test_every_block_has_a_map_before_and_after_and_a_silent_one_says_so() -> None:
    found = features_shown(features())
    assert found is not None
    assert found.attention.columns == ("encoder 1", "deepest", "decoder 1")
    assert [when for when, _ in found.attention.rows] == ["before training", "after training"]
    assert [square.words for square in found.attention.rows[1][1]] == ["", "0", ""]
    assert found.gates is None
    assert features_shown({}) is None


def test_gates_are_shown_on_a_scale_from_nothing_to_all(simulated_run: Path) -> None:
    arrays = features() | {"features/gates": np.array(["gate 1"])}
    for when, level in (("before", 0), ("after", 255)):
        arrays[f"features/{when}/gates/gate 1"] = np.full((16, 16), level, np.uint8)
    found = features_shown(arrays)
    assert found is not None
    assert found.gates is not None
    (_, (before,)), (_, (after,)) = found.gates.rows
    assert pixels(after.uri)[0, 0].sum() > pixels(before.uri)[0, 0].sum() + 200
    np.savez(simulated_run / "pictures" / "gradprom-seed0.npz", **of_run(simulated_run), **arrays)
    assert "What the gates let pass" in write_report(simulated_run).read_text()


def test_report_shows_both_and_an_older_run_neither(simulated_run: Path) -> None:
    before = write_report(simulated_run).read_text()
    assert "Behind each diagnosis" not in before
    assert "What its blocks see" not in before
    record = simulated_run / "record.json"
    record.write_text(
        record.read_text().replace('"masks": ["organ"', '"diagnoses": ["none", "lesion"], "masks": ["organ"')
    )
    arrays = of_run(simulated_run) | behind({1: 1}) | features()
    np.savez(simulated_run / "pictures" / "gradprom-seed0.npz", **arrays)
    page = write_report(simulated_run).read_text()
    assert "Behind each diagnosis" in page
    assert "as it enters the decoder" in page
    assert "No test image is read as it." in page
    assert "What its blocks see, before and after training" in page
    assert page.count("data:image/png") - before.count("data:image/png") == 2 + 2 * (2 + 3)


def test_deployed_run_shows_neither_even_if_some_lie_in_its_folder(deployed_run: Path) -> None:
    (deployed_run / "pictures").mkdir()
    np.savez(deployed_run / "pictures" / "gradprom-seed5.npz", **behind({0: 0}), **features())
    page = write_report(deployed_run).read_text()
    assert "data:image" not in page


def example(states: tuple[str, ...]) -> dict[str, np.ndarray]:
    prefix = "example/north/worst/"
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 2:5] = 1
    arrays: dict[str, np.ndarray] = {f"{prefix}truth": mask, f"{prefix}diagnosis": np.int16(0)}
    arrays[f"{prefix}by"] = np.array("Dice")
    for state in states:
        arrays |= {f"{prefix}{state}": np.zeros((8, 8), np.float32), f"{prefix}{state}_mask": mask}
        arrays |= {f"{prefix}dice_{state}": np.float32(0.5), f"{prefix}hd95_mm_{state}": np.float32(3)}
        arrays |= {f"{prefix}said_{state}": np.int16(1), f"{prefix}probability_{state}": np.float32(0.75)}
        arrays[f"{prefix}true_probability_{state}"] = np.float32(0.25)
    return arrays


@pytest.mark.parametrize(
    ("states", "titles"),
    [
        (("clean",), ["image", "truth", "recognised"]),
        (("degraded", "clean"), ["clean", "degraded"]),
        (("degraded", "enhanced", "clean"), ["clean", "degraded", "enhanced", "error before", "error after"]),
    ],
    ids=["alone", "degraded", "enhanced"],
)
def test_strip_has_the_states_that_there_are_and_says_what_is_read_and_what_is_true(
    states: tuple[str, ...], titles: list[str]
) -> None:
    (strip,) = strips(example(states), ["north"], ["organ"], ["none", "lesion"])
    assert [panel.title for panel in strip.panels] == titles
    assert (strip.by, strip.predicted) == ("Dice", True)
    assert (strip.largest_error is None) == ("enhanced" not in states)
    words = {panel.title: panel.figures for panel in strip.panels}
    judged = "recognised" if states == ("clean",) else states[-2]
    assert words[judged] == ("Dice 0.500", "HD95 3.00 mm", "read as lesion, 0.75", "none given 0.25")
    assert words["truth" if states == ("clean",) else "clean"] == ("in truth none",)
    drawn = next(panel.contours for panel in strip.panels if panel.title == judged)
    assert [is_truth for _, _, is_truth in drawn] == [True, False]


def test_strip_without_outlines_of_one_kind_repeats_no_picture() -> None:
    whole = example(("clean",))
    cases = {
        ("truth",): {"image": ("in truth none",), "recognised": ("Dice 0.500", "HD95 3.00 mm")},
        ("clean_mask", "dice_clean", "hd95_mm_clean"): {"image": (), "truth": ("in truth none",)},
        ("truth", "clean_mask", "dice_clean", "hd95_mm_clean"): {"image": ("in truth none",)},
    }
    for missing, expected in cases.items():
        arrays = {key: value for key, value in whole.items() if not key.endswith(missing)}
        (strip,) = strips(arrays, ["north"], ["organ"], ["none", "lesion"])
        *others, last = strip.panels
        said = {**{panel.title: panel.figures for panel in others}, last.title: last.figures[:-2]}
        assert said == expected
        assert last.figures[-2:] == ("read as lesion, 0.75", "none given 0.25")
