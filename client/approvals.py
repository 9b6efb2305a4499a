"""What may run at this site: campaigns whose signed manifest its operator has approved. Nothing is by default.

In: a manifest (shared/manifest.py), or the bundle that Flower delivers. Out: an approval, or a refusal. The manifest is
kept as it was signed, `approvals/<config digest>.json`, so that the site trains by its own copy; `<digest>.approved`
beside it, written last, says when and of which manifest. What is withdrawn is kept in `withdrawn/`, for later
comparison. A bundle is checked as bytes and never unpacked; one with anything in it beside a manifest is refused,
because code that is not there cannot run.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.checkpoint import write_atomically
from shared.config import campaign_digest, load_campaign
from shared.errors import ConfigError, DataError, RefusedError, WardroundError
from shared.manifest import SignedManifest, read_manifest

BUNDLE_FILES = frozenset({"pyproject.toml", "manifest.json", ".info/CONTENT"})
MAX_BUNDLE = 65_536  # bytes; ours are below 2 kB
MAX_MANIFEST = 4096
WITHDRAWN = "withdrawn"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Approval:
    """One approved campaign."""

    digest: str
    """Of the campaign."""
    campaign: str
    approved_at: str
    file: Path
    manifest: str = ""
    """Digest of the signed manifest; empty for an approval of the older form, which counts for nothing."""


def approve(folder: Path, signed: SignedManifest, now: dt.datetime) -> Approval:
    """Record that the campaign of this manifest may run here, in place of an earlier manifest of the same campaign.
    Approving the same again keeps the first date. What must hold before is asked in client/approving.py."""
    digest = signed.manifest.config_digest
    dated = folder / f"{digest}.approved"
    before = next((one for one in _all(folder) if one.digest == digest), None)
    if before is None or before.manifest != signed.digest:
        dated.unlink(missing_ok=True)
        write_atomically(folder / f"{digest}.json", signed.to_json())
        note = {"approved_at": now.isoformat(timespec="seconds"), "manifest": signed.digest}
        write_atomically(dated, json.dumps(note).encode())  # last: without it the approval does not count
    return _read(dated)


def revoke(folder: Path, digest: str) -> Approval:
    """Withdraw an approval; a prefix of eight characters or more names it. Takes effect at the next message.

    One that was changed after it was given can be withdrawn too: that is the way out of it.
    """
    matches = [dated for dated in _dated(folder) if len(digest) >= 8 and dated.stem.startswith(digest)]
    if len(matches) != 1:
        raise ConfigError(f"no approval {digest!r} (name it by 8 or more characters); see: wardround-site approvals")
    dated, file = matches[0], matches[0].with_suffix(".json")
    try:
        gone = _read(dated)
    except RefusedError:
        gone = Approval(dated.stem, "a campaign that was changed", "", file)
    dated.unlink()
    if gone.manifest:
        (folder / WITHDRAWN).mkdir(mode=0o700, exist_ok=True)
        file.replace(folder / WITHDRAWN / file.name)
    file.unlink(missing_ok=True)
    return gone


def approvals(folder: Path) -> tuple[Approval, ...]:
    """All approvals, oldest first, those of the older form among them; empty when the folder is."""
    return tuple(sorted(map(_read, _dated(folder)), key=lambda approval: (approval.approved_at, approval.digest)))


def approved_files(folder: Path) -> dict[str, Path]:
    """Digest of each approved campaign -> the site's own copy of it."""
    return {approval.digest: approval.file for approval in approvals(folder) if approval.manifest}


def approved_manifests(folder: Path) -> dict[str, SignedManifest]:
    """Digest of each approved campaign -> the manifest that was approved."""
    return {digest: read_manifest(file) for digest, file in approved_files(folder).items()}


def last_approved(folder: Path, name: str) -> SignedManifest | None:
    """What the operator has said yes to before: the last campaign of this name, else the last one at all; withdrawn
    ones count. None where there was none."""
    kept = [read_manifest(one.file) for one in _all(folder) if one.manifest]
    for path in sorted((folder / WITHDRAWN).glob("*.json"), key=lambda path: path.stat().st_mtime):
        try:
            kept.insert(0, read_manifest(path))
        except WardroundError:
            continue  # a damaged one says nothing about what is asked now
    same = [one for one in kept if one.campaign.name == name] or kept
    return same[-1] if same else None


def _all(folder: Path) -> list[Approval]:
    """Those that can be read, oldest first."""
    found = []
    for dated in _dated(folder):
        try:
            found.append(_read(dated))
        except RefusedError:
            continue
    return sorted(found, key=lambda one: one.approved_at)


def _dated(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.approved") if _DIGEST.fullmatch(path.stem)]


def _read(dated: Path) -> Approval:
    """Raises RefusedError when the copy is not what its digests say: someone has edited it since."""
    path = dated.with_suffix(".json")
    changed = RefusedError(
        f"approval {dated.stem[:12]} was changed after it was given; "
        f"wardround-site revoke-approval DIR {dated.stem[:12]}, then approve again"
    )
    try:
        text = dated.read_text().strip()
        if _is_date(text):
            return _of_older_form(dated.stem, path, text)
        note = json.loads(text)
        signed = read_manifest(path)
        when, digest = str(note["approved_at"]), str(note["manifest"])
    except (WardroundError, OSError, ValueError, KeyError, TypeError, RecursionError):
        raise changed from None
    if campaign_digest(signed.campaign) != dated.stem or signed.digest != digest:
        raise changed
    return Approval(dated.stem, signed.campaign.name, when, path, digest)


def _of_older_form(digest: str, path: Path, when: str) -> Approval:
    """Up to version 0.1 a bare campaign was approved; without a manifest it is not enough any more."""
    campaign = load_campaign(path)
    if campaign_digest(campaign) != digest:
        raise ValueError(digest)
    return Approval(digest, campaign.name, when, path)


def _is_date(text: str) -> bool:
    try:
        dt.datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


# ------------------------------------------------------------------------------------------- bundles


def check_bundle(bundle: bytes, given: Mapping[str, str]) -> str:
    """The campaign digest that a delivered bundle stands for; raises RefusedError, in this order, unless it is

    (1) small and a readable archive   (2) free of any file but a manifest
    (3) naming a campaign and its manifest by digest    (4) one that is approved at this site, under that manifest.

    `given`: digest of each approved campaign -> of its manifest, "" for an approval of the older form.
    """
    # (1)
    if len(bundle) > MAX_BUNDLE:
        raise RefusedError(f"bundle of {len(bundle)} bytes refused: a manifest takes at most {MAX_BUNDLE}")
    try:
        digest, manifest = _digests(bundle)
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, NotImplementedError, RuntimeError, DataError):
        raise RefusedError("bundle refused: it is not a campaign manifest of wardround-coordinator") from None
    # (4)
    if digest not in given:
        raise RefusedError(f"campaign {digest[:12]} is not approved here; its operator decides: wardround-site approve")
    if not given[digest]:
        raise RefusedError(
            f"campaign {digest[:12]} was approved in an older form, without a signed manifest; its operator decides "
            "anew: wardround-site approve DIR FILE, with the coordinator's signed file"
        )
    if manifest != given[digest]:
        raise RefusedError(
            f"campaign {digest[:12]} runs under manifest {manifest[:12]}, and {given[digest][:12]} is approved here; "
            "its operator decides: wardround-site approve DIR FILE, with the coordinator's present file"
        )
    return digest


def _digests(bundle: bytes) -> tuple[str, str]:
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        # (2)
        names = [entry.filename for entry in archive.infolist()]
        if set(names) != BUNDLE_FILES or len(names) != len(BUNDLE_FILES):
            raise RefusedError("bundle refused: it holds files beside its manifest, and no code is taken from outside")
        if archive.getinfo("manifest.json").file_size > MAX_MANIFEST:
            raise DataError("manifest too long")
        manifest = json.loads(archive.read("manifest.json"))
    # (3)
    digests = manifest["config_digest"], manifest["manifest_digest"]
    if not all(isinstance(digest, str) and _DIGEST.fullmatch(digest) for digest in digests):
        raise DataError("manifest without digests")
    return str(digests[0]), str(digests[1])
