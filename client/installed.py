"""An installed release's folder in, its campaign, networks and reference images out; weights adapted here lie beside.

manifest.json manifest.sig signer.pem campaign.json weights.safetensors card.html [reference.safetensors]
    as they were signed; every file is read against the manifest's SHA-256, so that a damaged disk is told
personal.json personal-<digest>.safetensors
    the record of an adaptation that is in force, and the weights that it names

Why the adapted weights' name holds their digest: weights and record cannot be replaced in one step, so the record,
replaced last, decides. A program that is killed in between leaves the former adaptation in force, whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.checkpoint import write_atomically
from shared.config import CampaignConfig, load_campaign
from shared.errors import DataError, RefusedError, WardroundError
from shared.types import Arrays
from shared.weights import UNKNOWN_TYPES

if TYPE_CHECKING:
    from shared.networks import Networks
    from shared.reference import Reference
    from shared.release import Manifest

RECORD = "personal.json"
_DIGEST = re.compile(r"[0-9a-f]{64}")
WEIGHTS_DIGEST = "weights_sha256"
"""Key of an adaptation's record: the SHA-256 of its file of weights."""


@dataclass(frozen=True, slots=True, eq=False)
class Installed:
    """One release at this site, and what the site has adapted of it."""

    manifest: Manifest
    folder: Path
    campaign: CampaignConfig
    personal: Mapping[str, Any] | None = None
    """The record of the adaptation in force."""

    @property
    def digest(self) -> str:
        """The release digest that DICOM objects and reports carry: SHA-256 of the signed manifest."""
        return self.manifest.digest

    @property
    def facts(self) -> dict[str, str | int]:
        """What an audit entry names it by."""
        return {"release": self.manifest.name, "version": self.manifest.version, "digest": self.digest}

    def networks(self, adapted: bool = True) -> Networks:
        """The campaign's networks with the release's weights, the adapted ones over them where there are; on the CPU.

        Raises DataError where a file was damaged since, RefusedError where the weights do not fit the networks.
        """
        arrays = arrays_of(self._file("weights.safetensors"))
        if adapted and self.personal is not None:
            arrays |= self._personal_arrays(self.personal)
        return fitting(self.campaign, arrays)

    def reference(self) -> Reference | None:
        """The release's reference images; None where it has none."""
        if "reference.safetensors" not in self.manifest.files:
            return None
        from shared.reference import from_bytes

        return from_bytes(self._file("reference.safetensors"))

    def _file(self, name: str) -> bytes:
        return checked_file(self.folder / name, str(self.manifest.files[name]["sha256"]))

    def _personal_arrays(self, record: Mapping[str, Any]) -> Arrays:
        digest = str(record[WEIGHTS_DIGEST])
        return arrays_of(checked_file(_personal_file(self.folder, digest), digest))


def read_installed(folder: Path, *, personal: bool = True) -> Installed:
    """The release in one of the site's folders; raises DataError where its manifest or campaign is damaged.

    personal=False: whatever was adapted of it, damaged or not.
    """
    from shared.release import Manifest

    try:
        manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
        campaign_file = folder / "campaign.json"
        checked_file(campaign_file, str(manifest.files["campaign.json"]["sha256"]))
        campaign = load_campaign(campaign_file)
    except (OSError, KeyError, TypeError, ValueError, WardroundError):
        raise _damaged(folder) from None
    if not folder.name.endswith(manifest.digest[:12]):
        raise _damaged(folder)
    return Installed(manifest, folder, campaign, _record(folder) if personal else None)


def keep_personal(installed: Installed, arrays: Arrays, record: Mapping[str, Any]) -> Installed:
    """Adapted weights from now on: any of the release's arrays, by name; the rest stays as released.

    Raises RefusedError where the arrays do not fit the networks and DataError where the disk is full; the former
    adaptation is then still in force.
    """
    from safetensors.numpy import save

    fitting(installed.campaign, arrays_of(installed._file("weights.safetensors")) | arrays)
    content = save({name: values.copy(order="C") for name, values in arrays.items()})
    digest = hashlib.sha256(content).hexdigest()
    record = {**record, WEIGHTS_DIGEST: digest}
    former = installed.folder / RECORD
    try:
        write_atomically(_personal_file(installed.folder, digest), content)
        write_atomically(former, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    except OSError:
        _sweep(installed.folder)
        raise DataError("the adapted weights could not be written (is the disk full?); nothing was changed") from None
    _sweep(installed.folder)
    return replace(installed, personal=record)


def drop_personal(installed: Installed) -> Installed:
    """Back to the weights as released; where nothing was adapted, nothing happens."""
    try:
        (installed.folder / RECORD).unlink(missing_ok=True)
    except OSError:
        raise DataError("the record of the adaptation cannot be removed; check the folder's permissions") from None
    _sweep(installed.folder)
    return replace(installed, personal=None)


def fitting(campaign: CampaignConfig, arrays: Arrays) -> Networks:
    """The campaign's networks with these weights in them; raises RefusedError naming the first array that is wrong."""
    from shared.networks import build_networks
    from shared.weights import load_arrays

    networks = build_networks(campaign)
    try:
        load_arrays(networks, arrays)
    except DataError as error:
        raise RefusedError(f"another architecture than the campaign's: {error}") from None
    return networks


def arrays_of(content: bytes) -> Arrays:
    """The arrays of a safetensors file, with their own types; DataError where it is none."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(load(content))
    except (SafetensorError, ValueError, *UNKNOWN_TYPES):
        raise DataError("the weights are not a safetensors file of float32 arrays; ask for the release again") from None


def checked_file(path: Path, digest: str) -> bytes:
    """The bytes of a file, if they are those that were written."""
    try:
        content = path.read_bytes()
    except OSError:
        raise _damaged(path.parent) from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise _damaged(path.parent)
    return content


def _record(folder: Path) -> Mapping[str, Any] | None:
    """The adaptation in force."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict) or not _DIGEST.fullmatch(str(record.get(WEIGHTS_DIGEST))):
        raise DataError(
            "the record of the adaptation is damaged; remove it with: wardround-site personalise DIR --drop"
        )
    return record


def _personal_file(folder: Path, digest: str) -> Path:
    return folder / f"personal-{digest[:16]}.safetensors"


def _sweep(folder: Path) -> None:
    """Remove weights that no record names; one that cannot be removed does no harm."""
    with contextlib.suppress(OSError, DataError):
        record = _record(folder)
        named = None if record is None else _personal_file(folder, str(record[WEIGHTS_DIGEST]))
        for path in (*folder.glob("personal-*.safetensors"), *folder.glob(".partial-*")):
            if path != named:
                path.unlink()


def _damaged(folder: Path) -> DataError:
    return DataError(
        f"the installed release {folder.parent.name} {folder.name} is damaged on this disk; install its file again"
    )
