"""A deployed run's rows: pooled exactly as if all images lay in one place, and refused where the file is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.closing import closing_record
from server.findings import read_findings
from shared.errors import DataError

LABELS = {
    "name": "liver trial",
    "seed": 5,
    "data": {"kind": "store", "root": "somewhere", "test": None},
    "degrade": {"kind": "low_dose"},
    "objective": {"kind": "gradprom", "task_weight": 0.1},
}


def moments(values: np.ndarray) -> dict[str, Any]:
    return {"count": len(values), "total": float(values.sum()), "total_sq": float((values**2).sum()), "quantiles": []}


def write(folder: Path, evaluations: list[dict[str, Any]], campaign: dict[str, Any] = LABELS) -> Path:
    (folder / "campaign.json").write_text(json.dumps(campaign))
    records = [
        {"round": i, "seconds": 2.0, "bytes_up": 100, "training": {"a": {"samples": 8.0}}, "evaluation": evaluation}
        for i, evaluation in enumerate(evaluations, start=1)
    ]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_mean_over_sites_of_unequal_size_is_the_mean_over_their_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = {"a": rng.normal(25, 1, 7), "b": rng.normal(30, 1, 31)}
    write(tmp_path, [{site: {"enhanced.psnr_db": moments(values)} for site, values in images.items()}])
    rows = closing_record(tmp_path)["rows"]
    pooled = next(row for row in rows if row["test_site"] == "all")
    everything = np.concatenate(list(images.values()))
    assert pooled["psnr_db"] == pytest.approx(everything.mean(), rel=1e-12)
    assert pooled["n"] == 38
    assert {row["test_site"]: row["n"] for row in rows} == {"a": 7, "b": 31, "all": 38}


def test_rows_come_from_the_last_evaluation_and_costs_from_all_rounds(tmp_path: Path) -> None:
    first, last = ({"a": {"enhanced.psnr_db": moments(np.full(4, level))}} for level in (20.0, 26.0))
    row = closing_record(write(tmp_path, [first, last]))["rows"][-1]
    assert (row["setting"], row["site"], row["test_site"]) == ("federated", "all", "all")
    assert (row["psnr_db"], row["bytes_up"], row["samples_seen"], row["seconds"]) == (26.0, 200, 16, 4.0)
    assert (row["method"], row["lambda"], row["data"], row["degradation"]) == ("gradprom", 0.1, "store", "low_dose")


def test_states_of_the_image_become_settings(tmp_path: Path) -> None:
    metrics = {f"{state}.dice": moments(np.full(3, 0.5)) for state in ("clean", "degraded", "enhanced")}
    rows = closing_record(write(tmp_path, [{"a": metrics}]))["rows"]
    assert {row["setting"] for row in rows} == {"clean", "degraded", "federated"}


def test_what_sums_cannot_pool_stays_per_site(tmp_path: Path) -> None:
    of_site = {"enhanced.auc": 0.9, "enhanced.f1": 0.8, "enhanced.f1.ill": 0.7}
    metrics = {key: moments(np.array([value])) for key, value in of_site.items()}
    metrics |= {"enhanced.accuracy": moments(np.array([1.0, 0.0]))}
    rows = {row["test_site"]: row for row in closing_record(write(tmp_path, [{"a": metrics, "b": metrics}]))["rows"]}
    assert (rows["a"]["auc"], rows["a"]["f1"], rows["a"]["f1.ill"]) == (0.9, 0.8, 0.7)
    assert not {"auc", "f1", "f1.ill"} & rows["all"].keys()
    assert rows["all"]["accuracy"] == 0.5
    assert (rows["a"]["patients"], rows["all"]["patients"]) == (2, 4)


def test_line_cut_by_a_crash_is_not_a_round(deployed_run: Path) -> None:
    whole = closing_record(deployed_run)
    with (deployed_run / "rounds.jsonl").open("a") as file:
        file.write('{"round": 6, "sec')
    assert closing_record(deployed_run) == whole


def test_digest_is_the_one_that_sites_agreed_on(tmp_path: Path, campaign: Any) -> None:
    from shared.config import CampaignConfig, build, campaign_digest, to_dict

    agreed = build(CampaignConfig, to_dict(campaign))
    write(tmp_path, [{"a": {"enhanced.psnr_db": moments(np.ones(2))}}], to_dict(agreed))
    assert read_findings(tmp_path).report["config_digest"] == campaign_digest(agreed)


def test_what_the_run_wrote_about_itself_is_believed_over_what_is_installed_today(tmp_path: Path) -> None:
    write(tmp_path, [{"a": {"enhanced.psnr_db": moments(np.ones(2))}}])
    about = {"config_digest": "ab" * 32, "versions": {"wardround": "0.0.1"}, "sites": {"a": {"patients": 9}}}
    (tmp_path / "about.json").write_text(json.dumps(about))
    findings = read_findings(tmp_path)
    assert findings.report["config_digest"] == "ab" * 32
    assert findings.report["versions"] == {"wardround": "0.0.1"}
    assert findings.sites == {"a": {"patients": 9}}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("rounds.jsonl", "not json\n{}\n", "line 1 is not a round record"),
        ("rounds.jsonl", "[1]\n[2]\n", "line 1 is not a round record"),
        ("rounds.jsonl", "", "holds no evaluation"),
        ("campaign.json", "{}", "no readable campaign.json"),
    ],
)
def test_damage_is_refused_with_the_way_out(deployed_run: Path, name: str, text: str, reason: str) -> None:
    (deployed_run / name).write_text(text)
    with pytest.raises(DataError, match=reason):
        closing_record(deployed_run)


def test_evaluation_without_its_sums_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="without count, total and total_sq"):
        closing_record(write(tmp_path, [{"a": {"enhanced.psnr_db": {"mean": 3}}}]))
