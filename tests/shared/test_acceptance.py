"""The gates of a release: numbers worked by hand, and which of them decide."""

from __future__ import annotations

import numpy as np
import pytest

from shared.acceptance import Gate, calibration_of, descriptors_of, gates_of, is_judged, require_gates
from shared.config import ReleaseConfig
from shared.errors import RefusedError
from shared.types import Metrics, Moments

CONFIG = ReleaseConfig()


def moments(*values: float) -> Moments:
    array = np.array(values, dtype=float)
    return Moments(len(values), float(array.sum()), float((array**2).sum()))


def good(**changes: Moments) -> Metrics:
    """Six images, six lesions (four found before), six patients."""
    metrics = {
        "gain.psnr_db": moments(1, 2, 3, 4, 5, 6),
        "harm.dice_before": moments(*[0.8] * 6),
        "harm.dice_after": moments(*[0.795] * 6),
        "harm.dice_before.organ": moments(*[0.9] * 6),
        "harm.dice_after.organ": moments(*[0.9] * 6),
        "harm.accuracy_before": moments(1, 1, 1, 0, 0, 0),
        "harm.accuracy_after": moments(1, 1, 1, 1, 0, 0),
        "harm.psnr_db": moments(*[35] * 6),
        "lesions.before": moments(1, 1, 1, 1, 0, 0),
        "lesions.after": moments(1, 1, 1, 1, 1, 0),
        "lesions.erased": moments(0, 0, 0, 0, 0, 0),
        "false.before": moments(1, 0, 0, 0, 0, 0),
        "false.after": moments(1, 0, 0, 0, 0, 0),
        "false.invented": moments(0, 0, 0, 0, 0, 0),
        # Two patients at 0.55, one of them right; four at 0.9, three of them right:
        "calibration.count5": moments(1, 1),
        "calibration.confidence5": moments(0.55, 0.55),
        "calibration.correct5": moments(1, 0),
        "calibration.count9": moments(1, 1, 1, 1),
        "calibration.confidence9": moments(0.9, 0.9, 0.9, 0.9),
        "calibration.correct9": moments(1, 1, 1, 0),
    }
    return {f"accept.{key}": value for key, value in {**metrics, **changes}.items()}


def found(metrics: Metrics, config: ReleaseConfig = CONFIG, **patients: int) -> dict[str, Gate]:
    return {gate.gate: gate for gate in gates_of({"a": metrics}, config, patients) if gate.site == "a"}


def test_every_gate_is_the_number_that_a_hand_works_out() -> None:
    gates = found(good())
    values = {name: gate.value for name, gate in gates.items()}
    assert values == pytest.approx(
        {
            "gain": 3.5,
            "harm_dice": 0.005,
            "harm_dice.organ": 0.0,
            "harm_accuracy": -1 / 6,
            "harm_psnr_db": 35.0,
            "erased": 0.0,
            "invented_per_image": 0.0,
            "sensitivity_loss": -1 / 6,
            "sensitivity": 5 / 6,
            "false_positives": 1 / 6,
            # |2 * 0.55 - 1| + |4 * 0.9 - 3| over six patients
            "calibration_error": (0.1 + 0.6) / 6,
        }
    )
    assert all(gate.holds for gate in gates.values())
    undecided = {name for name, gate in gates.items() if not gate.decides}
    assert undecided == {"erased", "sensitivity", "false_positives"}  # four lesions were found before: one too few
    assert gates["erased"].n == 4


@pytest.mark.parametrize(
    ("gate", "changes"),
    [
        ("gain", {"gain.psnr_db": moments(*[0.0] * 6)}),  # not above the limit
        ("harm_dice", {"harm.dice_after": moments(*[0.78] * 6)}),
        ("harm_dice.organ", {"harm.dice_after.organ": moments(*[0.85] * 6)}),
        ("harm_accuracy", {"harm.accuracy_after": moments(1, 1, 0, 0, 0, 0)}),
        ("harm_psnr_db", {"harm.psnr_db": moments(*[29.9] * 6)}),
        ("erased", {"lesions.before": moments(*[1] * 6), "lesions.erased": moments(1, 0, 0, 0, 0, 0)}),
        ("invented_per_image", {"false.invented": moments(1, 0, 0, 0, 0, 0)}),
        ("sensitivity_loss", {"lesions.after": moments(1, 1, 1, 0, 0, 0)}),
        ("calibration_error", {"calibration.correct9": moments(0, 0, 0, 0)}),
    ],
)
def test_each_gate_alone_stops_a_release_and_names_itself_site_value_and_limit(
    gate: str, changes: dict[str, Moments]
) -> None:
    gates = gates_of({"a": good(**changes)}, CONFIG)
    failed = {each.gate for each in gates if each.decides and not each.holds}
    assert gate in failed
    first = next(each for each in gates if each.decides and not each.holds)
    with pytest.raises(RefusedError, match=rf"gate {first.gate} does not hold at site a: got .* limit "):
        require_gates(gates, CONFIG)


def test_a_release_passes_where_all_that_decide_hold() -> None:
    require_gates(gates_of({"a": good(), "b": good()}, CONFIG), CONFIG)


def test_a_site_with_too_few_patients_decides_nothing_but_counts_over_all() -> None:
    bad = good(**{"gain.psnr_db": moments(*[-50.0] * 6)})
    gates = gates_of({"a": bad, "b": good()}, CONFIG, {"a": 4, "b": 9})
    of_a = [gate for gate in gates if gate.site == "a"]
    assert not any(gate.decides for gate in of_a)
    assert not next(gate for gate in of_a if gate.gate == "gain").holds
    over_all = next(gate for gate in gates if gate.site == "all" and gate.gate == "gain")
    assert over_all.decides
    assert over_all.value == pytest.approx((-300 + 21) / 12)
    with pytest.raises(RefusedError, match="all sites together"):
        require_gates(gates, CONFIG)


def test_erased_lesions_of_several_sites_make_one_share() -> None:
    one = good(**{"lesions.before": moments(1, 1, 1), "lesions.erased": moments(1, 0, 0)})
    two = good(**{"lesions.before": moments(*[1] * 7), "lesions.erased": moments(*[0] * 7)})
    gates = gates_of({"a": one, "b": two}, CONFIG)
    erased = next(gate for gate in gates if (gate.site, gate.gate) == ("all", "erased"))
    assert (erased.value, erased.n, erased.decides, erased.holds) == (0.1, 10, True, False)


def test_nothing_to_measure_decides_nothing_and_nothing_that_decides_is_no_release() -> None:
    none = {"accept.gain.psnr_db": Moments(0, 0.0, 0.0)}
    gates = gates_of({"a": none}, CONFIG)
    assert {gate.value for gate in gates} == {None}
    assert not any(gate.decides for gate in gates)
    with pytest.raises(RefusedError, match="none can decide"):
        require_gates(gates, CONFIG)
    few = gates_of({"a": good()}, CONFIG, {"a": 4})
    with pytest.raises(RefusedError, match="5 test patients"):
        require_gates(few, CONFIG)


def test_without_an_enhancer_calibration_alone_is_asked() -> None:
    metrics = {key: value for key, value in good().items() if "calibration" in key}
    assert [gate.gate for gate in gates_of({"a": metrics}, CONFIG) if gate.site == "all"] == ["calibration_error"]


def test_calibration_and_descriptors_as_a_manifest_has_them() -> None:
    two = {"a": {**good(), "describe.mean": moments(1, 3)}, "b": good()}
    calibration = calibration_of(two)
    assert calibration is not None
    assert calibration["bins"][9] == {"count": 8, "confidence": pytest.approx(0.9), "correct": 0.75}
    assert calibration["bins"][0] == {"count": 0, "confidence": 0.0, "correct": 0.0}
    assert descriptors_of(two) == {"mean": {"a": {"count": 2, "mean": 2.0, "std": 1.0}}}
    assert calibration_of({"a": {}}) is None
    assert descriptors_of({"a": {}}) is None


def test_an_older_runs_evaluation_has_nothing_to_judge_by() -> None:
    assert is_judged({"a": good()})
    assert not is_judged({"a": good(), "b": {"enhanced.psnr_db": moments(30)}})
    assert not is_judged({})
