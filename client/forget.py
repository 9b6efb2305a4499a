"""A patient's own ID in, a site that holds nothing of that patient out.

The ID becomes the keyed pseudonym that ingest gave it. In this order, so that the same command goes on where it was
killed: the tombstone (who has one is not ingested again), the store's index without the patient's series, the files
that no index names any more, synthetic images, files in the inbox, what a killed fetch left.

All synthetic sets of the store go, not some: each was drawn from a training split that the patient's leaving changes,
and a generator that saw the patient may have drawn any of them.

What cannot be taken back: weights that were trained while the patient was in the store. Which campaigns and releases
those are is said; nobody can unlearn them.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from client.approvals import approvals
from client.audit import log_path
from client.folder import SiteFolder
from client.generate.manifest import drawing, synthetic_folder
from client.ingest import store as stores
from client.ingest.arrays import forget_recent
from client.ingest.forgotten import add_tombstone, files_of, pseudonym, read_forgotten, remove_tombstone, tombstone
from shared.audit import read as read_audit
from shared.errors import DataError
from shared.trust import keystore

if TYPE_CHECKING:
    from client.releases import Listed


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Counts of what was removed, and what the patient's images may have trained."""

    series: int
    files: int
    """In the store."""
    synthetic_sets: int
    inbox_files: int
    inbox_unreadable: int
    """Files of the inbox that nobody can tell the patient of."""
    trained: tuple[str, ...]
    """Campaigns that this site sent updates to, as its audit log knows."""
    releases: tuple[str, ...]
    """Installed here; each may stand on those updates."""


def forget(site: SiteFolder, patient_id: str, issuer: str | None, today: dt.date, *, in_advance: bool) -> Forgotten:
    """Remove a patient. `issuer` (Issuer of Patient ID) None: whatever issuer the files name, where it can be known.

    Raises DataError where nothing of the patient is here (`in_advance`: keep the patient out all the same), while an
    ingest runs, or where the disk does not let go; ConfigError while synthetic images are drawn.
    """
    secret = keystore.read_private(site.secret)
    mine, issuers, unreadable = files_of(site.inbox, patient_id, issuer)
    names = {pseudonym(secret, patient_id, each) for each in ({issuer} if issuer is not None else {"", *issuers})}
    stone = tombstone(secret, patient_id, issuer)
    with _alone(site):
        index = stores.read_index(site.store) if site.store.is_dir() else None
        gone = {key for key, record in index.series.items() if record.patient in names} if index else set()
        known = stone in read_forgotten(site.store)
        if not (gone or mine or known or in_advance):
            raise DataError(
                "nothing of this patient is here, and nothing was changed; where files name an Issuer of Patient ID, "
                "give it with --issuer; to keep the patient out of later ingests all the same: --in-advance"
            )
        try:
            add_tombstone(site.store, stone, today.isoformat())
            files = _leave_store(site.store, index, gone) if index is not None else 0
            sets = _remove_synthetic(site.store) if gone or known else 0
            for path in mine:
                path.unlink()
            shutil.rmtree(site.folder / "inbox.part", ignore_errors=True)
        except OSError:
            raise DataError("a file of this patient cannot be removed; check permissions and run it again") from None
    _sweep_fetched(site)
    forget_recent()
    return Forgotten(len(gone), files, sets, len(mine), unreadable, _trained(site), _releases(site))


def allow_again(site: SiteFolder, patient_id: str, issuer: str | None) -> bool:
    """Take the tombstone away; returns whether there was one."""
    return remove_tombstone(site.store, tombstone(keystore.read_private(site.secret), patient_id, issuer))


@contextmanager
def _alone(site: SiteFolder) -> Iterator[None]:
    """Neither an ingest nor a drawing beside it."""
    if not site.store.is_dir():
        yield
        return
    with stores.locked(site.store):
        if synthetic_folder(site.store).is_dir():
            with drawing(site.store, wait=False):
                yield
        else:
            yield


def _leave_store(store: Path, index: stores.Index, gone: set[str]) -> int:
    """The index first: from then on no reader finds the series, and their files are nobody's."""
    if gone:
        series = {
            key: replace(record, pair=None) if record.pair in gone else record
            for key, record in index.series.items()
            if key not in gone
        }
        index = replace(index, series=series, generation=index.generation + 1)
        stores.write_index(store, index)
    return stores.sweep(store, index)


def _remove_synthetic(store: Path) -> int:
    folders = [path for path in synthetic_folder(store).glob("*") if path.is_dir()]
    for path in folders:
        shutil.rmtree(path)
    return len(folders)


def _sweep_fetched(site: SiteFolder) -> None:
    """Originals that a killed fetch from the PACS left: opening a new scratch folder removes what nobody holds."""
    if any(site.folder.glob(".fetched-*")):
        from client.ingest.pacs.scratch import scratch

        with scratch(site.folder):
            pass


def _trained(site: SiteFolder) -> tuple[str, ...]:
    """The audit log knows what left; where it is damaged, every approved campaign may have trained."""
    try:
        left = [entry for entry in read_audit(log_path(site)) if entry.event == "round.left"]
        names = {str(entry.facts["campaign"]) for entry in left if entry.facts.get("kind") in ("update", "masked")}
    except (DataError, KeyError):
        names = {one.campaign for one in approvals(site.approvals)}
    return tuple(sorted(names))


def _releases(site: SiteFolder) -> tuple[str, ...]:
    from client.releases import releases

    def named(row: Listed) -> str:
        return f"{row.name} v{row.version}{', adapted here' if row.personal else ''}"

    try:
        return tuple(named(row) for row in releases(site))
    except DataError:
        return ("releases of this site, which cannot be read",)
