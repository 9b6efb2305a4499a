"""Commands of `wardround-site` for the hospital's PACS: what is fetched from it and what is sent to this site.

`ingest --pacs` belongs to the command `ingest` of client/cli.py; its options and its work are here.
"""

from __future__ import annotations

import argparse
import datetime as dt
import signal
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from client import folder
from client.audit import record
from client.terminal import OUT, command, progress
from shared.errors import ConfigError
from shared.trust import keystore

if TYPE_CHECKING:
    from client.folder import SiteFolder
    from client.ingest.pacs.studies import Query
    from shared.config import CampaignConfig


def add(commands: Any) -> None:
    """Register the parsers of these commands."""
    command(commands, "receive", _receive, "take DICOM files that scanners or the PACS send here, into DIR/inbox")


def add_ingest_options(ingest: argparse.ArgumentParser) -> None:
    """What `ingest` takes instead of a folder."""
    ingest.add_argument("--pacs", action="store_true", help="fetch studies from the PACS of DIR/pacs.json instead")
    ingest.add_argument("--modality", help="with --pacs: MR, CT, ...; default the campaign's, where it is one")
    ingest.add_argument("--body-part", metavar="PART", help="with --pacs: as the series say, for instance BRAIN")
    ingest.add_argument("--from", dest="first", metavar="YYYY-MM-DD", help="with --pacs: first study date")
    ingest.add_argument("--to", dest="last", metavar="YYYY-MM-DD", help="with --pacs: last study date")
    ingest.add_argument("--limit", type=int, metavar="N", help="with --pacs: at most N studies, oldest first")
    tables = "with --pacs: CSV tables of diagnoses, which a PACS does not hold"
    ingest.add_argument("--tables", nargs="*", default=[], type=Path, metavar="CSV", help=tables)


def ingest_from_pacs(
    arguments: argparse.Namespace,
    site: SiteFolder,
    campaign: CampaignConfig,
    masks: Mapping[str, int],
    diagnoses: Mapping[str, str],
) -> int:
    """`ingest --pacs`: query, fetch and ingest batch by batch, then a table of counts."""
    from client.ingest.pacs import source_of
    from client.ingest.pacs.studies import ingest_studies
    from client.ingest.run import ingest

    query = _query(arguments, campaign)
    source = source_of(site)
    secret = keystore.read_private(site.secret)
    into_store = partial(
        ingest, store=site.store, data=campaign.data, secret=secret, mask_codes=masks, diagnosis_codes=diagnoses
    )
    with progress() as shown:
        bar = shown.add_task("studies", total=None)
        outcome = ingest_studies(
            source,
            site,
            query,
            into_store,
            tables=arguments.tables,
            on_study=lambda done, total: shown.update(bar, completed=done, total=total),
        )
    record(site, "store.ingested_from_pacs", campaign=campaign.name, studies=outcome.found)
    table = Table("outcome", "reason", "count", title=f"Ingest of {outcome.found} studies")
    for row in outcome.table():
        table.add_row(*(escape(str(cell)) for cell in row))
    OUT.print(table)
    return 0


def _query(arguments: argparse.Namespace, campaign: CampaignConfig) -> Query:
    from client.ingest.pacs.source import Dates
    from client.ingest.pacs.studies import Query

    allowed = campaign.data.ingest.modalities
    modality = arguments.modality or (allowed[0] if len(allowed) == 1 else None)
    if modality is None or modality.upper() not in allowed:
        raise ConfigError(f"--modality must be one of the campaign's: {', '.join(allowed)}; got {modality or 'none'}")
    body_part = arguments.body_part
    for option, value in (("--modality", modality), ("--body-part", body_part)):
        if value is not None and not _is_code(value):
            raise ConfigError(f"{option} must be 1 to 16 letters, digits, blanks or underscores (no wildcards)")
    if arguments.limit is not None and arguments.limit < 1:
        raise ConfigError(f"--limit must be 1 or more, got {arguments.limit}")
    dates = Dates(_date("--from", arguments.first), _date("--to", arguments.last))
    if dates.first is not None and dates.last is not None and dates.first > dates.last:
        raise ConfigError("--from must not be after --to")
    return Query(modality.upper(), body_part, dates, arguments.limit, with_segmentations=bool(campaign.data.masks))


def _is_code(value: str) -> bool:
    """PS3.5 6.2: value representation CS, in either case."""
    return 0 < len(value) <= 16 and value.isascii() and value.replace("_", "").replace(" ", "").isalnum()


def _date(option: str, text: str | None) -> dt.date | None:
    if text is None:
        return None
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option} must be a date as 2024-01-31, got {text!r}") from None


def _receive(arguments: argparse.Namespace) -> int:
    from client.ingest.pacs.config import read_pacs

    site = folder.read(arguments.folder)
    pacs = read_pacs(site)
    listen = pacs.listen
    if listen is None or not listen.peers:
        raise ConfigError(
            'pacs.json names nobody to receive from; add "listen": {"host": "ADDRESS", "port": 11112, "peers": ["CT1"]}'
        )
    from client.ingest.pacs.listen import Inbox, storage_server

    inbox = Inbox.open(site, listen)
    stopped = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: stopped.set())
    try:
        with storage_server(pacs, listen, listen.peers, inbox.take) as port:
            record(site, "admin.receive_started", port=port, peers=", ".join(listen.peers))
            OUT.print(
                f"{pacs.title} takes files on {listen.host}:{port} from {', '.join(listen.peers)}, into "
                f"{site.inbox}. Ctrl-C stops it."
            )
            while not stopped.wait(0.5):
                pass
    except KeyboardInterrupt:
        pass  # the way to stop it
    finally:
        signal.signal(signal.SIGTERM, before)
    record(site, "admin.receive_stopped", stored=inbox.stored, refused=inbox.refused)
    refused = f"; refused {inbox.refused}" if inbox.refused else ""
    OUT.print(f"Received {inbox.stored} files{refused}. Next: wardround-site ingest DIR {site.inbox} --campaign FILE")
    return 0
