"""Means over seeds and the site x model matrix, against sums done by hand."""

from __future__ import annotations

from typing import Any

import pytest

from server.summary import at_home, elsewhere_rows, matrices, summary_rows


def row(setting: str, site: str, test_site: str, **metrics: Any) -> dict[str, Any]:
    labels = {"method": "plain", "seed": 0, "data": "mni", "setting": setting, "site": site, "test_site": test_site}
    return {**labels, "n": 4, **metrics}


def test_summary_averages_over_seeds_and_reads_only_rows_over_all_sites() -> None:
    rows = [
        row("federated", "all", "all", psnr_db=26.0, dice=0.8),
        row("federated", "all", "all", psnr_db=28.0, seed=1),
        row("federated", "all", "north", psnr_db=99.0),
        row("degraded", "all", "all", psnr_db=20.0),
    ]
    assert summary_rows(rows) == [
        (("plain", "degraded"), {"psnr_db": 20.0}),
        (("plain", "federated"), {"psnr_db": 27.0, "dice": 0.8}),
    ]


def test_matrix_has_a_line_per_model_and_a_column_per_test() -> None:
    rows = [
        row("degraded", "all", "b", psnr_db=10.0),
        row("local", "b", "b", psnr_db=24.0),
        row("local", "a", "b", psnr_db=22.0),
        row("local", "a", "a", psnr_db=26.0),
        row("local", "all", "all", psnr_db=24.0),
        row("federated", "all", "all", psnr_db=30.0),
    ]
    (matrix,) = matrices(rows, ["a", "b"])
    assert matrix.columns == ("a", "b", "all")
    assert matrix.models == ("degraded", "local: b", "local: a", "local, mean", "federated")
    assert matrix.values[2] == (26.0, 22.0, None)
    assert matrix.values[4] == (None, None, 30.0)


def test_heat_runs_from_the_worst_trained_model_to_the_best() -> None:
    rows = [row(s, "all", "a", psnr_db=v) for s, v in (("degraded", 5.0), ("pooled", 20.0), ("federated", 30.0))]
    (matrix,) = matrices(rows, ["a"])
    assert [matrix.heat(value) for value in (5.0, 20.0, 25.0, 30.0, None)] == pytest.approx([0, 0, 0.5, 1, 0])


def test_rows_judged_on_another_data_set_stand_apart() -> None:
    here = [
        row("federated", "all", "a", psnr_db=30.0),
        row("federated", "all", "all", psnr_db=28.0, test_data="mni"),
    ]
    away = [
        row("degraded", "all", "all", psnr_db=10.0, test_data="hippocampus"),
        row("federated", "all", "all", psnr_db=12.0, test_data="hippocampus"),
        row("federated", "all", "all", psnr_db=14.0, test_data="hippocampus", seed=1),
    ]
    assert [at_home(each) for each in (*here, *away)] == [True, True, False, False, False]
    assert summary_rows([*here, *away]) == [(("plain", "federated"), {"psnr_db": 28.0})]
    assert elsewhere_rows([*here, *away]) == [
        ("hippocampus", "plain", "degraded", {"psnr_db": 10.0}),
        ("hippocampus", "plain", "federated", {"psnr_db": 13.0}),
    ]
    (matrix,) = matrices([*here, *away], ["a"])
    assert matrix.values == ((30.0, 28.0),), "a mean over two data sets is a figure of neither"
