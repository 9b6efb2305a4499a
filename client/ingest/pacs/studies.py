"""Studies of a query into the site's store, batch by batch, so that the disk never holds more than one batch.

    find -> patients in order -> fetch into <site folder>/fetched (0700) -> ingest -> remove -> next batch

Studies of one patient stay in one batch: a segmentation may lie in another study than its image, and ingest brings
together what lies in one folder. Fetching again what is stored already changes nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from client.folder import SiteFolder
from client.ingest.pacs.scratch import terminable
from client.ingest.pacs.source import Dates, Failure, FoundStudy, Source
from client.ingest.reasons import IngestReport
from shared.errors import ConfigError, DataError, PeerError
from shared.trust import keystore

BATCH_STUDIES = 20
BATCH_BYTES = 4 << 30
MOST_IN_A_ROW = 3
"""Studies without any connection, one after the other: then the PACS is away."""

Ingest = Callable[[Path], IngestReport]
OnStudy = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of the PACS."""

    modality: str
    body_part: str | None
    dates: Dates
    limit: int | None
    with_segmentations: bool
    """Also studies of the same patients that hold segmentations, made on or after the first date."""


@dataclass(slots=True)
class Outcome:
    """Counts of one fetch; no identifier."""

    found: int = 0
    asked: int = 0
    fetched: int = 0
    """Studies of which at least one instance came."""
    skipped: int = 0
    files: int = 0
    failed: Counter[Failure] = field(default_factory=Counter)
    reports: list[IngestReport] = field(default_factory=list)

    def table(self) -> tuple[tuple[str, str, int], ...]:
        """Rows (outcome, reason, count), as an ingest's."""
        rows = [("fetched", "studies", self.fetched), ("fetched", "instances", self.files)]
        rows += [("not fetched", "studies", self.skipped)] if self.skipped else []
        rows += [("not fetched", failure.value, count) for failure, count in self.failed.most_common()]
        outcomes: Counter[tuple[str, str]] = Counter()
        for report in self.reports:
            for outcome, reason, count in report.table():
                outcomes[outcome, reason] += count
        return (*rows, *((outcome, reason, count) for (outcome, reason), count in outcomes.items()))


def ingest_studies(
    source: Source, site: SiteFolder, query: Query, ingest: Ingest, *, tables: Sequence[Path] = (), on_study: OnStudy
) -> Outcome:
    """Fetch and ingest what `query` finds; `ingest` takes a folder, `tables` (CSV) are put into each of them.

    PeerError where the PACS is away, ConfigError where nothing is found, DataError where nothing of it came.
    """
    patients = _patients(source, query)
    outcome = Outcome(found=sum(len(studies) for studies in patients))
    if not outcome.found:
        raise ConfigError(
            "the PACS holds no study of this query; ask for another modality, body part or range of dates"
        )
    away = 0
    for batch in _batches(patients):
        with terminable(), _fetching(site) as folder:
            for studies in batch:
                for study in studies:
                    away = _fetch_one(source, study, folder / f"{outcome.asked:06d}", outcome, away)
                    on_study(outcome.asked, outcome.found)
                if sum(path.stat().st_size for path in folder.rglob("*.dcm")) > BATCH_BYTES:
                    _ingest_now(folder, ingest, tables, outcome)
            _ingest_now(folder, ingest, tables, outcome)
        if away >= MOST_IN_A_ROW:
            raise PeerError(
                f"the PACS went away after {outcome.fetched} of {outcome.found} studies; what came is stored, run the "
                "same command again for the rest"
            )
    if not outcome.fetched:
        raise DataError(f"none of {outcome.found} studies could be fetched: {_most(outcome.failed)}")
    return outcome


def _patients(source: Source, query: Query) -> list[list[FoundStudy]]:
    """Studies by patient, a patient's together, patients in the order of their first study."""
    found = list(source.find(query.modality, query.body_part, query.dates, limit=query.limit))
    if query.with_segmentations and found:
        known, patients = {study.uid for study in found}, {study.patient for study in found if study.patient}
        for study in source.find("SEG", None, Dates(query.dates.first)):
            if study.uid not in known and study.patient in patients:
                found.append(study)
    place = {_patient(study): index for index, study in reversed(list(enumerate(found)))}
    ordered = sorted(found, key=lambda study: place[_patient(study)])
    return [list(studies) for _, studies in groupby(ordered, key=_patient)]


def _patient(study: FoundStudy) -> str:
    """Studies without a PatientID have nobody in common."""
    return study.patient or study.uid


def _batches(patients: Sequence[Sequence[FoundStudy]]) -> Iterator[list[Sequence[FoundStudy]]]:
    batch: list[Sequence[FoundStudy]] = []
    for studies in patients:
        if batch and sum(map(len, batch)) + len(studies) > BATCH_STUDIES:
            yield batch
            batch = []
        batch.append(studies)
    if batch:
        yield batch


def _fetch_one(source: Source, study: FoundStudy, folder: Path, outcome: Outcome, away: int) -> int:
    """Fetch one study; returns how many in a row, this one included, found no connection."""
    outcome.asked += 1
    if away >= MOST_IN_A_ROW:
        return away
    folder.mkdir(mode=0o700)
    fetched = source.fetch(study.uid, folder)
    outcome.files += len(fetched.files)
    outcome.failed.update(fetched.failed)
    outcome.fetched += bool(fetched.files)
    outcome.skipped += not fetched.files
    return away + 1 if Failure.NO_CONNECTION in fetched.failed else 0


def _ingest_now(folder: Path, ingest: Ingest, tables: Sequence[Path], outcome: Outcome) -> None:
    if not any(folder.rglob("*.dcm")):
        return
    for number, table in enumerate(tables):
        try:
            shutil.copyfile(table, folder / f"table-{number}.csv")
        except OSError:
            raise ConfigError(f"--tables: {table.name} cannot be read") from None
    outcome.reports.append(ingest(folder))
    for path in list(folder.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _fetching(site: SiteFolder) -> Iterator[Path]:
    """A private folder for one batch, removed whatever happens; what a killed run left behind is removed first."""
    folder = site.folder / "fetched"
    descriptor = os.open(site.folder / "fetched.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError("another command is fetching from the PACS for this site; wait until it ends") from None
        shutil.rmtree(folder, ignore_errors=True)
        try:
            yield keystore.private_folder(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def _most(failed: Mapping[Failure, int]) -> str:
    return Counter(failed).most_common(1)[0][0].value
