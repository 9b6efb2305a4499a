"""A hospital's folder in, its regular files in a stable order out.

Nothing outside the folder is ever opened: symbolic links are not followed (counted instead), devices and pipes are
left alone, and files are opened without following a link that was put in place after the walk.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from client.ingest.reasons import Quarantined, Reason
from shared.errors import ConfigError, DataError

MAX_FILE_BYTES = 2 << 30
MAX_FOLDER_DEPTH = 64


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One name found in the folder; `regular` is False for a link, pipe, socket or device."""

    path: Path
    num_bytes: int
    regular: bool


def walk(folder: Path, store: Path) -> tuple[SourceFile, ...]:
    """All files below `folder`, by name within each folder, sub-folders after files.

    ConfigError where there is no folder, or the store lies inside it or holds it; DataError where it holds no file.
    """
    try:
        root, target = folder.resolve(strict=True), store.resolve()
    except (OSError, RuntimeError):
        raise ConfigError("the folder to ingest does not exist; give the folder that holds the DICOM files") from None
    if not root.is_dir():
        raise ConfigError("the source to ingest must be a folder, got a file; give the folder that holds it")
    if target == root or root in target.parents or target in root.parents:
        raise ConfigError("the store and the folder to ingest must lie apart; choose a store outside the folder")
    files = tuple(_walk(root, 0))
    if not files:
        raise DataError("the folder to ingest holds no file; give the folder that holds the DICOM files")
    return files


def _walk(folder: Path, depth: int) -> Iterator[SourceFile]:
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        folders = [Path(entry.path) for entry in ordered if entry.is_dir(follow_symlinks=False)]
        rest = [entry for entry in ordered if not entry.is_dir(follow_symlinks=False)]
        states = [(Path(entry.path), entry.stat(follow_symlinks=False)) for entry in rest]
    except OSError:
        raise DataError("a folder below the source cannot be read; check its permissions, or move it away") from None
    for path, state in states:
        yield SourceFile(path, state.st_size, stat.S_ISREG(state.st_mode))
    if folders and depth >= MAX_FOLDER_DEPTH:
        raise DataError(f"folders below the source nest deeper than {MAX_FOLDER_DEPTH}; ingest a folder further down")
    for path in folders:
        yield from _walk(path, depth + 1)


def open_file(path: Path) -> BinaryIO:
    """Open for reading, never through a link, never waiting for a pipe. Quarantined where it cannot be read, or is no
    file any more: what was one when the folder was walked may be a device by now, which never ends."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        file = os.fdopen(descriptor, "rb")
    except OSError:
        raise Quarantined(Reason.UNREADABLE) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise Quarantined(Reason.UNREADABLE)
    return file
