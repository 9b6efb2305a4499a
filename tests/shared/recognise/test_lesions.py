"""Lesions counted by hand on a grid small enough to draw."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shared.recognise.lesions import lesions


def drawn(text: str) -> npt.NDArray[np.bool_]:
    return np.array([[letter == "#" for letter in line] for line in text.split()])


TRUTH = drawn("""
    ##......
    ##......
    ........
    .....##.
    .....##.
""")
NOTHING = np.zeros_like(TRUTH)


def test_what_is_segmented_as_it_is_finds_all_and_invents_nothing() -> None:
    one = lesions(TRUTH, TRUTH, TRUTH)
    assert one.before_L.tolist() == one.after_L.tolist() == [True, True]
    assert one.erased_L.tolist() == [False, False]
    assert (one.false_before, one.false_after, one.invented) == (0, 0, 0)


def test_a_quarter_of_a_lesions_pixels_finds_it_and_less_does_not() -> None:
    quarter = drawn("#....... ........ ........ ........ ........")
    assert lesions(TRUTH, quarter, NOTHING).before_L.tolist() == [True, False]
    five = drawn("#####... ........ ........ ........ ........")
    assert lesions(five, quarter, NOTHING).before_L.tolist() == [False]  # 1 of 5


def test_a_lesion_found_before_and_not_after_is_erased() -> None:
    one = lesions(TRUTH, TRUTH, drawn("##...... ........ ........ ........ ........"))
    assert one.erased_L.tolist() == [False, True]
    # Found only after: nothing is erased.
    assert lesions(TRUTH, NOTHING, TRUTH).erased_L.tolist() == [False, False]


def test_what_holds_no_true_pixel_is_false_and_invented_where_there_was_none_before() -> None:
    before = drawn("......## ........ ........ ........ ........")
    after = drawn(".....##. ........ ........ ........ #.......")
    one = lesions(TRUTH, before, after)
    # The upper one after overlaps the one before: moved, not invented. The lower one is new.
    assert (one.false_before, one.false_after, one.invented) == (1, 2, 1)


def test_one_true_pixel_keeps_a_component_from_being_false() -> None:
    long = drawn(".####### ........ ........ ........ ........")
    one = lesions(TRUTH, NOTHING, long)
    assert (one.after_L.tolist(), one.false_after) == ([True, False], 0)


def test_pixels_that_touch_at_a_corner_are_one_component() -> None:
    corner = drawn("#....... .#...... ........ ........ ........")
    assert len(lesions(corner, NOTHING, NOTHING).before_L) == 1
    assert lesions(NOTHING, NOTHING, corner).false_after == 1


def test_an_image_without_a_lesion_has_no_lesion_to_find() -> None:
    one = lesions(NOTHING, NOTHING, TRUTH)
    assert one.before_L.tolist() == []
    assert (one.false_after, one.invented) == (2, 2)
