"""Approvals: deny by default, and bundles that try to bring something along."""

from __future__ import annotations

import datetime as dt
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from client import approvals
from shared.config import CampaignConfig, campaign_digest, load_campaign
from shared.errors import ConfigError, RefusedError

NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
DIGEST = "ab" * 32


def bundle(files: dict[str, str] | None = None, **more: str) -> bytes:
    """What `flwr run` makes of server/bundle.py's folder: three files in a zip."""
    content = {
        "pyproject.toml": "[project]\nname = 'wardround-campaign'\n",
        "manifest.json": json.dumps({"config_digest": DIGEST, "wardround": "0.1.0"}),
        ".info/CONTENT": "pyproject.toml,00,8",
    }
    content = content if files is None else files
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in {**content, **more}.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def test_nothing_is_approved_by_default(tmp_path: Path) -> None:
    assert approvals.approvals(tmp_path) == ()
    assert approvals.approved_files(tmp_path / "not-even-a-folder") == {}
    with pytest.raises(RefusedError, match="not approved here"):
        approvals.check_bundle(bundle(), frozenset())


def test_an_approved_campaign_passes_and_no_other(tmp_path: Path, campaign: CampaignConfig) -> None:
    given = approvals.approve(tmp_path, campaign, NOW)
    assert given.digest == campaign_digest(campaign)
    kept = load_campaign(approvals.approved_files(tmp_path)[given.digest])
    assert (kept, campaign_digest(kept)) == (campaign, given.digest)
    assert approvals.check_bundle(bundle(), frozenset({DIGEST})) == DIGEST
    other = campaign_digest(replace(campaign, seed=1))
    assert other not in approvals.approved_files(tmp_path)
    with pytest.raises(RefusedError, match=f"campaign {DIGEST[:12]} is not approved here"):
        approvals.check_bundle(bundle(), frozenset({given.digest}))


def test_approving_twice_keeps_the_first_date(tmp_path: Path, campaign: CampaignConfig) -> None:
    first = approvals.approve(tmp_path, campaign, NOW)
    assert approvals.approve(tmp_path, campaign, NOW + dt.timedelta(days=1)) == first


def test_a_revoked_campaign_is_refused_again(tmp_path: Path, campaign: CampaignConfig) -> None:
    given = approvals.approve(tmp_path, campaign, NOW)
    for digest in ("", given.digest[:7], "00000000"):
        with pytest.raises(ConfigError, match="no approval"):
            approvals.revoke(tmp_path, digest)
    assert approvals.approved_files(tmp_path)
    assert approvals.revoke(tmp_path, given.digest[:8]) == given
    assert approvals.approved_files(tmp_path) == {}


def test_an_approval_killed_half_way_does_not_count(tmp_path: Path, campaign: CampaignConfig) -> None:
    given = approvals.approve(tmp_path, campaign, NOW)
    (tmp_path / f"{given.digest}.approved").unlink()  # written last
    assert approvals.approvals(tmp_path) == ()


@pytest.mark.parametrize("change", ["edit", "swap", "remove", "garbage"])
def test_a_copy_changed_after_its_approval_stops_everything(
    tmp_path: Path, campaign: CampaignConfig, change: str
) -> None:
    given = approvals.approve(tmp_path, campaign, NOW)
    if change == "edit":
        given.file.write_text(given.file.read_text().replace('"seed": 0', '"seed": 1'))
    elif change == "swap":
        other = approvals.approve(tmp_path, replace(campaign, seed=1), NOW)
        given.file.write_text(other.file.read_text())
    elif change == "remove":
        given.file.unlink()
    else:
        given.file.write_text("{")
    with pytest.raises(RefusedError, match="was changed after it was given"):
        approvals.approved_files(tmp_path)


@pytest.mark.parametrize(
    "name", ["client/app.py", "client/__init__.py", "server/app.py", "x.so", "manifest.json.py", "../up", "LICENSE"]
)
def test_a_bundle_with_anything_beside_its_manifest_is_refused(name: str) -> None:
    with pytest.raises(RefusedError, match="no code is taken from outside"):
        approvals.check_bundle(bundle(**{name: "import os"}), frozenset({DIGEST}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_bundle_with_a_second_file_of_the_same_name_is_refused() -> None:
    """Readers differ in which of the two they take."""
    buffer = io.BytesIO(bundle())
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("manifest.json", json.dumps({"config_digest": "cd" * 32}))
    with pytest.raises(RefusedError, match="no code is taken from outside"):
        approvals.check_bundle(buffer.getvalue(), frozenset({DIGEST, "cd" * 32}))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a zip",
        bundle()[:-30],
        bundle(**{"manifest.json": "[]"}),
        bundle(**{"manifest.json": "{}"}),
        bundle(**{"manifest.json": "{"}),
        bundle(**{"manifest.json": '{"config_digest": 7}'}),
        bundle(**{"manifest.json": '{"config_digest": "../../etc/passwd"}'}),
        bundle(**{"manifest.json": " " * 5000}),
        bundle(**{"manifest.json": "\x00"}),
    ],
)
def test_what_is_no_manifest_is_refused(content: bytes) -> None:
    with pytest.raises(RefusedError, match="not a campaign manifest"):
        approvals.check_bundle(content, frozenset({DIGEST}))


def test_a_huge_bundle_is_not_even_opened() -> None:
    with pytest.raises(RefusedError, match="takes at most"):
        approvals.check_bundle(b"\0" * (approvals.MAX_BUNDLE + 1), frozenset({DIGEST}))


def test_a_changed_approval_can_be_revoked_and_given_again(tmp_path: Path, campaign: CampaignConfig) -> None:
    given = approvals.approve(tmp_path, campaign, NOW)
    given.file.write_text(given.file.read_text().replace('"seed": ', '"seed": 1'))
    (tmp_path / f"{given.digest}.approved").write_bytes(b"\xff\xfe")
    with pytest.raises(RefusedError, match=f"revoke-approval DIR {given.digest[:12]}"):
        approvals.approvals(tmp_path)
    approvals.revoke(tmp_path, given.digest)
    assert approvals.approve(tmp_path, campaign, NOW) == given
