"""A fake DICOMweb server that answers as a test says, a fake PACS over DIMSE, and certificates for loopback."""

from __future__ import annotations

import contextlib
import datetime as dt
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shared.trust import certificates

Respond = Callable[[BaseHTTPRequestHandler], None]
Serve = Callable[..., int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """serve(respond, tls=context) -> port; `respond` gets every request."""
    servers: list[ThreadingHTTPServer] = []

    def start(respond: Respond, tls: ssl.SSLContext | None = None) -> int:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with contextlib.suppress(OSError):  # the client has had enough
                    respond(self)
                self.close_connection = True

            do_POST = do_GET

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *arguments: object) -> None:
                pass  # handshakes that the client ends

        server = Server(("127.0.0.1", 0), Handler)
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return int(server.server_address[1])

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.crt with server.crt/.key for 127.0.0.1; other.crt, an authority that signed neither."""
    folder = tmp_path_factory.mktemp("tls")
    now = dt.datetime.now(dt.UTC)
    authority = certificates.create_authority("test", now)
    server = certificates.issue_server(authority, ["localhost", "127.0.0.1"], now)
    other = certificates.create_authority("other", now)
    for name, content in (
        ("ca.crt", authority.certificate),
        ("server.crt", server.certificate),
        ("server.key", server.key),
        ("other.crt", other.certificate),
    ):
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
    return folder


def answer(
    request: BaseHTTPRequestHandler, status: int, content_type: str, body: bytes, length: int | None = None
) -> None:
    """One whole response; another `length` than the body's is a lie that a test tells."""
    request.send_response(status)
    request.send_header("Content-Type", content_type)
    request.send_header("Content-Length", str(len(body) if length is None else length))
    request.end_headers()
    request.wfile.write(body)
