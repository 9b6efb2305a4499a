"""Folders for what was fetched and is still identified: removed when their command ends, however it ends.

After an error or Ctrl-C the command removes its own; so it does on SIGTERM, which by default would end the program on
the spot. After SIGKILL or a power cut the next command does: a folder that nobody holds a lock on is nobody's.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import DataError

PREFIX = ".fetched-"
TERMINATED = 128 + signal.SIGTERM


@contextmanager
def scratch(home: Path) -> Iterator[Path]:
    """A folder of its own below `home`, mode 0700; several commands may have one each."""
    descriptor = None
    with terminable():
        try:
            # The lock of `home` keeps a folder that is made, and not held yet, from being swept.
            with _held(home / f"{PREFIX}lock", wait=True):
                _sweep(home)
                folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=home))
                descriptor = os.open(folder, os.O_RDONLY)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            raise DataError("the site's folder cannot be written; check its permissions and the disk") from None
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the block as an error would, so that what it must remove is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: object) -> None:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _sweep(home: Path) -> None:
    for left in home.glob(f"{PREFIX}*"):
        if left.is_symlink() or not left.is_dir():
            continue
        try:
            with _held(left, wait=False):
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue  # a command at work holds it


@contextmanager
def _held(path: Path, *, wait: bool) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
