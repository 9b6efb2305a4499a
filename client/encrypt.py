"""A site's folder in, the same with its store and synthetic images encrypted out (shared/trust/vault.py).

sealed.json comes first: from then on everything new is written encrypted, and readers take either form of a file. Then
file by file, the index last. Killed at any step, all of it can be read, and the same command goes on.

The plain files are unlinked, not overwritten: flash memory and journals keep blocks that no program can reach to wipe.
A store that must never have been plain is ingested into a folder made with `init --encrypt`.
"""

from __future__ import annotations

from pathlib import Path

from client.folder import SiteFolder
from client.generate.manifest import drawing, synthetic_folder
from client.ingest import store as stores
from client.ingest.arrays import seal_file
from shared.trust import vault


def encrypt(site: SiteFolder, key_file: Path | None) -> int:
    """Encrypt what lies plain; returns how many files it was. Raises DataError while an ingest runs, ConfigError while
    images are drawn, RefusedError for another key than the folder's."""
    vault.create(site.folder, key_file)
    return encrypt_rest(site.store)


def encrypt_rest(store: Path) -> int:
    """What an encryption that was killed left plain, and what was there before."""
    done = 0
    if store.is_dir():
        with stores.locked(store):
            _remove_parts(store / stores.ARRAYS)
            done += sum(map(_sealed, sorted((store / stores.ARRAYS).glob("*.npy"))))
            done += _sealed(store / stores.INDEX)
    sets = synthetic_folder(store)
    if sets.is_dir():
        with drawing(store, wait=False):
            for folder in (path for path in sorted(sets.rglob("*")) if path.is_dir()):
                _remove_parts(folder)
                done += sum(map(_sealed, sorted(folder.glob("*.npy"))))
    return done


def _sealed(path: Path) -> bool:
    if not path.exists():
        return False
    seal_file(path)
    return True


def _remove_parts(folder: Path) -> None:
    """Files that a killed program was writing."""
    for path in folder.glob("*.part"):
        path.unlink()
