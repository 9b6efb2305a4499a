"""A release is verified in order, put in force whole or not at all, and never older than what was here; each refusal
says why and changes nothing."""

from __future__ import annotations

import datetime as dt
import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client import folder
from client.folder import SiteFolder
from client.releases import drop_personal, in_force, install, installed, keep_personal, releases, rollback, verified
from shared.config import CampaignConfig, EnhancerConfig
from shared.errors import ConfigError, DataError, RefusedError, WardroundError
from shared.reference import Reference, to_bytes
from shared.release import LIMITS, write_release
from shared.trust.certificates import Pair
from shared.weights import to_arrays
from tests.client.release_files import NOW, a_release, authority, released, site_of, weights_of

LATER = NOW + dt.timedelta(days=1)


@pytest.fixture(scope="module")
def ours() -> Pair:
    return authority()


@pytest.fixture
def site(tmp_path: Path, ours: Pair) -> SiteFolder:
    return site_of(tmp_path / "site", ours)


@pytest.fixture
def v1(tmp_path: Path, campaign: CampaignConfig, ours: Pair) -> Path:
    return released(tmp_path / "demo-v1.release", campaign, ours)


@pytest.fixture
def v2(tmp_path: Path, campaign: CampaignConfig, ours: Pair) -> Path:
    return released(tmp_path / "demo-v2.release", campaign, ours, version=2)


def files_of(site: SiteFolder) -> dict[str, str]:
    """Every file under releases, by content; the lock and leftovers aside, which are never read."""
    home = site.folder / "releases"
    paths = [path for path in home.rglob("*") if path.is_file() and "/." not in str(path.relative_to(site.folder))]
    return {str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


def refused(site: SiteFolder, path: Path, kind: type[WardroundError], reason: str) -> None:
    before = files_of(site)
    with pytest.raises(kind, match=reason) as caught:
        install(site, path, LATER)
    assert "\n" not in str(caught.value)
    assert str(path.parent) not in str(caught.value)
    assert files_of(site) == before
    assert not list((site.folder / "releases").rglob(".partial-*"))


# ------------------------------------------------------------------------------------------- installing


def test_an_installed_release_gives_the_very_weights_that_were_signed(
    site: SiteFolder, v1: Path, campaign: CampaignConfig
) -> None:
    one = install(site, v1, NOW)
    expected = weights_of(campaign)
    arrays = to_arrays(one.networks())
    assert all(np.array_equal(arrays[name], expected[name]) for name in expected)
    again = installed(site)
    assert (again.digest, again.manifest, again.folder) == (one.digest, one.manifest, one.folder)
    assert (again.personal, again.reference()) == (None, None)
    assert one.folder == site.folder / "releases" / "demo" / f"v1-{one.digest[:12]}"
    assert one.digest == hashlib.sha256((one.folder / "manifest.json").read_bytes()).hexdigest()


def test_without_a_release_the_way_to_one_is_told(site: SiteFolder) -> None:
    with pytest.raises(ConfigError, match="wardround-site install DIR FILE"):
        installed(site)
    with pytest.raises(ConfigError, match="no release was in force before"):
        rollback(site, NOW)
    assert releases(site) == ()


def test_installing_what_is_in_force_writes_nothing(site: SiteFolder, v1: Path) -> None:
    first = install(site, v1, NOW)
    before = {path: path.stat().st_mtime_ns for path in (site.folder / "releases").rglob("*")}
    assert install(site, v1, LATER).digest == first.digest
    assert {path: path.stat().st_mtime_ns for path in (site.folder / "releases").rglob("*")} == before


def test_rollback_goes_back_step_by_step_and_forward_again_by_installing(
    site: SiteFolder, v1: Path, v2: Path, tmp_path: Path, campaign: CampaignConfig, ours: Pair
) -> None:
    v3 = released(tmp_path / "demo-v3.release", campaign, ours, version=3)
    for path in (v1, v2, v3):
        install(site, path, NOW)
    assert [row.version for row in releases(site) if row.current] == [3]
    assert rollback(site, LATER).manifest.version == 2
    assert rollback(site, LATER).manifest.version == 1
    assert installed(site).manifest.version == 1
    with pytest.raises(ConfigError, match="no release was in force before"):
        rollback(site, LATER)
    refused(site, v2, RefusedError, "demo v2 is older than v3, which was installed here")
    assert install(site, v3, LATER).manifest.version == 3
    assert [(row.name, row.version, row.current) for row in releases(site)] == [
        ("demo", 1, False), ("demo", 2, False), ("demo", 3, True)
    ]  # fmt: skip


def test_versions_of_another_name_are_counted_apart(
    site: SiteFolder, v2: Path, tmp_path: Path, campaign: CampaignConfig, ours: Pair
) -> None:
    install(site, v2, NOW)
    other = released(tmp_path / "other-v1.release", campaign, ours, name="other")
    assert install(site, other, NOW).manifest.name == "other"
    assert rollback(site, NOW).manifest.name == "demo"


def test_reference_images_arrive_with_the_release(
    site: SiteFolder, tmp_path: Path, campaign: CampaignConfig, ours: Pair
) -> None:
    clean_NCHW = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 32, 32, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
    reference = to_bytes(Reference(clean_NCHW, clean_NCHW / 2, *masks))
    path = released(tmp_path / "r.release", campaign, ours, further={"reference.safetensors": reference})
    found = install(site, path, NOW).reference()
    assert found is not None
    assert torch.equal(found.clean_NCHW, clean_NCHW)


# ------------------------------------------------------------------------------------------- refusals


def test_a_changed_manifest_has_the_wrong_signature(
    site: SiteFolder, v1: Path, tmp_path: Path, campaign: CampaignConfig, ours: Pair
) -> None:
    install(site, v1, NOW)
    release = a_release(campaign, ours, version=2)
    manifest = replace(release.manifest, intended_use="Everything.")
    write_release(tmp_path / "f.release", replace(release, manifest=manifest, manifest_bytes=manifest.to_json()))
    refused(site, tmp_path / "f.release", RefusedError, "the signature is wrong")


def test_a_release_of_another_federation_is_refused(
    site: SiteFolder, v1: Path, tmp_path: Path, campaign: CampaignConfig, ours: Pair
) -> None:
    install(site, v1, NOW)
    theirs = authority()  # of the same name
    refused(site, released(tmp_path / "f.release", campaign, theirs, version=2), RefusedError, "another federation")
    claims = released(tmp_path / "g.release", campaign, theirs, version=2,
                      federation=dict(a_release(campaign, ours).manifest.federation))  # fmt: skip
    refused(site, claims, RefusedError, "another federation")
    mixed = released(tmp_path / "h.release", campaign, ours, version=2,
                     federation=dict(a_release(campaign, theirs).manifest.federation))  # fmt: skip
    refused(site, mixed, RefusedError, "another federation than this site's")


def test_an_older_release_is_refused_also_after_a_rollback(site: SiteFolder, v1: Path, v2: Path) -> None:
    install(site, v2, NOW)
    refused(site, v1, RefusedError, "demo v1 is older than v2, which was installed here; to go back")


def test_weights_that_were_exchanged_are_refused(
    site: SiteFolder, v1: Path, tmp_path: Path, campaign: CampaignConfig, ours: Pair
) -> None:
    install(site, v1, NOW)
    release, other = a_release(campaign, ours, version=2), a_release(campaign, ours, version=3)
    files = {**release.files, "weights.safetensors": other.files["weights.safetensors"]}
    write_release(tmp_path / "f.release", replace(release, files=files))
    refused(site, tmp_path / "f.release", RefusedError, r"weights.safetensors .*SHA-256")


def test_weights_that_do_not_fit_the_campaigns_networks_are_refused(
    site: SiteFolder, v1: Path, tmp_path: Path, campaign: CampaignConfig, ours: Pair
) -> None:
    install(site, v1, NOW)
    wider = replace(campaign, enhance=EnhancerConfig(kind="cnn3", channels=8))
    path = released(tmp_path / "f.release", campaign, ours, version=2, arrays=weights_of(wider))
    refused(site, path, RefusedError, "another architecture than the campaign's: weights 'enhancer")
    half = {name: values.astype(np.float16) for name, values in weights_of(campaign).items()}
    path = released(tmp_path / "g.release", campaign, ours, version=2, arrays=half)
    refused(site, path, RefusedError, "another architecture .* must be float32")
    path = released(tmp_path / "h.release", campaign, ours, version=2, architecture_digest="0" * 64)
    refused(site, path, RefusedError, "another architecture: expected .*, got 000000000000; .* same version")
    path = released(tmp_path / "i.release", campaign, ours, version=2, campaign_digest="0" * 64)
    refused(site, path, RefusedError, "campaign is another than the one it was signed for")


def test_a_campaign_that_this_version_cannot_read_is_refused(
    site: SiteFolder, v1: Path, tmp_path: Path, campaign: CampaignConfig, ours: Pair
) -> None:
    install(site, v1, NOW)
    path = released(tmp_path / "f.release", campaign, ours, version=2, further={"campaign.json": b'{"fog": 1}'})
    refused(site, path, DataError, "campaign cannot be read by this version")


def test_what_is_no_release_is_too_large_or_cut_short_is_refused(
    site: SiteFolder, v1: Path, v2: Path, tmp_path: Path
) -> None:
    install(site, v1, NOW)
    (tmp_path / "text.release").write_text("hello")
    refused(site, tmp_path / "text.release", DataError, "not a release")
    refused(site, tmp_path / "none.release", ConfigError, "no release file")
    (tmp_path / "cut.release").write_bytes(v2.read_bytes()[:-100])
    refused(site, tmp_path / "cut.release", DataError, "cut short|no whole end")
    content = bytearray(v2.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "bit.release").write_bytes(content)
    refused(site, tmp_path / "bit.release", DataError, "damaged")
    with (tmp_path / "large.release").open("wb") as file:
        file.truncate(sum(LIMITS.values()) + 2**20)  # a hole: takes no room
    refused(site, tmp_path / "large.release", DataError, "at most")


def test_the_first_check_that_fails_is_the_one_that_is_told(
    site: SiteFolder, v2: Path, tmp_path: Path, campaign: CampaignConfig, ours: Pair
) -> None:
    """Wrong in all five; mended one by one, in the order of the checks."""
    install(site, v2, NOW)
    theirs = authority()
    wider = weights_of(replace(campaign, enhance=EnhancerConfig(kind="cnn3", channels=8)))
    exchanged = {"weights.safetensors": b"not these"}

    def broken(by: Pair, version: int, *, sign: bool, swap: bool) -> Path:
        release = a_release(campaign, by, version=version, arrays=wider)
        release = replace(release, files={**release.files, **(exchanged if swap else {})})
        release = release if sign else replace(release, signature=bytes(104))
        write_release(tmp_path / "b.release", release)
        return tmp_path / "b.release"

    refused(site, broken(theirs, 1, sign=False, swap=True), RefusedError, "signature is wrong")
    refused(site, broken(theirs, 1, sign=True, swap=True), RefusedError, "another federation")
    refused(site, broken(ours, 1, sign=True, swap=True), RefusedError, "is older than")
    refused(site, broken(ours, 2, sign=True, swap=True), RefusedError, "SHA-256")
    refused(site, broken(ours, 2, sign=True, swap=False), RefusedError, "another architecture")


# ------------------------------------------------------------------------------------------- dying


class Killed(BaseException):
    """What no `except OSError` and no clean-up of ours catches."""


CALLS = ("replace", "fsync", "open", "mkdir")


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, BaseException], list[int]]:
    """Let the n-th call into the file system raise; the list counts calls."""

    def arm(at: int, error: BaseException) -> list[int]:
        count = [0]
        for name in CALLS:
            real = getattr(os, name) if name != "fsync" else lambda _: None  # a test outlives no power cut

            def call(*args: Any, real: Callable[..., Any] = real, **more: Any) -> Any:
                count[0] += 1
                if count[0] == at:
                    raise error
                return real(*args, **more)

            monkeypatch.setattr(os, name, call)
        return count

    return arm


def calls_of_an_install(site: SiteFolder, path: Path, dying: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    count = dying(-1, Killed())
    install(site, path, NOW)
    monkeypatch.undo()
    return int(count[0])


def like(site: SiteFolder, name: str) -> SiteFolder:
    """A copy of a site's folder."""
    target = site.folder.with_name(name)
    shutil.copytree(site.folder, target)
    return folder.read(target)


def test_a_program_killed_at_any_call_leaves_the_former_release_in_force_or_the_new_one_whole(
    site: SiteFolder, v1: Path, v2: Path, dying: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, v1, NOW)
    calls = calls_of_an_install(like(site, "counted"), v2, dying, monkeypatch)
    assert calls > 10
    for at in range(1, calls + 1):
        one = like(site, f"site{at}")
        dying(at, Killed())
        with pytest.raises(Killed):
            install(one, v2, LATER)
        monkeypatch.undo()
        version = 1 if at <= calls - 2 else 2  # the last two flush the folder, after the rename
        assert installed(one).manifest.version == version
        assert {row.version for row in releases(one)} == {1, version}  # nothing half-written is in a list
        if at % 5 == 0 or at > calls - 3:  # what is in force is whole, and the next try succeeds whatever lies there
            installed(one).networks()
            assert install(one, v2, LATER).manifest.version == 2
            assert not list((one.folder / "releases").rglob(".partial-*"))


def test_a_full_disk_is_one_line_and_leaves_the_former_release_in_force(
    site: SiteFolder, v1: Path, v2: Path, dying: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, v1, NOW)
    calls = calls_of_an_install(like(site, "counted"), v2, dying, monkeypatch)
    for at in range(2, calls + 1, 3):  # the first makes the folder, which is there
        one = like(site, f"site{at}")
        dying(at, OSError(errno.ENOSPC, "No space left on device"))
        told, version = "the release could not be written (is the disk full?)", 1
        try:
            version = install(one, v2, LATER).manifest.version
        except DataError as error:
            told = str(error)
        assert "\n" not in told
        assert told.startswith("the release could not be written (is the disk full?)") or at < 5
        monkeypatch.undo()
        assert version == (1 if at <= calls - 2 else 2)
        assert installed(one).manifest.version == version
        installed(one).networks()
        assert not list((one.folder / "releases").rglob(".partial-*"))


@pytest.mark.slow
def test_a_killed_process_frees_the_lock_and_leaves_nothing_in_force(
    site: SiteFolder, v1: Path, tmp_path: Path
) -> None:
    code = (
        "import os, sys, signal, datetime as dt; from pathlib import Path; from client import folder, releases\n"
        "real = os.replace\n"
        "def die(a, b): real(a, b) if 'current.json' not in str(b) else os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.replace = die\n"
        f"releases.install(folder.read(Path(sys.argv[1])), Path(sys.argv[2]), dt.datetime({NOW.year}, {NOW.month}, "
        f"{NOW.day}, tzinfo=dt.UTC))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(site.folder), str(v1)], check=False)
    assert done.returncode == -9
    with pytest.raises(ConfigError, match="no release is installed"):
        installed(site)
    assert install(site, v1, NOW).manifest.version == 1


def test_two_installs_at_once_are_refused_in_words(site: SiteFolder, v1: Path, v2: Path) -> None:
    install(site, v1, NOW)
    with (site.folder / "releases" / ".lock").open("r+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        refused(site, v2, DataError, "another install or rollback is at work")
        with pytest.raises(DataError, match="another install or rollback"):
            rollback(site, NOW)
    assert install(site, v2, NOW).manifest.version == 2


def test_a_file_that_was_damaged_on_the_disk_is_told_and_mended_by_installing_again(site: SiteFolder, v1: Path) -> None:
    one = install(site, v1, NOW)
    weights = one.folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DataError, match="is damaged on this disk; install its file again"):
        installed(site).networks()
    install(site, v1, LATER).networks()


def test_an_older_release_that_was_damaged_is_mended_and_what_is_in_force_stays(
    site: SiteFolder, v1: Path, v2: Path, tmp_path: Path, campaign: CampaignConfig, ours: Pair
) -> None:
    one, two = install(site, v1, NOW), install(site, v2, NOW)
    refused(site, v1, RefusedError, "older than v2")  # nothing to mend
    for name in ("weights.safetensors", "manifest.json", "card.html"):
        before = files_of(site)
        (one.folder / name).write_bytes(b"damaged")
        other = released(tmp_path / "other.release", campaign, ours, made_at="2020-01-01T00:00:00+00:00")
        refused(site, other, RefusedError, "older than v2")  # of this version, and not the one that was here
        mended = install(site, v1, LATER)
        assert (mended.digest, in_force(site, mended), in_force(site, two)) == (one.digest, False, True)
        assert files_of(site) == before
    assert rollback(site, LATER).digest == one.digest
    shutil.rmtree(one.folder)
    assert in_force(site, install(site, v1, LATER))


def test_a_damaged_file_that_could_not_be_mended_is_told(
    site: SiteFolder, v1: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = install(site, v1, NOW)
    (one.folder / "weights.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr("client.releases.write_atomically", full)
    with pytest.raises(DataError, match="could not be written"):
        install(site, v1, LATER)
    monkeypatch.undo()
    install(site, v1, LATER).networks()


def full(path: Path, content: bytes) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_damaged_pointer_is_told_and_never_followed_out_of_the_folder(site: SiteFolder, v1: Path) -> None:
    install(site, v1, NOW)
    pointer = site.folder / "releases" / "current.json"
    values = json.loads(pointer.read_text())
    for wrong in (
        "{",
        "[]",
        json.dumps({**values, "current": "../../etc/v1-000000000000"}),
        '{"format": 1, "current": null, "before": [], "highest": {"demo": Infinity}, "installed_at": {}}',
    ):
        pointer.write_text(wrong)
        with pytest.raises(DataError, match=r"current.json is damaged"):
            installed(site)


def test_verified_keeps_nothing(site: SiteFolder, v1: Path) -> None:
    assert verified(site, v1, now=NOW).manifest.version == 1
    assert files_of(site) == {}


# ------------------------------------------------------------------------------------------- adapted weights


RECORD = {"method": "finetune", "steps": 3, "made_at": NOW.isoformat()}


def enhancer_of(campaign: CampaignConfig, by: float) -> dict[str, Any]:
    weights = weights_of(campaign)
    return {name: values + np.float32(by) for name, values in weights.items() if name.startswith("enhancer.")}


def test_adapted_weights_lie_over_the_releases_until_they_are_dropped(
    site: SiteFolder, v1: Path, campaign: CampaignConfig
) -> None:
    one, adapted = install(site, v1, NOW), enhancer_of(campaign, 1.0)
    kept = keep_personal(one, adapted, RECORD)
    assert kept.personal is not None
    assert kept.personal["method"] == "finetune"
    again, released_ = installed(site), weights_of(campaign)
    assert again.personal == kept.personal
    arrays = to_arrays(again.networks())
    assert all(np.array_equal(arrays[name], adapted.get(name, released_[name])) for name in arrays)
    plain = to_arrays(again.networks(adapted=False))
    assert all(np.array_equal(plain[name], released_[name]) for name in plain)
    assert [row.personal for row in releases(site)] == [True]
    drop_personal(again)
    assert installed(site).personal is None
    assert sorted(path.name for path in one.folder.iterdir() if "personal" in path.name) == []
    drop_personal(installed(site))  # twice is nothing


def test_a_new_release_is_as_released_and_a_rollback_brings_the_adapted_weights_back(
    site: SiteFolder, v1: Path, v2: Path, campaign: CampaignConfig
) -> None:
    keep_personal(install(site, v1, NOW), enhancer_of(campaign, 1.0), RECORD)
    assert install(site, v2, NOW).personal is None
    assert rollback(site, NOW).personal is not None


def test_adapted_weights_that_do_not_fit_are_refused_and_the_former_stay(
    site: SiteFolder, v1: Path, campaign: CampaignConfig
) -> None:
    kept = keep_personal(install(site, v1, NOW), enhancer_of(campaign, 1.0), RECORD)
    before = files_of(site)
    for wrong in ({"enhancer.fog": np.zeros(1, np.float32)}, {**enhancer_of(campaign, np.nan)}):
        with pytest.raises(RefusedError, match="another architecture"):
            keep_personal(kept, wrong, RECORD)
    assert files_of(site) == before


@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "")])
def test_an_adaptation_that_dies_leaves_the_former_one_whole(
    site: SiteFolder, v1: Path, campaign: CampaignConfig, dying: Any, monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:  # fmt: skip
    first = keep_personal(install(site, v1, NOW), enhancer_of(campaign, 1.0), RECORD)
    for at in (1, 2, 3, 4, 5):
        dying(at, error)
        with pytest.raises((Killed, DataError)):
            keep_personal(first, enhancer_of(campaign, float(at + 1)), RECORD)
        monkeypatch.undo()
        now = installed(site)
        arrays = to_arrays(now.networks())
        wanted = enhancer_of(campaign, 1.0 if now.personal == first.personal else at + 1)
        assert all(np.array_equal(arrays[name], wanted[name]) for name in wanted)
        first = keep_personal(first, enhancer_of(campaign, 1.0), RECORD)
    assert len(list(first.folder.glob("personal-*"))) == 1


@pytest.mark.parametrize("named", ["../../../../etc/passwd", "a\0b", 7])
def test_a_record_that_names_no_digest_is_told_and_never_followed(
    site: SiteFolder, v1: Path, campaign: CampaignConfig, named: object
) -> None:
    kept = keep_personal(install(site, v1, NOW), enhancer_of(campaign, 1.0), RECORD)
    (kept.folder / "personal.json").write_text(json.dumps({"weights_sha256": named}))
    with pytest.raises(DataError, match="the record of the adaptation is damaged"):
        installed(site)


def test_a_site_without_its_authority_is_told_so(site: SiteFolder, v1: Path) -> None:
    site.authority.unlink()
    with pytest.raises(DataError, match=r"ca.crt of the site's folder cannot be read"):
        install(site, v1, NOW)
