"""One HTTP request to a PACS: bounded in time and bytes, following nothing, trusting nothing of the environment.

Why the standard library's client: it knows no redirects, no .netrc, no proxies and no REQUESTS_CA_BUNDLE, each of
which would carry credentials or images elsewhere, and it hands out a body block by block.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode, urlsplit

from client.ingest.pacs.config import DicomwebConfig, Pacs, read_secret
from client.ingest.pacs.source import Failure, TransferError
from client.ingest.pacs.tls import client_context

BLOCK_BYTES = 1 << 18
MOST_JSON_BYTES = 64 << 20
_FAILURES = {401: Failure.REFUSED, 403: Failure.REFUSED, 407: Failure.REFUSED, 404: Failure.NOT_THERE,
             410: Failure.NOT_THERE, 413: Failure.TOO_LARGE, 415: Failure.NOT_ACCEPTED}  # fmt: skip


class Answer:
    """Status, media type and body of a response, as long as its connection is open."""

    def __init__(self, response: http.client.HTTPResponse, expired: threading.Event) -> None:
        self.status = response.status
        self.content_type = response.headers.get("Content-Type", "")
        self._response, self._expired = response, expired

    def blocks(self) -> Iterator[bytes]:
        """The body; TransferError where it ends before its announced length, or falls silent."""
        with _failing(Failure.CUT_OFF, self._expired):
            while block := self._response.read(BLOCK_BYTES):
                yield block
            if self._expired.is_set():
                raise TransferError(Failure.TIMEOUT)
            if self._response.length:  # read(n) does not complain of a body cut short
                raise TransferError(Failure.CUT_OFF)

    def json(self) -> Any:
        """The body as JSON, bounded; TransferError where it is not."""
        content = bytearray()
        for block in self.blocks():
            content += block
            if len(content) > MOST_JSON_BYTES:
                raise TransferError(Failure.TOO_LARGE)
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise TransferError(Failure.NOT_UNDERSTOOD) from None

    def expect(self, *statuses: int) -> None:
        """TransferError with the reason of any other status."""
        if self.status in statuses:
            return
        if 300 <= self.status < 400:
            raise TransferError(Failure.REDIRECTED)
        raise TransferError(_FAILURES.get(self.status, Failure.PACS_ERROR))


@contextmanager
def asked(
    pacs: Pacs,
    web: DicomwebConfig,
    url: str,
    *,
    accept: str,
    query: Mapping[str, str] | None = None,
    body: Iterable[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Iterator[Answer]:
    """GET, or POST where there is a body. The whole exchange takes at most `study_s`."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    target = parts.path + (f"?{urlencode(query)}" if query else "")
    expired = threading.Event()
    connection = _connection(pacs, web, parts.scheme, parts.hostname, parts.port)
    timer = None
    try:
        timer = _expiring(_connect(connection, pacs), pacs.study_s, expired)
        sent = {"Accept": accept, "Accept-Encoding": "identity", "Connection": "close", **_authorisation(web)}
        method = "GET" if body is None else "POST"
        with _failing(Failure.CUT_OFF, expired):
            try:
                connection.request(method, target, body=body, headers={**sent, **(headers or {})})
            except (BrokenPipeError, ConnectionResetError):
                if body is None:
                    raise  # a refusal may have come before all of a body was sent
            response = connection.getresponse()
        yield Answer(response, expired)
    finally:
        if timer is not None:
            timer.cancel()
        connection.close()


def _connection(
    pacs: Pacs, web: DicomwebConfig, scheme: str, host: str, port: int | None
) -> http.client.HTTPConnection:
    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=pacs.connect_s)
    context = client_context(web.ca, web.certificate, web.key)
    return http.client.HTTPSConnection(host, port, timeout=pacs.connect_s, context=context)


def _connect(connection: http.client.HTTPConnection, pacs: Pacs) -> socket.socket:
    try:
        connection.connect()
    except ssl.SSLCertVerificationError:
        raise TransferError(Failure.UNTRUSTED) from None
    except (OSError, UnicodeError, http.client.HTTPException):
        raise TransferError(Failure.NO_CONNECTION) from None
    wire = connection.sock
    assert isinstance(wire, socket.socket)
    wire.settimeout(pacs.answer_s)
    return wire


@contextmanager
def _failing(failure: Failure, expired: threading.Event) -> Iterator[None]:
    """Whatever the connection raises inside becomes a reason, without its message."""
    try:
        yield
    except TimeoutError:
        raise TransferError(Failure.TIMEOUT) from None
    except ssl.SSLError:
        # TLS 1.3: a server that wants a client certificate says so after the handshake.
        raise TransferError(Failure.TIMEOUT if expired.is_set() else Failure.REFUSED) from None
    except (OSError, http.client.HTTPException, ValueError, AttributeError):
        raise TransferError(Failure.TIMEOUT if expired.is_set() else failure) from None


def _expiring(wire: socket.socket, seconds: float, expired: threading.Event) -> threading.Timer:
    """A running timer that ends the exchange, however slowly bytes drip in."""

    def expire() -> None:
        expired.set()
        with contextlib.suppress(OSError):  # closed by now
            wire.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    return timer


def _authorisation(web: DicomwebConfig) -> dict[str, str]:
    if web.token_file is not None:
        return {"Authorization": f"Bearer {read_secret(web.token_file)}"}
    if web.user is not None and web.password_file is not None:
        pair = f"{web.user}:{read_secret(web.password_file)}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}
