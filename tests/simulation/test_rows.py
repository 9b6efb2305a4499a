"""Rows against means that numpy takes over all images at once; what is not defined is not there."""

from __future__ import annotations

import numpy as np
import pytest

from simulation.rows import Judged, kind_of_label, metrics_of, rows_of

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


@pytest.mark.parametrize(
    ("metric", "kind"),
    [
        ("dice", "masks"), ("dice.left_lung", "masks"), ("hd95_mm", "masks"), ("ahd_px", "masks"), ("missed", "masks"),
        ("accuracy", "diagnoses"), ("f1.ill", "diagnoses"), ("auc", "diagnoses"),
        ("psnr_db", None), ("psnr_db_region", None), ("judge_dice", None), ("samples_seen", None),
    ],
)  # fmt: skip
def test_each_metric_is_taught_by_one_kind_of_label_or_none(metric: str, kind: str | None) -> None:
    assert kind_of_label(metric) == kind


def test_a_model_that_was_taught_no_mask_is_no_part_of_the_mean_dice_and_one_without_a_diagnosis_of_accuracy() -> None:
    def of(site: str, masks: int, diagnoses: int, value: float) -> Judged:
        metrics = ("dice", "accuracy", "psnr_db")
        scores = {f"enhanced.{metric}": np.array([value]) for metric in metrics}
        taught = {"train_masks": masks, "train_diagnoses": diagnoses}
        return Judged("local", site, {"t": scores}, {}, {"t": 1}, taught)

    rows = rows_of([of("a", 0, 5, 0.1), of("b", 3, 0, 0.5), of("c", 3, 5, 0.9)], LABELS, {})
    for test_site in ("t", "all"):
        mean = find(rows, "local", "all", test_site)
        assert mean["dice"] == pytest.approx(0.7)
        assert mean["accuracy"] == pytest.approx(0.5)
        assert mean["psnr_db"] == pytest.approx(0.5)
        assert not {"train_masks", "train_diagnoses"} & mean.keys()
    assert find(rows, "local", "a", "all")["train_masks"] == 0

    nobody = rows_of([of("a", 0, 1, 0.1), of("b", 0, 1, 0.5)], LABELS, {})
    assert "dice" not in find(nobody, "local", "all", "all")


def test_models_whose_labels_nobody_counted_all_stand_in_the_mean() -> None:
    rows = rows_of([judged("local", "a"), judged("local", "b")], LABELS, {})
    assert find(rows, "local", "all", "all")["dice"] == pytest.approx(0.8)


def test_patients_that_accuracy_is_a_share_of_are_counted_beside_images() -> None:
    by_test = {
        "a": {"enhanced.accuracy": np.array([1.0, 0.0, 1.0]), "enhanced.dice": np.full(9, 0.5)},
        "b": {"enhanced.accuracy": np.array([1.0]), "enhanced.dice": np.full(4, 0.5)},
        "c": {"enhanced.dice": np.full(2, 0.5)},
    }
    images = {"a": 9, "b": 4, "c": 2}
    rows = rows_of([Judged("local", site, by_test, {}, images) for site in "ab"], LABELS, {})
    for site in ("a", "all"):
        found = [find(rows, "local", site, test_site) for test_site in ("a", "b", "c", "all")]
        assert [(row["n"], row.get("patients")) for row in found] == [(9, 3), (4, 1), (2, None), (15, 4)]
    assert find(rows, "local", "all", "all")["accuracy"] == 0.75
