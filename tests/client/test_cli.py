"""`wardround-site`: exit codes, one-line reasons, nothing happens unasked."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path

import pytest

from client import cli
from client.rules import SiteRules
from client.site import load_site
from shared.config import CampaignConfig, LearnConfig, SecAggConfig, campaign_digest
from shared.reach import free_port
from shared.trust import certificates
from shared.trust.identity import create_identity, load_identity
from tests.client.manifest_files import Federation, write


@pytest.fixture
def federation() -> Federation:
    return Federation(certificates.create_authority("test", dt.datetime.now(dt.UTC)))


@pytest.fixture
def site(tmp_path: Path, federation: Federation, capsys: pytest.CaptureFixture[str]) -> Path:
    (tmp_path / "ca.crt").write_bytes(federation.authority.certificate)
    address = f"127.0.0.1:{free_port()}"
    folder = tmp_path / "site"
    arguments = ["init", str(folder), "--name", "north", "--coordinator", address, "--ca", str(tmp_path / "ca.crt")]
    assert cli.main(arguments) == 0
    assert "SHA256:" in capsys.readouterr().out
    federation.identities["north"] = load_identity("north", folder / "key", folder / "exchange.key")
    return folder


@pytest.fixture
def campaign(campaign: CampaignConfig) -> CampaignConfig:
    """Masked, as campaigns are where nobody says otherwise."""
    return replace(campaign, secagg=SecAggConfig(kind="masked"), rounds=replace(campaign.rounds, quorum=3))


@pytest.fixture
def file(tmp_path: Path, site: Path, federation: Federation, campaign: CampaignConfig) -> Path:
    return write(federation.signed(campaign, now=dt.datetime.now(dt.UTC)), tmp_path / "campaign.json")


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, reason: str) -> None:
    assert cli.main(arguments) == code
    error = capsys.readouterr().err
    assert reason in error
    assert error.startswith("wardround-site: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_approve_shows_what_leaves_and_whose_keys_and_records_the_digest(
    site: Path, file: Path, federation: Federation, campaign: CampaignConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["approve", str(site), str(file), "--yes"]) == 0
    shown = capsys.readouterr().out.replace("\n", "")
    for words in ("enhancer.*", "recogniser.*", "psnr_db", "organ, lesion", campaign_digest(campaign)):
        assert words in shown
    for name, public in federation.public.items():
        assert f"site {name}" in shown
        assert public.fingerprint in shown
    for words in ("no single one", "no differential privacy", "first seen: compare by telephone", "(this site)"):
        assert words in shown
    assert "Nothing was approved here before" in shown
    assert cli.main(["approvals", str(site), "--json"]) == 0
    assert [row["digest"] for row in json.loads(capsys.readouterr().out)] == [campaign_digest(campaign)]
    assert cli.main(["revoke-approval", str(site), campaign_digest(campaign)[:8]]) == 0
    capsys.readouterr()
    assert cli.main(["approvals", str(site)]) == 0
    assert "Nothing is approved" in capsys.readouterr().out


def test_approve_tells_in_words_what_differs_from_the_last(
    site: Path, file: Path, tmp_path: Path, federation: Federation, campaign: CampaignConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    now = dt.datetime.now(dt.UTC)
    assert cli.main(["approve", str(site), str(file), "--yes"]) == 0
    federation.identities["east"] = create_identity("east")
    longer = replace(campaign, rounds=replace(campaign.rounds, rounds=9), learn=LearnConfig(kind="umtl"))
    again = write(federation.signed(longer, now=now), tmp_path / "again.json")
    capsys.readouterr()
    assert cli.main(["approve", str(site), str(again), "--yes"]) == 0
    shown = capsys.readouterr().out
    assert "Against what was approved last (campaign tiny):" in shown
    for line in (
        "site east takes part now",
        "may leave now, and did not before: feature_rank, loss_diagnosis",
        "rounds.rounds: was 2, is 9",
        "learn.kind: was supervised, is umtl",
        "Keys of east are pinned with this approval",
    ):
        assert line in shown


def test_pause_resume_and_rules(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pause", str(site)]) == 0
    assert load_site(site / "site.json").paused
    fails(capsys, ["pause", str(site)], 2, "is paused already")
    assert cli.main(["resume", str(site)]) == 0
    assert not load_site(site / "site.json").paused
    fails(capsys, ["resume", str(site)], 2, "is not paused")
    assert cli.main(["rules", str(site), "minimum_cohort=5", "quantiles=false", "epsilon_total=8"]) == 0
    capsys.readouterr()
    assert cli.main(["rules", str(site), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["minimum_cohort"], told["quantiles"], told["epsilon_total"]) == (5, False, 8.0)
    fails(capsys, ["rules", str(site), "minimum_kohort=1"], 2, "expected KEY=VALUE with a rule as key")
    fails(capsys, ["rules", str(site), "minimum_cohort=1"], 2, "minimum_cohort must be 2 or more")
    assert load_site(site / "site.json").rules == SiteRules(minimum_cohort=5, quantiles=False, epsilon_total=8.0)


def test_leaving_withdraws_everything_for_good_and_lists_what_stays_elsewhere(
    site: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["approve", str(site), str(file), "--yes"]) == 0
    fails(capsys, ["leave", str(site)], 2, "give --yes to leave")
    assert load_site(site / "site.json").approved
    assert cli.main(["leave", str(site), "--yes"]) == 0
    said = capsys.readouterr().out
    assert "campaign tiny: no updates left this site" in said
    assert "cannot be taken back" in said
    setup = load_site(site / "site.json")
    assert (setup.approved, setup.manifests, setup.paused) == ({}, {}, True)
    fails(capsys, ["approve", str(site), str(file), "--yes"], 3, "has left the federation")
    fails(capsys, ["resume", str(site)], 2, "cannot be undone")
    fails(capsys, ["run", str(site)], 3, "has left the federation")
    fails(capsys, ["leave", str(site), "--yes"], 2, "has left already")


def test_approve_without_a_yes_approves_nothing(
    site: Path, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(capsys, ["approve", str(site), str(file)], 2, "give --yes")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, code in (("", 3), ("y", 3), ("yes", 0)):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert cli.main(["approve", str(site), str(file)]) == code
        assert ("nothing was approved" in capsys.readouterr().err) == (code == 3)
        assert len(list((site / "approvals").glob("*.approved"))) == (code == 0)


def test_ingest_of_a_wrong_folder_says_that_it_took_nothing(
    tmp_path: Path, site: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "letter.txt").write_text("no image")
    assert cli.main(["ingest", str(site), str(tmp_path / "wrong"), "--campaign", str(file)]) == 0
    assert "Nothing in this folder was taken" in capsys.readouterr().out


def test_reasons_and_exit_codes(site: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["status", str(tmp_path)], 2, "wardround-site init")
    fails(capsys, ["approve", str(site), str(tmp_path / "none.json"), "--yes"], 2, "ask the coordinator")
    fails(capsys, ["ingest", str(site), str(tmp_path / "none"), "--campaign", str(file)], 2, "does not exist")
    source = ["ingest", str(site), str(tmp_path), "--campaign", str(file)]
    fails(capsys, [*source, "--masks", "organ"], 2, "NAME=VALUE")
    fails(capsys, [*source, "--masks", "organ=one"], 2, "whole number")
    (tmp_path / "labels.json").write_text("[1]")
    fails(capsys, [*source, "--labels", str(tmp_path / "labels.json")], 2, "expected JSON")
    (site / "key").chmod(0o640)
    fails(capsys, ["run", str(site)], 3, "chmod 600")


def test_wrong_use_is_two(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["dance"], ["init"], ["run"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
    capsys.readouterr()


def test_debug_shows_where(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="wardround-site init"):
        cli.main(["--debug", "status", str(tmp_path)])


def test_an_unforeseen_error_has_no_traceback(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Path) -> None:
        raise RuntimeError("name of a patient")

    monkeypatch.setattr("client.folder.read", broken)
    fails(capsys, ["status", str(site)], 1, "internal error (RuntimeError)")


def test_check_says_what_is_missing_and_costs_the_first_code(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(site)]) == 4  # keys and authority hold; nobody serves
    printed = capsys.readouterr()
    assert printed.err.startswith("wardround-site: not ready: coordinator: ")
    assert printed.err.count("\n") == 1
    table = " ".join(printed.out.split())
    for words in ("mode 0600", "3649 days", "does not answer", "wardround-site ingest", "nothing is approved"):
        assert words in table


def test_status_of_a_site_that_does_not_run(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(site), "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert (state["site"], state["running"], state["processes"], state["approved"]) == ("north", False, {}, {})
    assert cli.main(["status", str(site)]) == 0
    assert "no; start it with: wardround-site run" in capsys.readouterr().out


def test_labels_from_a_file_give_way_to_arguments(tmp_path: Path) -> None:
    (tmp_path / "site.json").write_text(
        json.dumps({"name": "n", "mask_codes": {"organ": 1, "lesion": 2}, "diagnosis_codes": {"tumour": "lesion"}})
    )
    arguments = cli._parser().parse_args(
        ["ingest", "d", "s", "--campaign", "c", "--labels", str(tmp_path / "site.json"), "--masks", "lesion=7"]
    )
    assert cli._labels(arguments) == ({"organ": 1, "lesion": 7}, {"tumour": "lesion"})
