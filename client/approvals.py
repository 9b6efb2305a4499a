"""What may run at this site: campaigns that its operator has approved, by digest. Nothing is approved by default.

In: a campaign file, or the bundle that Flower delivers. Out: an approval kept as `approvals/<digest>.json` (the very
agreement that was read, so that the site trains by its own copy), or a refusal. A bundle is checked as bytes and never
unpacked; one with anything in it beside a manifest is refused, because code that is not there cannot run.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from shared.config import CampaignConfig, campaign_digest, load_campaign, save_campaign
from shared.errors import ConfigError, DataError, RefusedError, WardroundError

BUNDLE_FILES = frozenset({"pyproject.toml", "manifest.json", ".info/CONTENT"})
MAX_BUNDLE = 65_536  # bytes; ours are below 2 kB
MAX_MANIFEST = 4096
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Approval:
    """One approved campaign."""

    digest: str
    campaign: str
    approved_at: str
    file: Path


def approve(folder: Path, campaign: CampaignConfig, now: dt.datetime) -> Approval:
    """Record that this exact campaign may run here. Approving it again keeps the first date."""
    digest = campaign_digest(campaign)
    path = folder / f"{digest}.json"
    dated = folder / f"{digest}.approved"
    if not dated.exists():
        partial = folder / f"{digest}.tmp"
        save_campaign(campaign, partial)
        partial.replace(path)
        dated.write_text(now.isoformat(timespec="seconds"))  # last: without it the approval does not count
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
    file.unlink(missing_ok=True)
    return gone


def approvals(folder: Path) -> tuple[Approval, ...]:
    """All approvals, oldest first; empty when the folder is."""
    return tuple(sorted(map(_read, _dated(folder)), key=lambda approval: (approval.approved_at, approval.digest)))


def _dated(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.approved") if _DIGEST.fullmatch(path.stem)]


def approved_files(folder: Path) -> dict[str, Path]:
    """Digest of each approved campaign -> the site's own copy of it."""
    return {approval.digest: approval.file for approval in approvals(folder)}


def _read(dated: Path) -> Approval:
    """Raises RefusedError when the copy is not what its digest says: someone has edited it since."""
    path = dated.with_suffix(".json")
    changed = RefusedError(
        f"approval {dated.stem[:12]} was changed after it was given; "
        f"wardround-site revoke-approval DIR {dated.stem[:12]}, then approve again"
    )
    try:
        campaign = load_campaign(path)
        approved_at = dated.read_text().strip()
    except (WardroundError, OSError, ValueError):
        raise changed from None
    if campaign_digest(campaign) != dated.stem:
        raise changed
    return Approval(dated.stem, campaign.name, approved_at, path)


def check_bundle(bundle: bytes, approved: frozenset[str]) -> str:
    """The campaign digest that a delivered bundle stands for; raises RefusedError, in this order, unless it is

    (1) small and a readable archive   (2) free of any file but a manifest
    (3) naming a campaign by digest    (4) one that is approved at this site
    """
    # (1)
    if len(bundle) > MAX_BUNDLE:
        raise RefusedError(f"bundle of {len(bundle)} bytes refused: a manifest takes at most {MAX_BUNDLE}")
    try:
        digest = _manifest_digest(bundle)
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, NotImplementedError, RuntimeError, DataError):
        raise RefusedError("bundle refused: it is not a campaign manifest of wardround-coordinator") from None
    # (4)
    if digest not in approved:
        raise RefusedError(f"campaign {digest[:12]} is not approved here; its operator decides: wardround-site approve")
    return digest


def _manifest_digest(bundle: bytes) -> str:
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        # (2)
        names = [entry.filename for entry in archive.infolist()]
        if set(names) != BUNDLE_FILES or len(names) != len(BUNDLE_FILES):
            raise RefusedError("bundle refused: it holds files beside its manifest, and no code is taken from outside")
        if archive.getinfo("manifest.json").file_size > MAX_MANIFEST:
            raise DataError("manifest too long")
        manifest = json.loads(archive.read("manifest.json"))
    # (3)
    if not isinstance(manifest["config_digest"], str) or not _DIGEST.fullmatch(manifest["config_digest"]):
        raise DataError("manifest without a digest")
    return str(manifest["config_digest"])
