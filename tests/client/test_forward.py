"""The way out of a site: which proxy, if any; and a listener on loopback that shows the site's certificate.

The far end is a TLS server of this test, which asks for a certificate as the gateway does.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from client import daemon, folder, proxy
from client.folder import SiteFolder
from client.forward import Forwarder, is_needed
from shared.errors import PeerError, RefusedError
from shared.trust import certificates
from shared.trust.certificates import Pair
from shared.trust.site_certificates import create_request, issue_site

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture(scope="module")
def authority() -> Pair:
    return certificates.create_authority("test", NOW)


@pytest.fixture
def site(tmp_path: Path, authority: Pair, monkeypatch: pytest.MonkeyPatch) -> SiteFolder:
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    folder.create(tmp_path / "site", "north", "127.0.0.1:9443", tmp_path / "ca.crt")
    request, key = create_request("north")
    pem = tmp_path / "site" / "tls.pem"
    pem.write_bytes(key + issue_site(authority, "north", request, NOW))
    pem.chmod(0o600)
    return replace(folder.read(tmp_path / "site"), gateway=True)


# ------------------------------------------------------------------------------------------- which proxy


def test_site_json_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://outer:3128")
    assert proxy.proxy_to("fl.example.org") == proxy.Proxy("outer", 3128)
    assert proxy.proxy_to("fl.example.org", "http://inner:8080") == proxy.Proxy("inner", 8080)
    assert proxy.proxy_to("fl.example.org", "none") is None
    for host in ("127.0.0.1", "localhost", "::1"):
        assert proxy.proxy_to(host) is None
    monkeypatch.setenv("no_proxy", "example.org")
    assert proxy.proxy_to("fl.example.org") is None


@pytest.mark.parametrize(
    "said", ["https://proxy:3128", "socks5://proxy:1080", "http://proxy", "http://proxy:x", "ftp://p:1"]
)
def test_a_proxy_that_cannot_be_kept_is_refused_in_words(said: str) -> None:
    with pytest.raises(RefusedError, match="proxy in site.json (must be|is not) http://HOST:PORT"):
        proxy.proxy_to("fl.example.org", said)


def test_a_password_is_sent_and_never_shown() -> None:
    one = proxy.proxy_to("fl.example.org", "http://north:s%40cret@proxy:3128")
    assert one is not None
    assert one.headers == {"Proxy-Authorization": "Basic bm9ydGg6c0BjcmV0"}  # base64 of north:s@cret
    assert "cret" not in repr(one) + one.where
    assert one.url == "http://north:s%40cret@proxy:3128"


@contextlib.contextmanager
def answering(*answers: bytes) -> Iterator[int]:
    """A listener that reads a head and says one of these each time."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for answer in answers:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "asks for a name and password"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "does not allow CONNECT to fl.example.org:9443"),
        (b"", "ended the connection"),
        (b"x" * 20_000, "ended the connection"),
    ],
)
def test_what_a_proxy_refuses_is_one_line(answer: bytes, reason: str) -> None:
    with answering(answer) as port, pytest.raises(PeerError, match=reason):
        proxy.connected("fl.example.org", 9443, proxy.Proxy("127.0.0.1", port))
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(PeerError, match=f"proxy 127.0.0.1:{port} does not answer"):
        proxy.connected("fl.example.org", 9443, proxy.Proxy("127.0.0.1", port))


# ------------------------------------------------------------------------------------------- the forwarder


async def far_end(authority: Pair, folder_: Path, of: Pair | None = None) -> tuple[asyncio.Server, int]:
    """Answers with who it was that called, and what they said."""
    pair = certificates.issue_server(of or authority, ("127.0.0.1",), NOW)
    (folder_ / "far.pem").write_bytes(pair.key + pair.certificate)
    (folder_ / "far-ca.pem").write_bytes(authority.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder_ / "far.pem")
    context.load_verify_locations(folder_ / "far-ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        subject = dict(part[0] for part in writer.get_extra_info("peercert")["subject"])
        said = await reader.readuntil(b"\r\n\r\n")
        writer.write(f"{subject['commonName']} {writer.get_extra_info('cipher')[1]} {len(said)}".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context, limit=1 << 20)
    return server, server.sockets[0].getsockname()[1]


async def through(site: SiteFolder, said: bytes) -> bytes:
    """What comes back when the SuperNode says this to the forwarder of a site."""
    home = site.flower / "loopback"
    inner_ca, certificate, key = daemon._loopback_certificate(home, NOW)
    server = await Forwarder(site, None).serve(0, certificate, key)
    try:
        context = ssl.create_default_context(cafile=str(inner_ca))
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(said)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer
    finally:
        server.close()


def run(story: Callable[[], Awaitable[bytes]]) -> bytes:
    return asyncio.run(story())  # type: ignore[arg-type]


def test_bytes_pass_under_the_sites_certificate_and_tls_1_3(site: SiteFolder, authority: Pair, tmp_path: Path) -> None:
    async def story() -> bytes:
        server, port = await far_end(authority, tmp_path)
        try:
            return await through(replace(site, port=port), b"x" * 300_000 + b"\r\n\r\n")
        finally:
            server.close()

    assert run(story) == b"north TLSv1.3 300004"


def test_a_gateway_of_another_authority_gets_nothing(site: SiteFolder, authority: Pair, tmp_path: Path) -> None:
    async def story() -> bytes:
        server, port = await far_end(authority, tmp_path, certificates.create_authority("test", NOW))
        try:
            return await through(replace(site, port=port), b"secret\r\n\r\n")
        finally:
            server.close()

    answer = run(story)
    assert answer.startswith(b"HTTP/1.1 502 ")  # Flower tries again after a 502
    assert b"did not show a certificate of this federation" in answer


def test_a_gateway_that_is_away_is_a_502(site: SiteFolder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]

    async def story() -> bytes:
        return await through(replace(site, port=port), b"\r\n\r\n")

    assert b"does not answer; does the firewall allow it outbound" in run(story)


def test_the_forwarder_runs_where_it_is_needed_and_nowhere_else(
    site: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = replace(site, gateway=False)
    assert not is_needed(straight)
    assert len(daemon.programs(straight, NOW)) == 2
    assert is_needed(replace(straight, proxy="http://127.0.0.1:3128"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:3128")
    assert is_needed(replace(straight, host="fl.example.org"))
    supernode, _, forwarder = daemon.programs(site, NOW)
    address = supernode.command[supernode.command.index("--superlink") + 1]
    assert address == f"127.0.0.1:{forwarder.command[-1]}"
    roots = supernode.command[supernode.command.index("--root-certificates") + 1]
    assert roots == str(site.flower / "loopback" / "ca.crt")
    assert forwarder.command[1:4] == ("-I", "-m", "client.forward")


def test_a_certificate_is_renewed_in_the_last_third_of_its_life(site: SiteFolder) -> None:
    for day, due in ((0, False), (119, False), (121, True), (179, True)):
        assert daemon.is_due(site, NOW + dt.timedelta(days=day)) == due
    with pytest.raises(RefusedError, match="revokes the site and invites it anew"):
        daemon.is_due(site, NOW + dt.timedelta(days=181))


def test_a_running_site_renews_by_itself_and_says_so(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    stop = threading.Event()
    monkeypatch.setattr(daemon, "is_due", lambda *_: not said)

    def renew(one: SiteFolder, now: dt.datetime) -> object:
        return type("Said", (), {"ends": now})

    monkeypatch.setattr("client.join.renew", renew)

    def say(words: str) -> None:
        said.append(words)
        stop.set()

    daemon._keep_certificate(site, stop, say)
    assert said[0].startswith("The certificate of site north is renewed")


def test_a_renewal_that_fails_is_told_once_and_tried_again(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    stop = threading.Event()
    tries: list[int] = []

    def due(*_: object) -> bool:
        tries.append(1)
        if len(tries) == 3:
            stop.set()
        raise PeerError("nobody answers")

    monkeypatch.setattr(daemon, "is_due", due)
    monkeypatch.setattr(daemon, "RENEW_AGAIN_S", 0.01)
    daemon._keep_certificate(site, stop, said.append)
    assert said == ["The certificate of site north is not renewed yet: nobody answers"]
