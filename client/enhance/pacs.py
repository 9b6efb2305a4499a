"""A Study Instance UID in, the study's files in a private folder out; derived objects back to the PACS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from client.folder import SiteFolder
from shared.errors import DataError, PeerError


@contextmanager
def fetched(site: SiteFolder, study_uid: str) -> Iterator[Path]:
    """The study in a folder of the site's own, mode 0700, removed whatever happens, at the latest by the next."""
    from client.ingest.pacs import source_of
    from client.ingest.pacs.scratch import scratch

    pacs = source_of(site)
    pacs.echo()  # a PACS that is away, or does not want us, says so with host and port before a folder is made
    with scratch(site.folder) as folder:
        got = pacs.fetch(study_uid, folder)
        if not got.files:
            why = ", ".join(f"{count} x {reason}" for reason, count in got.failed.items()) or "it holds no such study"
            raise DataError(f"the PACS gave no image of that study: {why}; check the Study Instance UID")
        yield folder


def sent(site: SiteFolder, files: Sequence[Path]) -> int:
    """Files that the PACS keeps; PeerError where it does not keep all of them."""
    from client.ingest.pacs import source_of

    answer = source_of(site).send(list(files))
    if answer.failed or answer.stored < len(files):
        why = ", ".join(f"{count} x {reason}" for reason, count in answer.failed.items()) or "no reason was given"
        raise PeerError(
            f"the PACS keeps {answer.stored} of {len(files)} derived files ({why}); they stay in the out folder, "
            "send them again"
        )
    return answer.stored
