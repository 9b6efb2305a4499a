"""What stands on a site's disk about its synthetic images: manifests in and out, sets listed and removed. No torch.

<store>-synthetic/<first 12 of the digest>/
    images.npy      float32 (S, C, H, W)
    labels.npy      int64 (S, 2): index of the training slice, diagnosis
    manifest.json   what they are and come from; written last: without it there is no set
    batches/        images of a drawing that is not finished
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import ConfigError, DataError

FORMAT = 1
MANIFEST = "manifest.json"
BATCHES = "batches"
LOCK = ".lock"
REMEDY = "remove it (wardround-site synthetic DIR --remove DIGEST) and draw again (wardround-site generate)"


@dataclass(frozen=True, slots=True, eq=False)
class KeptSet:
    """One set on the disk, by its manifest."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return str(self.manifest["digest"])

    @property
    def report(self) -> Mapping[str, Any]:
        """Of the guards; client/generate/guards.py."""
        found: Mapping[str, Any] = self.manifest["report"]
        return found


def synthetic_folder(store: Path) -> Path:
    """Where a store's synthetic sets lie: beside it, so that nothing that reads a store meets them."""
    return store.with_name(store.name + "-synthetic")


def read_set(folder: Path) -> KeptSet:
    """One set by its manifest; raises DataError: none there, another format, damaged."""
    name = folder.name
    damaged = DataError(f"the manifest of synthetic set {name} is damaged; {REMEDY}")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, synthetic, report = manifest["format"], manifest["synthetic"], manifest["report"]
        if version != FORMAT or synthetic is not True:
            raise DataError(f"synthetic set {name}: expected format {FORMAT}, got {str(version)[:20]}; {REMEDY}")
        texts = ("digest", "name", "campaign", "generator", "content", "drawn_at")
        groups = manifest["counts"], manifest["sha256"], report, report["classes"], report["nearness"]
        whole = all(isinstance(manifest[key], str) for key in texts) and all(isinstance(each, dict) for each in groups)
        whole = whole and _is_report(report) and all(type(manifest["counts"][key]) is int for key in _COUNTED)
    except FileNotFoundError:
        raise DataError(f"no synthetic set {name}; draw one with wardround-site generate") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise damaged from None
    if not whole:
        raise damaged
    return KeptSet(folder, manifest)


_COUNTED = ("images", "slices")


def _is_report(report: Mapping[str, Any]) -> bool:
    """What is shown and acted on is there and of its type; raises KeyError or TypeError where it is not even there."""
    refused, reason = report["refused"], report["reason"]
    numbers = [report[key] for key in ("memorised_share", "memorised_limit", "rejected_share")]
    numbers += [one for one in (report["mask_dice"], report["nearness"].get("membership_auc")) if one is not None]
    counts = [row[key] for row in report["classes"].values() for key in ("asked", "used", "relabelled")]
    return (
        isinstance(refused, bool)
        and isinstance(reason, str if refused else str | None)
        and all(isinstance(one, int | float) for one in numbers)
        and all(type(one) is int for one in counts)
        and all(isinstance(note, str) for note in report["notes"])
    )


def kept_sets(store: Path) -> tuple[KeptSet, ...]:
    """All whole sets of a store, the oldest first; raises DataError for a damaged manifest."""
    found = [read_set(path.parent) for path in synthetic_folder(store).glob(f"*/{MANIFEST}")]
    return tuple(sorted(found, key=lambda each: (str(each.manifest["drawn_at"]), each.digest)))


def remove_set(store: Path, digest: str) -> str:
    """Remove a set, finished or not, named by 8 or more characters of its digest; returns its folder's name. Raises
    ConfigError where none is meant, and while a program draws: it would write into what is being removed."""
    folders = [path for path in synthetic_folder(store).glob("*") if path.is_dir()]
    named = [path for path in folders if path.name.startswith(digest[:12]) and _may_be(path, digest)]
    if len(digest) < 8 or len(named) != 1:
        raise ConfigError(
            f"no synthetic set {digest[:12]!r} (name it by 8 or more characters); see: wardround-site synthetic"
        )
    with drawing(store, wait=False):
        try:
            if (named[0] / MANIFEST).is_file():
                (named[0] / MANIFEST).unlink()  # first: a set half removed is none
            shutil.rmtree(named[0])
        except OSError:
            raise DataError(f"synthetic set {named[0].name} cannot be removed; check its permissions") from None
    return named[0].name


def _may_be(folder: Path, digest: str) -> bool:
    """More than the twelve characters that name a folder have to be those of its manifest, where it can be read."""
    try:
        return len(digest) <= 12 or read_set(folder).digest.startswith(digest)
    except DataError:
        return True


@contextmanager
def drawing(store: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a store's synthetic sets; waits while another program draws, or raises ConfigError then. The
    kernel frees it when the process dies, however it dies."""
    folder = synthetic_folder(store)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        raise DataError(
            "the folder of synthetic images cannot be written; check its permissions and the disk"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError("a program draws synthetic images here; wait until it has ended, or stop it") from None
        yield
    finally:
        os.close(descriptor)
