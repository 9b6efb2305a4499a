"""Instances of one study onto the disk: names of ours, bounded in number and bytes, whole or not there.

Writing and checking are apart: a storage SCP writes from its own threads, and what silences the parser of headers
(client/ingest/validate.py) is for one thread.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from client.ingest.pacs.source import Failure, Fetched, TransferError
from client.ingest.reasons import Quarantined, Skipped
from client.ingest.sources import SourceFile
from client.ingest.validate import read_header, sop_instance, text
from shared.errors import DataError


class Intake:
    """What one fetch has written so far."""

    def __init__(self, study_uid: str, folder: Path, most_files: int, most_bytes: int) -> None:
        self.failed: Counter[Failure] = Counter()
        self._study_uid = study_uid
        self._folder = folder
        self._most_files, self._left = most_files, most_bytes
        self._written: list[Path] = []
        self._lock = threading.Lock()

    def write(self, blocks: Iterable[bytes]) -> None:
        """One instance. TransferError where a limit is reached or the blocks end in one, DataError on a full disk."""
        with self._lock:
            if len(self._written) >= self._most_files:
                raise TransferError(Failure.TOO_MANY)
            path = self._folder / f"{len(self._written) + 1:06d}.dcm"
            part = path.with_suffix(".part")
            try:
                self._fill(part, blocks)
                part.rename(path)
            except BaseException as error:
                part.unlink(missing_ok=True)
                # Sockets fail inside `blocks` as TransferError; what is left is the disk.
                if isinstance(error, OSError):
                    raise full() from None
                raise
            self._written.append(path)

    def _fill(self, part: Path, blocks: Iterable[bytes]) -> None:
        with part.open("xb") as file:
            for block in blocks:
                self._left -= len(block)
                if self._left < 0:
                    raise TransferError(Failure.TOO_LARGE)
                file.write(block)

    def fetched(self) -> Fetched:
        """Everything that is DICOM, of this study and here for the first time; the rest is removed and counted."""
        good: list[Path] = []
        seen: set[str] = set()
        for path in self._written:
            failure = self._check(path, seen)
            if failure is None:
                good.append(path)
            else:
                path.unlink()
                self.failed[failure] += 1
        if not good and not self.failed:
            self.failed[Failure.NOTHING_CAME] += 1
        return Fetched(tuple(good), dict(self.failed))

    def _check(self, path: Path, seen: set[str]) -> Failure | None:
        try:
            dataset = read_header(SourceFile(path, path.stat().st_size, regular=True))
        except (Quarantined, Skipped):
            return Failure.DAMAGED
        if text(dataset, "StudyInstanceUID") != self._study_uid:
            return Failure.OTHER_STUDY
        uid = sop_instance(dataset)
        if uid in seen:
            return Failure.REPEATED
        seen.add(uid)
        return None


def full() -> DataError:
    """The disk's own complaint names paths; this one does not."""
    return DataError("what the PACS sends cannot be written; free disk space or check the site folder's permissions")
