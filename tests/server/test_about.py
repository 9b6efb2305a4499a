"""about.json: what ran is written at the time, resumed runs keep their sites, damage is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.about import add_site, read_about, write_about
from shared.config import CampaignConfig, campaign_digest
from shared.errors import DataError


def test_run_tells_digest_versions_and_the_sites_that_joined(tmp_path: Path, campaign: CampaignConfig) -> None:
    write_about(tmp_path, campaign)
    add_site(tmp_path, "north", {"patients": 4})
    add_site(tmp_path, "coast", {"patients": 7})
    write_about(tmp_path, campaign)  # resumed
    about = read_about(tmp_path)
    assert about["config_digest"] == campaign_digest(campaign)
    assert about["versions"].keys() >= {"python", "numpy", "torch"}
    assert about["sites"] == {"north": {"patients": 4}, "coast": {"patients": 7}}


def test_site_that_joins_again_is_counted_once(tmp_path: Path, campaign: CampaignConfig) -> None:
    write_about(tmp_path, campaign)
    add_site(tmp_path, "north", {"patients": 4})
    add_site(tmp_path, "north", {"patients": 5})
    assert read_about(tmp_path)["sites"] == {"north": {"patients": 5}}


def test_run_without_the_file_has_no_sites(tmp_path: Path) -> None:
    assert read_about(tmp_path) == {"sites": {}}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"sites": 3}'])
def test_damaged_file_is_refused_with_the_way_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "about.json").write_text(text)
    with pytest.raises(DataError, match="delete it"):
        read_about(tmp_path)
