"""Our storage SCP (PS3.4 B): what C-MOVE and a scanner's "send to node" connect to. Bound where pacs.json says.

Peers are told by their AE title, and by a certificate where `listen.ca` is given. A file is complete under its name,
or not there: it is written beside the inbox and renamed. Names are keyed by the site's secret, so an instance that is
sent again takes its own place.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pynetdicom import evt

from client.folder import SiteFolder
from client.ingest.keys import keyed_id
from client.ingest.pacs.config import ListenConfig, Pacs
from client.ingest.pacs.entity import entity, storage_contexts
from client.ingest.pacs.tls import server_context
from shared.errors import ConfigError
from shared.trust import keystore

SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
FREE_BYTES = 2 << 30
"""Left free on the disk: the store and its training live there too."""

OnInstance = Callable[[Any], int]
"""A C-STORE event in, its status out (PS3.4 B.2.3)."""


@contextmanager
def storage_server(pacs: Pacs, listen: ListenConfig, peers: Sequence[str], on_instance: OnInstance) -> Iterator[int]:
    """Serve C-STORE and C-ECHO to the AE titles in `peers` until the block ends; gives the port."""
    assert peers, "without titles everybody would be let in"
    ae = entity(pacs)
    ae.require_calling_aet = list(peers)
    ae.require_called_aet = True
    for uid, syntaxes in storage_contexts():
        ae.add_supported_context(uid, syntaxes)
    ae.add_supported_context("1.2.840.10008.1.1")
    context = None
    if listen.ca is not None:
        assert listen.certificate is not None
        assert listen.key is not None
        context = server_context(listen.ca, listen.certificate, listen.key)
    try:
        server = ae.start_server(
            (listen.host, listen.port), block=False, evt_handlers=[(evt.EVT_C_STORE, on_instance)], ssl_context=context
        )
    except (OSError, UnicodeError):
        raise ConfigError(
            f"cannot listen on {listen.host}:{listen.port}; another program has the port, or the address is not of "
            "this machine"
        ) from None
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()


@dataclass(slots=True)
class Inbox:
    """What peers sent, in <site folder>/inbox; counts since it was opened."""

    folder: Path
    parts: Path
    secret: bytes
    most_bytes: int
    stored: int = 0
    refused: int = 0
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def open(site: SiteFolder, listen: ListenConfig) -> Inbox:
        """Make the inbox, or find it; what an earlier run left half-written is removed."""
        parts = site.folder / "inbox.part"
        shutil.rmtree(parts, ignore_errors=True)
        for folder in (site.inbox, parts):
            keystore.private_folder(folder)
        inbox = Inbox(site.inbox, parts, keystore.read_private(site.secret), int(listen.most_gb * 1e9))
        inbox._bytes = sum(path.stat().st_size for path in site.inbox.iterdir() if path.is_file())
        return inbox

    def take(self, event: Any) -> int:
        """One C-STORE; runs in the association's thread. The status says what became of it."""
        try:
            uid = str(event.request.AffectedSOPInstanceUID)
            content = event.encoded_dataset()
        except (AttributeError, ValueError, TypeError):
            return self._answer(CANNOT_UNDERSTAND)
        with self._lock:
            path = self.folder / f"{keyed_id(self.secret, 'uid', uid)}.dcm"
            before = path.stat().st_size if path.exists() else 0
            more = len(content) - before
            if self._bytes + more > self.most_bytes or _free(self.folder) < FREE_BYTES + len(content):
                return self._answer(OUT_OF_RESOURCES)
            part = self.parts / path.name
            try:
                _write_durably(part, content)
                part.rename(path)
            except OSError:
                part.unlink(missing_ok=True)
                return self._answer(OUT_OF_RESOURCES)
            self._bytes += more
            return self._answer(SUCCESS)

    def _answer(self, status: int) -> int:
        self.stored += status == SUCCESS
        self.refused += status != SUCCESS
        return status


def _write_durably(path: Path, content: bytes) -> None:
    """On the disk before the peer hears that it may delete its own copy."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free
