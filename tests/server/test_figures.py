"""Charts hold what they were given: masks keep their area as contours, pixels their values, bytes their identity."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from server import figures


def shoelace(path: str) -> float:
    """Area enclosed by SVG path data of closed polygons, holes taken off."""
    area = 0.0
    for loop in path.split("M")[1:]:
        points = np.array([[float(v) for v in p.split()] for p in loop.rstrip("Z").split("L")])
        x, y = points.T
        area += float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2
    return abs(area)


def test_contour_of_a_disc_encloses_its_area() -> None:
    y, x = np.mgrid[:64, :64]
    disc = (x - 30) ** 2 + (y - 33) ** 2 < 20**2
    assert shoelace(figures.contour_path(disc)) == pytest.approx(disc.sum(), rel=0.02)


def test_contour_lies_on_its_pixels_and_closes_at_the_border() -> None:
    mask = np.zeros((8, 10), bool)
    mask[:3, 6:] = True  # rows 0 to 3, columns 6 to 10 in corner coordinates
    path = figures.contour_path(mask)
    numbers = np.array(re.findall(r"-?\d+\.\d", path), dtype=float).reshape(-1, 2)
    np.testing.assert_allclose(numbers.min(axis=0), [6, 0], atol=0.01)
    np.testing.assert_allclose(numbers.max(axis=0), [10, 3], atol=0.01)
    assert path.endswith("Z")


def test_empty_mask_draws_nothing() -> None:
    assert figures.contour_path(np.zeros((8, 8), bool)) == ""


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_picture_keeps_its_grey_values(shape: tuple[int, ...]) -> None:
    image = np.linspace(-0.2, 1.2, int(np.prod(shape))).reshape(shape)
    uri = figures.image_uri(image)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    np.testing.assert_array_equal(pixels, np.round(np.clip(image, 0, 1) * 255))


def test_error_map_is_darkest_at_nought_and_brightest_at_the_largest() -> None:
    uri = figures.error_uri(np.array([[0.0, 0.1, -0.2, 5.0]]), largest=0.2)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))).astype(int).sum(axis=-1)[0]
    assert pixels[0] < pixels[1] < pixels[2] == pixels[3]


def test_map_keeps_its_levels_and_runs_from_dark_to_light() -> None:
    levels = np.linspace(0, 1, 256).reshape(16, 16)
    picture = Image.open(io.BytesIO(base64.b64decode(figures.map_uri(levels, "viridis").split(",")[1])))
    np.testing.assert_array_equal(np.asarray(picture), np.arange(256).reshape(16, 16))
    luminance = np.asarray(picture.convert("L")).astype(int).ravel()
    assert (np.diff(luminance) >= -1).all()
    assert luminance[-1] > luminance[0] + 100


def test_not_a_number_is_drawn_as_nothing() -> None:
    uri = figures.map_uri(np.array([[np.nan, 2.0, -1.0]]), "viridis", see_through=True)
    alpha = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))[0, :, 3]
    assert alpha.tolist() == [0, round(0.7 * 255), 0]


def test_box_holds_the_quantiles_and_leaves_out_what_is_not_finite() -> None:
    values = np.append(np.arange(101.0), [np.nan, np.inf])
    box = figures.box_of("north", "federated", "#123456", values)
    assert box.quantiles == (5, 25, 50, 75, 95)
    assert (min(box.values), max(box.values)) == (0, 100)
    assert len(box.values) <= 60


def test_chart_takes_the_ink_and_font_of_its_page_and_repeats_itself() -> None:
    lines = [("north", "#3b74e0", [1, 2, 3], [0.3, 0.2, 0.1])]
    first = figures.line_chart(lines, label="loss <train>", x_label="round")
    assert first == figures.line_chart(lines, label="loss <train>", x_label="round")
    assert first.startswith('<svg role="img" aria-label="loss &lt;train&gt;" viewBox=')
    assert "currentColor" in first
    assert "DejaVu" not in first
    assert 'id="figure' not in first
    assert "#3b74e0" in first
