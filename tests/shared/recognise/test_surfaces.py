"""Distances between outlines: squares done by hand, a slow twin over all pairs of points, scipy, and MONAI's own."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from shared.recognise.surfaces import missed_B, surface_distances

pytestmark = pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")
Mask = npt.NDArray[np.bool_]


def blobs(seed: int, count: int = 6, size: tuple[int, int] = (24, 20)) -> tuple[Tensor, Tensor]:
    """Predicted and true codes 0..2 of ragged discs, some of them at the border of the image."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    codes = np.zeros((2, count, *size), dtype=np.int64)
    for image in range(count):
        for code in (1, 2):
            row, column = rng.uniform(0, size[0]), rng.uniform(0, size[1])
            for which in range(2):
                shift = rng.normal(0, 2, 2)
                radius = rng.uniform(3, 7) + rng.normal(0, 0.7, size)
                inside = (y - row - shift[0]) ** 2 + (x - column - shift[1]) ** 2 < radius**2
                codes[which, image][inside] = code
    return torch.from_numpy(codes[0]), torch.from_numpy(codes[1])


def outline(mask: Mask) -> Mask:
    """Pixels with a neighbour above, below, left or right that is not in the mask, or is outside the image."""
    padded = np.pad(mask, 1)
    around = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~around


def slow_distances(predicted: Mask, truth: Mask, spacing: tuple[float, float]) -> tuple[float, float, float]:
    """hd, ahd and hd95 over every pair of points."""
    points, others = (np.argwhere(outline(mask)) * np.array(spacing) for mask in (predicted, truth))
    pairs = np.sqrt(((points[:, None] - others[None]) ** 2).sum(-1))
    there, back = pairs.min(1), pairs.min(0)
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return max(there.max(), back.max()), float(np.concatenate([there, back]).mean()), float(hd95)


def squares(offset: int) -> tuple[Tensor, Tensor]:
    predicted, truth = torch.zeros(2, 1, 30, 30, dtype=torch.int64)
    truth[0, 5:15, 5:15] = 1
    predicted[0, 5:15, 5 + offset : 15 + offset] = 1
    return predicted, truth


def test_a_square_next_to_itself_is_as_far_as_it_was_moved() -> None:
    found = surface_distances(*squares(3), 1)
    assert found["hd"].item() == 3
    # Of the 36 points of either outline, top and bottom share 7 of 10 columns, and the other 3 are 1, 2 and 3 away.
    # Between the corners, the side that looks away is 3 from its like; the other is as near to the top or the bottom.
    looks_away, inside = [3] * 8, [1, 2, 3, 3, 3, 3, 2, 1]
    each = [0] * 14 + [1, 2, 3] * 2 + looks_away + inside
    assert len(each) == 36
    assert found["ahd"].item() == pytest.approx(np.mean(each))
    assert found["hd95"].item() == 3


def test_distances_are_in_millimetres_and_rows_are_not_columns() -> None:
    moved_right = surface_distances(*squares(3), 1, torch.tensor([[5.0, 0.5]]))
    assert moved_right["hd"].item() == 1.5
    predicted, truth = squares(3)
    moved_down = surface_distances(predicted.mT, truth.mT, 1, torch.tensor([[5.0, 0.5]]))
    assert moved_down["hd"].item() > moved_right["hd"].item()


def test_same_outline_is_at_no_distance() -> None:
    predicted, _ = squares(0)
    assert [values.item() for values in surface_distances(predicted, predicted, 1).values()] == [0, 0, 0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.7, 0.6)])
def test_all_three_are_those_of_the_slow_twin(seed: int, spacing: tuple[float, float]) -> None:
    predicted, truth = blobs(seed)
    found = surface_distances(predicted, truth, 2, torch.tensor(spacing).expand(len(truth), 2))
    compared = 0
    for image in range(len(truth)):
        for code in (1, 2):
            masks = (predicted[image] == code).numpy(), (truth[image] == code).numpy()
            of_class = [found[name][image, code - 1].item() for name in ("hd", "ahd", "hd95")]
            if all(mask.any() for mask in masks):
                assert of_class == pytest.approx(slow_distances(*masks, spacing), rel=1e-5)
                compared += 1
            else:
                assert all(math.isnan(value) for value in of_class)
    assert compared > 6


def test_hausdorff_is_scipys() -> None:
    from scipy.spatial.distance import directed_hausdorff

    predicted, truth = blobs(4, count=3)
    found = surface_distances(predicted, truth, 2)["hd"]
    for image, code in found.isfinite().nonzero().tolist():
        points, others = (np.argwhere(outline((codes[image] == code + 1).numpy())) for codes in (predicted, truth))
        expected = max(directed_hausdorff(points, others)[0], directed_hausdorff(others, points)[0])
        assert found[image, code].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_one_call_gives_what_monais_three_metrics_give() -> None:
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    predicted, truth = blobs(5)
    one_hot = [torch.nn.functional.one_hot(codes, 3).movedim(-1, 1).float() for codes in (predicted, truth)]
    spacing = (1.25, 0.8)
    expected = {
        "hd": compute_hausdorff_distance(*one_hot, spacing=spacing),
        "hd95": compute_hausdorff_distance(*one_hot, percentile=95, spacing=spacing),
        "ahd": compute_average_surface_distance(*one_hot, symmetric=True, spacing=spacing),
    }
    found = surface_distances(predicted, truth, 2, torch.tensor(spacing).expand(len(truth), 2))
    defined = found["hd"].isfinite()
    assert defined.any()
    for name, values in expected.items():
        torch.testing.assert_close(found[name][defined], values[defined])
        assert not values[~defined].isfinite().any(), "MONAI has no finite distance either"


def test_a_class_that_one_of_them_lacks_has_no_distance_and_is_counted_as_missed() -> None:
    predicted, truth = torch.zeros(2, 4, 16, 16, dtype=torch.int64)
    truth[0, 2:6, 2:6] = 1  # missed, and class 2 is found
    truth[0, 8:12, 8:12] = predicted[0, 8:12, 8:12] = 2
    predicted[1, 2:6, 2:6] = 1  # invented
    truth[2, 2:6, 2:6] = predicted[2, 2:6, 2:6] = 1
    found = surface_distances(predicted, truth, 2)
    for values in found.values():
        np.testing.assert_array_equal(values, [[np.nan, 0], [np.nan, np.nan], [0, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(missed_B(predicted, truth, 2), [0.5, 1, 0, np.nan])


def test_swapping_prediction_and_truth_changes_nothing() -> None:
    predicted, truth = blobs(6, count=3)
    for one, other in zip(
        surface_distances(predicted, truth, 2).values(), surface_distances(truth, predicted, 2).values(), strict=True
    ):
        torch.testing.assert_close(one, other, equal_nan=True)
