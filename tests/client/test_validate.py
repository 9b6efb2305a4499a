"""A release judged where it did not train: aggregates alone, the release's gates, and nothing else happens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client import cli
from client.folder import SiteFolder
from client.releases import install, keep_personal, releases
from client.validate import to_json, validate
from shared.config import CampaignConfig, ReleaseConfig, build, to_dict
from shared.errors import ConfigError, DataError
from shared.trust.certificates import Pair
from simulation.bench.stores import write_random_store
from tests.client.release_files import NOW, authority, released, site_of, weights_of

OPEN: dict[str, Any] = {
    **to_dict(ReleaseConfig()),
    **dict.fromkeys(("harm_dice", "harm_accuracy", "erased", "invented_per_image", "sensitivity_loss"), 100.0),
    "harm_psnr_db": 0.0,
    "calibration_error": 1.0,
    "least_gain_db": 0.0,
}
"""Limits that an untrained network keeps, but for the gain."""


@pytest.fixture(scope="module")
def ours() -> Pair:
    return authority()


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    return build(CampaignConfig, to_dict(campaign))


@pytest.fixture
def site(tmp_path: Path, campaign: CampaignConfig, ours: Pair) -> SiteFolder:
    made = site_of(tmp_path / "site", ours, name="newcomer")
    write_random_store(made.store, campaign.data, patients=12, slices=2, seed=1)
    return made


@pytest.fixture
def file(tmp_path: Path, campaign: CampaignConfig, ours: Pair) -> Path:
    return released(tmp_path / "demo-v1.release", campaign, ours, gates_config={**OPEN, "least_patients": 13})


def test_a_newcomer_is_judged_on_all_of_its_patients(site: SiteFolder, file: Path) -> None:
    found = validate(site, str(file))
    assert (found.patients, found.took_part, found.left_out) == (12, False, 0)
    assert found.metrics["accept.gain.psnr_db"].count == 24
    assert found.metrics["enhanced.psnr_db"].count == 24
    assert found.failed == ()  # none decides: 13 patients are asked for
    assert releases(site) == ()  # nothing was installed


def test_only_aggregates_are_told(site: SiteFolder, file: Path) -> None:
    values = to_json(validate(site, str(file)))
    assert all(key.startswith("accept.") or key.split(".")[1] in
               ("psnr_db", "ssim", "dice", "accuracy", "auc") for key in values["metrics"])  # fmt: skip
    assert {len(moments["quantiles"]) for moments in values["metrics"].values()} == {0}
    text = json.dumps(values)
    for secret in ("patient-", "study-", "describe.", str(site.folder)):
        assert secret not in text


def test_a_site_that_took_part_is_judged_on_its_test_patients(
    site: SiteFolder, tmp_path: Path, campaign: CampaignConfig, ours: Pair
) -> None:
    path = released(tmp_path / "f.release", campaign, ours, sites={"newcomer": {"patients": 12}}, gates_config=OPEN)
    found = validate(site, str(path))
    assert found.took_part
    assert found.patients + found.left_out == 12
    assert found.patients == 3


def test_what_is_in_force_is_judged_with_the_weights_adapted_here(
    site: SiteFolder, file: Path, campaign: CampaignConfig
) -> None:
    with pytest.raises(ConfigError, match="no release is installed"):
        validate(site, "installed")
    one = install(site, file, NOW)
    plain = validate(site, "installed")
    assert not plain.adapted
    adapted = {name: values * 0 for name, values in weights_of(campaign).items() if name.startswith("enhancer.")}
    keep_personal(one, adapted, {"method": "finetune"})
    after = validate(site, "installed")
    assert after.adapted
    assert after.metrics["accept.gain.psnr_db"] != plain.metrics["accept.gain.psnr_db"]


def test_a_store_of_another_rule_cannot_judge(
    site: SiteFolder, tmp_path: Path, campaign: CampaignConfig, ours: Pair
) -> None:
    other = replace(campaign, data=replace(campaign.data, masks=("organ",)))
    with pytest.raises(DataError, match="ingested by another rule"):
        validate(site, str(released(tmp_path / "f.release", other, ours)))


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, " ".join(printed.out.split()), printed.err


def test_install_list_and_roll_back_by_command(
    site: SiteFolder, tmp_path: Path, campaign: CampaignConfig, ours: Pair, file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = site.folder
    assert run(capsys, "releases", folder)[1] == "No release is installed at this site."
    assert json.loads(run(capsys, "status", folder, "--json")[1])["release"] is None
    code, said, _ = run(capsys, "install", folder, file)
    assert code == 0
    assert "In force at site newcomer: demo v1, digest" in said
    assert "not a medical device" in said
    code, said, _ = run(capsys, "install", folder, file)
    assert code == 0
    assert "Installed already and in force: demo v1" in said
    code, _, reason = run(capsys, "rollback", folder, "--yes")
    assert (code, reason.count("\n")) == (2, 1)
    v2 = released(tmp_path / "v2.release", campaign, ours, version=2)
    run(capsys, "install", folder, v2)
    code, _, reason = run(capsys, "install", folder, file)
    assert code == 3
    assert "demo v1 is older than v2" in reason
    assert run(capsys, "rollback", folder)[0] == 2  # nobody there to ask
    assert "demo v1" in run(capsys, "rollback", folder, "--yes")[1]
    rows = json.loads(run(capsys, "releases", folder, "--json")[1])
    assert [(row["version"], row["current"]) for row in rows] == [(1, True), (2, False)]
    status = json.loads(run(capsys, "status", folder, "--json")[1])["release"]
    assert (status["name"], status["version"], status["personal"]) == ("demo", 1, False)
    for told in ("status", "check"):
        assert "demo v1" in run(capsys, told, folder)[1]


def test_a_gate_that_does_not_hold_here_costs_exit_code_3_after_the_figures_were_shown_and_written(
    site: SiteFolder, tmp_path: Path, campaign: CampaignConfig, ours: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = released(tmp_path / "f.release", campaign, ours, gates_config={**OPEN, "least_gain_db": 50.0})
    out = tmp_path / "figures.json"
    code, shown, reason = run(capsys, "validate", site.folder, strict, "--out", out)
    assert code == 3
    assert "the gate gain of demo v1 does not hold here" in reason
    assert reason.count("\n") == 1
    assert "accept.gain.psnr_db" in shown
    assert "figures.json" in shown
    written = json.loads(out.read_text())
    assert written["release"]["version"] == 1
    assert [gate["gate"] for gate in written["gates"] if gate["decides"] and not gate["holds"]] == ["gain"]


def test_figures_for_programs(site: SiteFolder, file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "validate", site.folder, file, "--json")
    assert code == 0
    assert json.loads(out)["site"] == "newcomer"
    code, _, reason = run(capsys, "validate", site.folder, file, "--out", tmp_path / "no" / "f.json")
    assert code == 2
    assert "f.json cannot be written there" in reason
