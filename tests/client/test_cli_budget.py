"""`wardround-site budget`: what was spent, for people and programs; a damaged ledger is told in one line."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path

import pytest

from client import cli
from client.privacy import charge
from client.site import load_site
from shared.config import CampaignConfig, PrivacyConfig
from shared.privacy.ledger import LEDGER
from shared.reach import free_port
from shared.trust import certificates


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    authority = certificates.create_authority("test", dt.datetime.now(dt.UTC))
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    folder, address = tmp_path / "site", f"127.0.0.1:{free_port()}"
    arguments = ["init", str(folder), "--name", "north", "--coordinator", address, "--ca", str(tmp_path / "ca.crt")]
    assert cli.main(arguments) == 0
    capsys.readouterr()
    return folder


def test_a_site_sees_what_each_campaign_and_all_have_spent(
    site: Path, campaign: CampaignConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["budget", str(site)]) == 0
    assert "Nothing was spent" in capsys.readouterr().out
    private = replace(campaign, privacy=PrivacyConfig(kind="patient"))
    setup = load_site(site / "site.json")
    assert not setup.simulation
    charge(setup, private, 1, 30)
    charge(setup, private, 2, 30)
    (site / "rules.json").write_text(json.dumps({"epsilon_total": 20.0}))
    assert cli.main(["budget", str(site)]) == 0
    shown = capsys.readouterr().out
    for words in ("tiny", "a patient", "of 20 that rules.json allows", "delta 1e-05"):
        assert words in shown
    assert cli.main(["budget", str(site), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["campaigns"][0]["attempts"] == 2
    assert 0 < told["campaigns"][0]["spent"] == told["total"] <= 8.0
    assert told["most"] == 20.0


def test_a_damaged_ledger_is_told_in_one_line_with_the_way_out(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site / LEDGER).write_text("{}\n")
    assert cli.main(["budget", str(site)]) == 5
    error = capsys.readouterr().err
    assert error.startswith("wardround-site: line 1 of ledger.jsonl is damaged")
    assert error.count("\n") == 1
    assert "backup" in error
