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
from shared.config import CampaignConfig, campaign_digest, load_campaign, save_campaign
from shared.errors import ConfigError, RefusedError
from shared.manifest import SignedManifest
from tests.client.manifest_files import Federation

NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
DIGEST = "ab" * 32
MANIFEST = "ef" * 32
GIVEN = {DIGEST: MANIFEST}


@pytest.fixture(scope="module")
def federation() -> Federation:
    return Federation()


@pytest.fixture
def signed(federation: Federation, campaign: CampaignConfig) -> SignedManifest:
    return federation.signed(campaign)


def bundle(files: dict[str, str] | None = None, **more: str) -> bytes:
    """What `flwr run` makes of server/bundle.py's folder: three files in a zip."""
    content = {
        "pyproject.toml": "[project]\nname = 'wardround-campaign'\n",
        "manifest.json": json.dumps({"config_digest": DIGEST, "manifest_digest": MANIFEST, "wardround": "0.1.0"}),
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
        approvals.check_bundle(bundle(), {})


def test_an_approved_campaign_passes_and_no_other(
    tmp_path: Path, campaign: CampaignConfig, signed: SignedManifest
) -> None:
    given = approvals.approve(tmp_path, signed, NOW)
    assert (given.digest, given.manifest) == (campaign_digest(campaign), signed.digest)
    kept = load_campaign(approvals.approved_files(tmp_path)[given.digest])
    assert campaign_digest(kept) == given.digest
    assert approvals.approved_manifests(tmp_path)[given.digest].digest == signed.digest
    assert approvals.check_bundle(bundle(), GIVEN) == DIGEST
    other = campaign_digest(replace(campaign, seed=1))
    assert other not in approvals.approved_files(tmp_path)
    with pytest.raises(RefusedError, match=f"campaign {DIGEST[:12]} is not approved here"):
        approvals.check_bundle(bundle(), {given.digest: given.manifest})


def test_a_bundle_of_another_manifest_than_the_approved_one_is_refused() -> None:
    with pytest.raises(RefusedError, match=f"runs under manifest {MANIFEST[:12]}, and cdcdcdcdcdcd is approved here"):
        approvals.check_bundle(bundle(), {DIGEST: "cd" * 32})


def test_approving_twice_keeps_the_first_date_and_another_manifest_takes_its_place(
    tmp_path: Path, federation: Federation, campaign: CampaignConfig, signed: SignedManifest
) -> None:
    later = NOW + dt.timedelta(days=1)
    first = approvals.approve(tmp_path, signed, NOW)
    assert approvals.approve(tmp_path, signed, later) == first
    fewer = {name: one for name, one in federation.public.items() if name != "west"}
    again = approvals.approve(tmp_path, federation.signed(campaign, fewer), later)
    assert (again.digest, again.approved_at) == (first.digest, later.isoformat(timespec="seconds"))
    assert [one.manifest for one in approvals.approvals(tmp_path)] == [again.manifest] != [first.manifest]


def test_a_revoked_campaign_is_refused_again_and_kept_for_comparison(tmp_path: Path, signed: SignedManifest) -> None:
    given = approvals.approve(tmp_path, signed, NOW)
    for digest in ("", given.digest[:7], "00000000"):
        with pytest.raises(ConfigError, match="no approval"):
            approvals.revoke(tmp_path, digest)
    assert approvals.approved_files(tmp_path)
    assert approvals.revoke(tmp_path, given.digest[:8]) == given
    assert approvals.approved_files(tmp_path) == {}
    last = approvals.last_approved(tmp_path, signed.campaign.name)
    assert last is not None
    assert last.digest == signed.digest


def test_the_last_approved_is_of_the_same_name_or_the_last_at_all(
    tmp_path: Path, federation: Federation, campaign: CampaignConfig, signed: SignedManifest
) -> None:
    assert approvals.last_approved(tmp_path, "tiny") is None
    approvals.approve(tmp_path, signed, NOW)
    other = federation.signed(replace(campaign, name="other"))
    approvals.approve(tmp_path, other, NOW + dt.timedelta(days=1))
    found = [approvals.last_approved(tmp_path, name) for name in ("tiny", "other", "new")]
    assert [one.digest for one in found if one] == [signed.digest, other.digest, other.digest]


def test_an_approval_killed_half_way_does_not_count(tmp_path: Path, signed: SignedManifest) -> None:
    given = approvals.approve(tmp_path, signed, NOW)
    (tmp_path / f"{given.digest}.approved").unlink()  # written last
    assert approvals.approvals(tmp_path) == ()


def test_an_approval_of_the_older_form_counts_for_nothing_and_says_the_way_out(
    tmp_path: Path, campaign: CampaignConfig, signed: SignedManifest
) -> None:
    digest = campaign_digest(campaign)
    save_campaign(campaign, tmp_path / f"{digest}.json")
    (tmp_path / f"{digest}.approved").write_text(NOW.isoformat(timespec="seconds"))
    (older,) = approvals.approvals(tmp_path)
    assert (older.campaign, older.manifest) == ("tiny", "")
    assert approvals.approved_files(tmp_path) == approvals.approved_manifests(tmp_path) == {}
    with pytest.raises(RefusedError, match="an older form, without a signed manifest; its operator decides anew"):
        approvals.check_bundle(bundle(), {DIGEST: ""})
    assert approvals.approve(tmp_path, signed, NOW).manifest == signed.digest
    assert len(approvals.approvals(tmp_path)) == 1


@pytest.mark.parametrize("change", ["edit", "swap", "remove", "garbage"])
def test_a_copy_changed_after_its_approval_stops_everything(
    tmp_path: Path, federation: Federation, campaign: CampaignConfig, signed: SignedManifest, change: str
) -> None:
    given = approvals.approve(tmp_path, signed, NOW)
    if change == "edit":
        given.file.write_text(given.file.read_text().replace('"seed": 0', '"seed": 1'))
    elif change == "swap":
        other = approvals.approve(tmp_path, federation.signed(replace(campaign, seed=1)), NOW)
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
        approvals.check_bundle(bundle(**{name: "import os"}), GIVEN)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_bundle_with_a_second_file_of_the_same_name_is_refused() -> None:
    """Readers differ in which of the two they take."""
    buffer = io.BytesIO(bundle())
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("manifest.json", json.dumps({"config_digest": "cd" * 32, "manifest_digest": MANIFEST}))
    with pytest.raises(RefusedError, match="no code is taken from outside"):
        approvals.check_bundle(buffer.getvalue(), GIVEN | {"cd" * 32: MANIFEST})


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
        bundle(**{"manifest.json": json.dumps({"config_digest": DIGEST})}),
        bundle(**{"manifest.json": '{"config_digest": "../../etc/passwd"}'}),
        bundle(**{"manifest.json": " " * 5000}),
        bundle(**{"manifest.json": "\x00"}),
    ],
)
def test_what_is_no_manifest_is_refused(content: bytes) -> None:
    with pytest.raises(RefusedError, match="not a campaign manifest"):
        approvals.check_bundle(content, GIVEN)


def test_a_huge_bundle_is_not_even_opened() -> None:
    with pytest.raises(RefusedError, match="takes at most"):
        approvals.check_bundle(b"\0" * (approvals.MAX_BUNDLE + 1), GIVEN)


def test_a_changed_approval_can_be_revoked_and_given_again(tmp_path: Path, signed: SignedManifest) -> None:
    given = approvals.approve(tmp_path, signed, NOW)
    given.file.write_text(given.file.read_text().replace('"seed": ', '"seed": 1'))
    (tmp_path / f"{given.digest}.approved").write_bytes(b"\xff\xfe")
    with pytest.raises(RefusedError, match=f"revoke-approval DIR {given.digest[:12]}"):
        approvals.approvals(tmp_path)
    approvals.revoke(tmp_path, given.digest)
    assert approvals.approve(tmp_path, signed, NOW) == given
