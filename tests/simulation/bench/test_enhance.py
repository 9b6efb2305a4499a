"""The bench of enhancing: a small case has every figure that it promises."""

from __future__ import annotations

from simulation.bench import enhance


def test_a_case_tells_its_stages_and_its_memory() -> None:
    (case,) = enhance.run(size=64, slices=2)
    assert case["case"] == "ct-64x64x2"
    assert case["ratio"] > 0
    assert case["decode_s"] > 0
    assert case["network_s"] > 0
    assert case["encode_s"] > 0
    assert 50 < case["peak_mb"] < 8000
    assert case["target"] == 1.05
