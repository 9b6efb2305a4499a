"""Rows against means that numpy takes over all images at once; what is not defined is not there."""

from __future__ import annotations

import numpy as np
import pytest

from simulation.rows import Judged, metrics_of, rows_of

LABELS = {"method": "gradprom", "seed": 0, "split": "test", "lambda": 0.1}
RNG = np.random.default_rng(0)


def judged(setting: str, site: str, offset: float = 0.0) -> Judged:
    values = {
        test_site: {
            "enhanced.psnr_db": RNG.normal(25 + offset, 1, n),
            "degraded.psnr_db": RNG.normal(20, 1, n),
            "clean.dice": np.full(n, 0.9),
            "enhanced.dice": np.where(np.arange(n) % 2, np.nan, 0.8),
            "enhanced.auc": np.array([0.7]),
        }
        for test_site, n in (("a", 4), ("b", 10))
    }
    return Judged(setting, site, values, {"enhanced.auc": 0.83, "clean.auc": float("nan")}, {"a": 4, "b": 10})


def find(rows: list[dict], setting: str, site: str, test_site: str) -> dict:
    (row,) = [r for r in rows if (r["setting"], r["site"], r["test_site"]) == (setting, site, test_site)]
    return row


def test_row_over_all_is_the_mean_over_images_and_not_over_sites() -> None:
    model = judged("federated", "all")
    rows = rows_of([model], LABELS, {})
    images = np.concatenate([values["enhanced.psnr_db"] for values in model.by_test.values()])
    row = find(rows, "federated", "all", "all")
    assert row["psnr_db"] == pytest.approx(images.mean(), rel=1e-12)
    assert row["n"] == 14
    assert find(rows, "federated", "all", "b")["n"] == 10
    assert {"method", "seed", "split", "lambda"} <= row.keys()


def test_summary_of_local_is_the_mean_over_the_sites_models() -> None:
    models = [judged("local", "a"), judged("local", "b", offset=3)]
    rows = rows_of(models, LABELS, {("local", "a"): {"samples_seen": 8.0}, ("local", "b"): {"samples_seen": 16.0}})
    each = [find(rows, "local", site, "all")["psnr_db"] for site in ("a", "b")]
    summary = find(rows, "local", "all", "all")
    assert summary["psnr_db"] == pytest.approx(np.mean(each), rel=1e-12)
    assert summary["samples_seen"] == 12
    assert (summary["n"], summary["lambda"], summary["seed"]) == (14, 0.1, 0)
    assert len(rows) == 3 + 3 + 3


def test_every_combination_has_one_summary_row() -> None:
    models = [judged("federated", "all"), judged("local", "a"), judged("local", "b"), judged("pooled", "all")]
    rows = rows_of(models, LABELS, {})
    summaries = [row["setting"] for row in rows if row["site"] == row["test_site"] == "all"]
    assert sorted(summaries) == ["clean", "degraded", "federated", "local", "pooled"]


def test_auc_over_all_is_measured_over_all_patients_and_never_averaged() -> None:
    rows = rows_of([judged("federated", "all")], LABELS, {})
    assert find(rows, "federated", "all", "all")["auc"] == 0.83
    assert find(rows, "federated", "all", "a")["auc"] == 0.7
    assert "auc" not in find(rows, "clean", "all", "all")


def test_f1_is_over_all_patients_too() -> None:
    values = [{"enhanced.f1.ill": np.array([f1]), "enhanced.dice": np.array([f1])} for f1 in (0.2, 0.6)]
    assert metrics_of(values[:1], "enhanced") == {"f1.ill": 0.2, "dice": 0.2}
    assert metrics_of(values, "enhanced") == {"dice": pytest.approx(0.4)}


def test_states_that_were_not_judged_have_no_rows() -> None:
    alone = Judged("federated", "all", {"a": {"enhanced.dice": np.array([0.5])}}, {}, {"a": 1})
    assert {row["setting"] for row in rows_of([alone], LABELS, {})} == {"federated"}


def test_undefined_values_are_left_out_of_means_and_rows() -> None:
    assert metrics_of([{"enhanced.dice": np.array([np.nan, 0.6, 0.8])}], "enhanced") == {"dice": pytest.approx(0.7)}
    assert metrics_of([{"enhanced.dice": np.array([np.nan])}], "enhanced") == {}
    assert metrics_of([{"degraded.psnr_db": np.array([np.inf])}], "degraded") == {}
