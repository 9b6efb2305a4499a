"""The section "Where the recogniser looks": from a run's own arrays, absent for older runs, never in a deployed one."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from server.charts import load_pictures
from server.explanations import STATES, Explained, explained
from server.report import write_report

SIDE = 64
HEADING = "Where the recogniser looks"


def explanations(
    sites: Sequence[str], tasks: Sequence[str], *, outlined: bool = True, error: float = 0.25
) -> dict[str, np.ndarray]:
    """Saliency is a ramp; activation a bright corner. Shares inside: 0.1, 0.2 and 0.3 for the three states."""
    ramp = np.linspace(0, 255, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint8)
    corner = np.zeros((SIDE, SIDE), np.uint8)
    corner[:16, :16] = 255
    arrays: dict[str, np.ndarray] = {}
    for number, site in enumerate(sites):
        for which in ("median", "worst"):
            prefix = f"explain/{site}/{which}/"
            arrays |= {f"{prefix}error/{s}": np.full((SIDE, SIDE), error, np.float16) for s in STATES[:2]}
            for task in tasks:
                for place, state in enumerate(STATES, start=1):
                    arrays[f"{prefix}{task}/saliency/{state}"] = ramp
                    arrays[f"{prefix}{task}/activation/{state}"] = corner
                    if outlined:
                        arrays[f"{prefix}{task}/saliency_inside/{state}"] = np.float32(place / 10)
                        arrays[f"{prefix}{task}/activation_inside/{state}"] = np.float32(place / 10 + number)
            if outlined:
                arrays[f"{prefix}area"] = np.float32(0.125)
            if "diagnosis" in tasks:
                arrays |= {f"{prefix}asked": np.int16(1), f"{prefix}known": np.array(which == "median")}
    return arrays


def of_run(run_dir: Path) -> dict[str, np.ndarray]:
    return dict(load_pictures(run_dir / "pictures" / "gradprom-seed0.npz"))


def section(pictures: dict[str, np.ndarray], sites: Sequence[str]) -> Explained:
    found = explained(pictures, sites, ["none", "lesion"], page_id="look0")
    assert found is not None
    return found


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))


@pytest.mark.parametrize(
    ("tasks", "columns"),
    [
        (["masks"], ("image", "saliency", "class activation", "error")),
        (["diagnosis"], ("image", "saliency", "class activation", "error")),
        (
            ["masks", "diagnosis"],
            (
                "image",
                "saliency, outlines",
                "class activation, outlines",
                "saliency, diagnosis",
                "class activation, diagnosis",
                "error",
            ),
        ),
    ],
    ids=["masks", "diagnosis", "both"],
)
def test_columns_are_what_the_campaign_recognises_and_rows_the_states(
    simulated_run: Path, tasks: list[str], columns: tuple[str, ...]
) -> None:
    found = section(of_run(simulated_run) | explanations(["north"], tasks), ["north", "coast"])
    assert [(look.site, look.which) for look in found.looks] == [("north", "median"), ("north", "worst")]
    for look in found.looks:
        assert look.columns == columns
        assert [state for state, _ in look.rows] == list(STATES)
        assert all(len(cells) == len(columns) for _, cells in look.rows)
        assert [cells[-1] is None for _, cells in look.rows] == [False, False, True], "clean has no error"
    questions = [look.question for look in found.looks]
    if "diagnosis" in tasks:
        assert questions == ["diagnosis “lesion”, the true one", "diagnosis “lesion”, as read from the clean image"]
    else:
        assert questions == ["", ""]


def test_shares_are_means_over_the_shown_slices_with_an_outline(simulated_run: Path) -> None:
    pictures = of_run(simulated_run) | explanations(["north", "coast"], ["masks"])
    for name in ("saliency_inside", "activation_inside"):
        del pictures[f"explain/coast/worst/masks/{name}/degraded"]
    saliency, activation = section(pictures, ["north", "coast"]).shares
    assert (saliency.task, saliency.kind, saliency.slices, saliency.area) == ("outlines", "saliency", 3, 0.125)
    assert saliency.by_state == pytest.approx({"degraded": 0.1, "enhanced": 0.2, "clean": 0.3})
    assert activation.by_state["degraded"] == pytest.approx((0.1 + 0.1 + 1.1) / 3)


def test_no_outline_no_table(simulated_run: Path) -> None:
    pictures = of_run(simulated_run) | explanations(["north"], ["diagnosis"], outlined=False)
    found = section(pictures, ["north"])
    assert found.shares == ()
    np.savez(simulated_run / "pictures" / "gradprom-seed0.npz", **pictures)
    page = write_report(simulated_run).read_text()
    assert HEADING in page
    assert "inside the true foreground" not in page
    assert "summed logits" not in page


def test_error_maps_of_all_slices_share_one_scale(simulated_run: Path) -> None:
    pictures = of_run(simulated_run) | explanations(["north"], ["masks"], error=0.1)
    pictures |= explanations(["coast"], ["masks"], error=0.4)
    found = section(pictures, ["north", "coast"])
    faint, bright = (pixels(look.rows[0][1][-1].uri) for look in (found.looks[0], found.looks[2]))  # type: ignore[union-attr]
    assert faint[..., :3].astype(int).sum() < bright[..., :3].astype(int).sum()
    assert found.bars[-1].high == "0.40 of the intensity scale"


def test_activation_lies_over_its_own_image_and_is_clear_where_nothing_speaks(simulated_run: Path) -> None:
    found = section(of_run(simulated_run) | explanations(["north"], ["masks"]), ["north"])
    ids = [cells[0].id for look in found.looks for _, cells in look.rows if cells[0]]
    assert len(set(ids)) == len(ids) == 6
    for look in found.looks:
        for _, (image, saliency, activation, _) in look.rows:
            assert image is not None
            assert saliency is not None
            assert activation is not None
            assert activation.under == image.id
            assert saliency.under == ""
            alpha = pixels(activation.uri)[..., 3]
            assert alpha[0, 0] == round(0.7 * 255)
            assert alpha[-1, -1] == 0
            assert (pixels(saliency.uri)[..., 3] == 255).all()


def test_map_of_zeros_says_so(simulated_run: Path) -> None:
    pictures = of_run(simulated_run) | explanations(["north"], ["masks"])
    pictures["explain/north/median/masks/activation/clean"] = np.zeros((SIDE, SIDE), np.uint8)
    del pictures["explain/north/median/masks/activation_inside/clean"]
    cells = dict(section(pictures, ["north"]).looks[0].rows)["clean"]
    assert cells[2] is not None
    assert cells[2].words == "0 everywhere"
    assert cells[1] is not None
    assert cells[1].words == "30 % inside"


def test_report_with_explanations_points_only_into_itself(simulated_run: Path) -> None:
    before = write_report(simulated_run).read_text()
    assert HEADING not in before, "an older run has no explanations"
    pictures = of_run(simulated_run) | explanations(["north", "coast"], ["masks", "diagnosis"])
    np.savez(simulated_run / "pictures" / "gradprom-seed0.npz", **pictures)
    page = write_report(simulated_run).read_text()
    assert HEADING in page
    assert "over the slices shown here only" in page
    assert page.count("data:image/png") - before.count("data:image/png") == 2 * 2 * (3 * 5 + 2)
    for target in {part.split('"')[0] for part in page.split('<use href="#')[1:]}:
        assert page.count(f'id="{target}"') == 1
    assert page.count("dasharray") - before.count("dasharray") == 4, "an outline stands once and is used again"


def test_campaign_without_outlines_is_not_told_of_any(simulated_run: Path) -> None:
    pictures = of_run(simulated_run) | explanations(["north"], ["diagnosis"], outlined=False)
    pictures = {key: value for key, value in pictures.items() if not key.endswith(("truth", "_mask"))}
    np.savez(simulated_run / "pictures" / "gradprom-seed0.npz", **pictures)
    page = write_report(simulated_run).read_text()
    assert "The score is the logit of the diagnosis named." in page
    assert "Dashed: the true foreground" not in page
    assert "-truth" not in page


def test_deployed_run_shows_none_even_if_some_lie_in_its_folder(deployed_run: Path) -> None:
    (deployed_run / "pictures").mkdir()
    np.savez(deployed_run / "pictures" / "gradprom-seed5.npz", **explanations(["north"], ["masks"]))
    page = write_report(deployed_run).read_text()
    assert HEADING not in page
    assert "data:image" not in page


def test_explanations_without_their_images_are_left_out(simulated_run: Path) -> None:
    pictures = explanations(["north"], ["masks"])
    assert explained(pictures, ["north"], [], page_id="look0") is None
    shutil.rmtree(simulated_run / "pictures")
    assert HEADING not in write_report(simulated_run).read_text()


def of_one_image(sites: Sequence[str]) -> dict[str, np.ndarray]:
    """A recogniser alone: the image as it comes is all there is."""
    arrays = {key: value for key, value in explanations(sites, ["masks", "diagnosis"]).items() if "error" not in key}
    arrays = {key: value for key, value in arrays.items() if not key.endswith(("/degraded", "/enhanced"))}
    for site in sites:
        for which in ("median", "worst"):
            arrays[f"example/{site}/{which}/clean"] = np.linspace(0, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, -1)
    return arrays


def test_recogniser_alone_has_one_row_without_errors(simulated_run: Path) -> None:
    found = section(of_one_image(["north"]), ["north"])
    assert found.states == ("clean",)
    assert [bar.name for bar in found.bars] == ["saliency", "class activation"]
    for look in found.looks:
        assert [state for state, _ in look.rows] == ["image"]
        assert "error" not in look.columns
        assert len(look.rows[0][1]) == len(look.columns)
    assert found.looks[1].question == "diagnosis “lesion”, as read from the image"
    assert len(found.shares) == 4
    assert all(share.by_state == pytest.approx({"clean": 0.3}) for share in found.shares)


def test_page_of_a_recogniser_alone_says_nothing_of_enhancement_in_its_pictures(simulated_run: Path) -> None:
    np.savez(simulated_run / "pictures" / "gradprom-seed0.npz", **of_one_image(["north"]))
    page = write_report(simulated_run).read_text()
    part = page[page.index("What it looks like") : page.index("Every model on every site")]
    for word in ("error", "degraded", "enhanced", "before and after share"):
        assert word not in part, word
    assert "Each map has a scale of its own." in part
