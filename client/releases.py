"""A release file in, an installed release out: verified in a fixed order, put in force by one rename, and back.

releases/<name>/v<version>-<digest12>/   every release that was ever installed (client/installed.py)
releases/current.json                    which is in force, which were before, and the highest version of each name

A release takes effect when current.json is replaced, which comes last: a program that is killed at any point leaves the
former one in force. Folders whose name starts with a dot are what a killed program left behind; the next install
removes them.

Why no release is older than the highest that was ever installed, and not than the one in force: who can replay an old
release would have to wait only for a rollback. The way back is `rollback`, which takes what is here already.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from client.folder import SiteFolder
from client.installed import Installed, arrays_of, drop_personal, fitting, keep_personal, read_installed
from shared.checkpoint import write_atomically
from shared.config import CampaignConfig, build, campaign_digest
from shared.errors import ConfigError, DataError, RefusedError
from shared.files import sync
from shared.locks import exclusive, locked
from shared.trust import certificates, keystore, signing
from shared.trust.names import checked_name

if TYPE_CHECKING:
    from shared.release import ReleaseFile

__all__ = [
    "Installed",
    "Listed",
    "drop_personal",
    "in_force",
    "install",
    "installed",
    "keep_personal",
    "releases",
    "rollback",
    "verified",
]

POINTER = "current.json"
LOCK = ".lock"
FORMAT = 1
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}/v[0-9]{1,9}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Listed:
    """One release that was installed here, as a list shows it."""

    name: str
    version: int
    digest: str
    installed_at: str
    current: bool
    personal: bool
    """Whether weights adapted at this site are in force in it."""


@dataclass(frozen=True, slots=True)
class State:
    """What current.json says; a release is named by its folder, `<name>/v<version>-<digest12>`."""

    current: str | None = None
    before: tuple[str, ...] = ()
    """What a rollback goes back to, the last one first to be taken."""
    highest: Mapping[str, int] = field(default_factory=dict)
    installed_at: Mapping[str, str] = field(default_factory=dict)


def verified(site: SiteFolder, path: Path, *, now: dt.datetime | None = None, mending: bool = False) -> ReleaseFile:
    """The release in a file, or a refusal; nothing is kept. After its structure, which has to be read, in this order:

    (1) signature   (2) this federation   (3) not older than any installed of its name   (4) digests   (5) architecture

    mending: a release of the very digest that was installed here, and is damaged on this disk now, may be older.
    Raises RefusedError for these, DataError for a file that is too large, cut short or no release at all.
    """
    from shared.release import check_digests, unpack

    release = unpack(path)
    # (1)
    authority = _authority(site)
    now = now or dt.datetime.now(dt.UTC)
    signing.verify(authority, release.signer_pem, release.manifest_bytes, release.signature, now)
    # (2)
    if release.manifest.federation["authority"] != certificates.fingerprint(authority):
        raise RefusedError("the release is of another federation than this site's; ask your own coordinator for one")
    # (3)
    state, folder = _state(site), _folder_of(release)
    if not (mending and folder in state.installed_at and _differing(release, _home(site) / folder)):
        _check_version(release, state)
    # (4)
    check_digests(release)
    # (5)
    _check_architecture(release)
    return release


def install(site: SiteFolder, path: Path, now: dt.datetime) -> Installed:
    """Verify a release file and put it in force; where it is in force already, nothing is written.

    An older one that was installed here and is damaged is mended alone: what is in force stays so (`in_force` tells).

    Raises what `verified` does, and DataError where the disk is full or another install is at work; the former release
    is then still in force.
    """
    with _locked(site):
        release = verified(site, path, now=now, mending=True)
        state, folder = _state(site), _folder_of(release)
        older = release.manifest.version < state.highest.get(release.manifest.name, 0)
        try:
            _sweep(site)
            _unpack(release, _home(site) / folder)
            if state.current != folder and not older:
                _write(site, _with(state, folder, release, now))
        except OSError:
            _sweep(site)
            there = _state(site).current == folder or older
            if not there or _differing(release, _home(site) / folder):  # else only the last flush failed
                raise DataError(
                    "the release could not be written (is the disk full?); what was in force before still is"
                ) from None
        return read_installed(_home(site) / folder)


def in_force(site: SiteFolder, one: Installed) -> bool:
    """Whether this is the release in force."""
    return _state(site).current == f"{one.folder.parent.name}/{one.folder.name}"


def former(site: SiteFolder) -> Installed:
    """What a rollback would put in force; ConfigError where nothing was before."""
    before = _state(site).before
    if not before:
        raise ConfigError("no release was in force before; install one with: wardround-site install DIR FILE")
    return read_installed(_home(site) / before[-1])


def rollback(site: SiteFolder, now: dt.datetime) -> Installed:
    """Put in force what was before, with what was adapted of it; ConfigError where nothing was."""
    with _locked(site):
        one, state = former(site), _state(site)
        at = {**state.installed_at, state.before[-1]: now.isoformat(timespec="seconds")}
        try:
            _write(site, replace(state, current=state.before[-1], before=state.before[:-1], installed_at=at))
        except OSError:
            raise DataError("the disk is full or cannot be written; the release in force is as before") from None
        return one


def releases(site: SiteFolder) -> tuple[Listed, ...]:
    """Every release that is installed here, by name and version; DataError where one is damaged."""
    state = _state(site)
    rows = []
    for folder, at in state.installed_at.items():
        one = read_installed(_home(site) / folder)
        manifest, personal = one.manifest, one.personal is not None
        rows.append(Listed(manifest.name, manifest.version, one.digest, at, folder == state.current, personal))
    return tuple(sorted(rows, key=lambda row: (row.name, row.version, row.digest)))


def installed(site: SiteFolder, *, personal: bool = True) -> Installed:
    """The release in force; ConfigError where there is none, DataError where its folder is damaged."""
    state = _state(site)
    if state.current is None:
        raise ConfigError("no release is installed; install one with: wardround-site install DIR FILE")
    return read_installed(_home(site) / state.current, personal=personal)


# ------------------------------------------------------------------------------------------- checks


def _authority(site: SiteFolder) -> bytes:
    try:
        return site.authority.read_bytes()
    except OSError:
        raise DataError("ca.crt of the site's folder cannot be read; ask the coordinator for ca.crt again") from None


def _check_version(release: ReleaseFile, state: State) -> None:
    manifest = release.manifest
    highest = state.highest.get(manifest.name, 0)
    if manifest.version < highest:
        raise RefusedError(
            f"{manifest.name} v{manifest.version} is older than v{highest}, which was installed here; to go back: "
            "wardround-site rollback DIR"
        )


def _check_architecture(release: ReleaseFile) -> None:
    """That the weights fit the networks of the campaign beside them, and that both are those that were signed for."""
    from shared.weights import architecture_digest, to_arrays

    campaign, manifest = campaign_of(release), release.manifest
    networks = fitting(campaign, arrays_of(release.files["weights.safetensors"]))
    digest = architecture_digest(to_arrays(networks))
    if digest != manifest.architecture_digest:
        raise RefusedError(
            f"the release is of another architecture: expected {digest[:12]}, got {manifest.architecture_digest[:12]}; "
            "coordinator and site must run the same version of Wardround"
        )
    if campaign_digest(campaign) != manifest.campaign_digest:
        raise RefusedError(
            "the release's campaign is another than the one it was signed for; ask for the release again"
        )


def campaign_of(release: ReleaseFile) -> CampaignConfig:
    """What a release's networks are built from; DataError where this version cannot read it."""
    try:
        return build(CampaignConfig, json.loads(release.files["campaign.json"]))
    except (ValueError, RecursionError, ConfigError) as error:
        reason = str(error) if isinstance(error, ConfigError) else "it is not JSON"
        raise DataError(f"the release's campaign cannot be read by this version of Wardround: {reason}") from None


# ------------------------------------------------------------------------------------------- files


def _home(site: SiteFolder) -> Path:
    return site.folder / "releases"


def _folder_of(release: ReleaseFile) -> str:
    manifest = release.manifest
    return f"{checked_name('release name', manifest.name)}/v{manifest.version}-{manifest.digest[:12]}"


def _unpack(release: ReleaseFile, target: Path) -> None:
    """All files under their final name in one step; into a folder that is there already, those that were damaged."""
    if target.is_dir():
        for name, content in _differing(release, target).items():
            write_atomically(target / name, content)
        return
    partial = target.parent / f".partial-{target.name}"
    partial.mkdir(mode=0o700, parents=True)
    for name, content in _contents(release).items():
        write_atomically(partial / name, content)
    os.replace(partial, target)
    sync(target.parent)


def _differing(release: ReleaseFile, target: Path) -> dict[str, bytes]:
    """What is missing or damaged in the folder of this release."""

    def is_there(path: Path, content: bytes) -> bool:
        try:
            return path.read_bytes() == content
        except OSError:
            return False

    return {name: content for name, content in _contents(release).items() if not is_there(target / name, content)}


def _contents(release: ReleaseFile) -> dict[str, bytes]:
    signed = {"manifest.json": release.manifest_bytes, "manifest.sig": release.signature}
    return {**signed, "signer.pem": release.signer_pem, **release.files}


def _state(site: SiteFolder) -> State:
    try:
        values = json.loads((_home(site) / POINTER).read_bytes())
        if values["format"] != FORMAT:
            raise ValueError
        return State(
            None if values["current"] is None else _inside(values["current"]),
            tuple(_inside(folder) for folder in values["before"]),
            {str(name): int(version) for name, version in values["highest"].items()},
            {_inside(folder): str(at) for folder, at in values["installed_at"].items()},
        )
    except FileNotFoundError:
        return State()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise DataError(f"releases/{POINTER} is damaged; restore the site's folder from a backup") from None


def _inside(folder: object) -> str:
    if not isinstance(folder, str) or not _FOLDER.fullmatch(folder):
        raise ValueError
    return folder


def _with(state: State, folder: str, release: ReleaseFile, now: dt.datetime) -> State:
    manifest = release.manifest
    return State(
        folder,
        (*state.before, *([] if state.current is None else [state.current])),
        {**state.highest, manifest.name: max(manifest.version, state.highest.get(manifest.name, 0))},
        {**state.installed_at, folder: now.isoformat(timespec="seconds")},
    )


def _write(site: SiteFolder, state: State) -> None:
    content = json.dumps({"format": FORMAT, **asdict(state)}, indent=1, sort_keys=True) + "\n"
    write_atomically(_home(site) / POINTER, content.encode())


def _sweep(site: SiteFolder) -> None:
    """Remove what a killed or failed install left behind; nothing of it was ever in force."""
    for path in _home(site).rglob(".partial-*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _locked(site: SiteFolder) -> AbstractContextManager[None]:
    """One install or rollback at a time."""
    return exclusive(
        keystore.private_folder(_home(site)) / LOCK,
        busy="another install or rollback is at work at this site; wait until it ends",
        unwritable="the folder of releases cannot be written; check its permissions and the disk",
    )


def writing(site: SiteFolder) -> AbstractContextManager[None]:
    """The same lock, waited for: no install or rollback is at work inside, and none sweeps what is being written."""
    return locked(keystore.private_folder(_home(site)) / LOCK)
