"""Reaching a coordinator: only under this federation's certificate, and with a reason when not."""

from __future__ import annotations

import datetime as dt
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.errors import PeerError
from shared.reach import check_reachable, free_port, is_free
from shared.trust import certificates

NOW = dt.datetime.now(dt.UTC)


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A server with a certificate for 127.0.0.1 (not for localhost), and its authority's file."""
    authority = certificates.create_authority("test", NOW)
    pair = certificates.issue_server(authority, ("127.0.0.1",), NOW)
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    (tmp_path / "server.crt").write_bytes(pair.certificate)
    (tmp_path / "server.key").write_bytes(pair.key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1], tmp_path / "ca.crt"
    server.shutdown()
    server.server_close()


def test_the_right_one_is_reached(peer: tuple[int, Path]) -> None:
    check_reachable("127.0.0.1", *peer)


def test_another_authority_is_not_believed(peer: tuple[int, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.crt"
    other.write_bytes(certificates.create_authority("test", NOW).certificate)
    with pytest.raises(PeerError, match="compare ca.crt"):
        check_reachable("127.0.0.1", peer[0], other)


def test_a_name_that_the_certificate_is_not_for_is_not_believed(peer: tuple[int, Path]) -> None:
    with pytest.raises(PeerError, match="for that name"):
        check_reachable("localhost", *peer)


def test_nobody_there(peer: tuple[int, Path]) -> None:
    with pytest.raises(PeerError, match="does not answer"):
        check_reachable("127.0.0.1", free_port(), peer[1])


def test_a_port_in_use_is_not_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not is_free("127.0.0.1", taken.getsockname()[1])
    assert is_free("127.0.0.1", free_port())
