"""A listener on loopback that brings this site's own SuperNode to the coordinator under the site's certificate.

    SuperNode --TLS for loopback--> here --[CONNECT at a proxy]--TLS 1.3 with the site's certificate--> gateway

Flower's SuperNode (1.41) has no way to show a client certificate. Bytes pass as they are, both ways; nothing is kept.
The gateway must show a certificate of the federation's authority for the very name that the site dials. A renewed
certificate is taken with the next connection. Who connects here, any user of this machine, gets the certificate's way
in but not the site's key, without which the coordinator answers nothing.

    python -m client.forward DIR PORT        started and kept up by `wardround-site run`
"""

from __future__ import annotations

import asyncio
import signal
import ssl
import sys
from pathlib import Path

from client import folder
from client.folder import SiteFolder
from client.proxy import Proxy, connected, proxy_of
from shared.errors import PeerError, WardroundError

BLOCK = 65_536
MAX_HEAD = 65_536
HANDSHAKE_S = 15.0
LOOPBACK = "127.0.0.1"


def is_needed(site: SiteFolder) -> bool:
    """At a gateway, which wants a certificate, and behind a proxy."""
    return site.gateway or proxy_of(site) is not None


class Forwarder:
    """One site's way out."""

    def __init__(self, site: SiteFolder, proxy: Proxy | None) -> None:
        self._site, self._proxy = site, proxy
        self._context: tuple[float, ssl.SSLContext] | None = None
        self._trouble = ""

    async def serve(self, port: int, certificate: Path, key: Path) -> asyncio.Server:
        """Listen on loopback under a certificate for loopback."""
        inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        inside.load_cert_chain(certificate, key)
        return await asyncio.start_server(self._pass_on, LOOPBACK, port, ssl=inside, limit=MAX_HEAD)

    async def _pass_on(self, inner_in: asyncio.StreamReader, inner_out: asyncio.StreamWriter) -> None:
        try:
            outer_in, outer_out = await self._out()
        except WardroundError as error:
            await _refuse(inner_in, inner_out, str(error))
            self._tell(str(error))
            return
        self._tell("")
        both = [asyncio.create_task(_copy(inner_in, outer_out)), asyncio.create_task(_copy(outer_in, inner_out))]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)  # HTTP: who ends, ends both ways
        for task in both:
            task.cancel()
        for writer in (outer_out, inner_out):
            await _close(writer)

    async def _out(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the coordinator; raises PeerError in words."""
        site, where = self._site, f"the coordinator at {self._site.coordinator}"
        raw = await asyncio.get_running_loop().run_in_executor(None, connected, site.host, site.port, self._proxy)
        raw.setblocking(False)
        try:
            return await asyncio.open_connection(
                sock=raw, ssl=self._tls(), server_hostname=site.host, ssl_handshake_timeout=HANDSHAKE_S
            )
        except ssl.SSLCertVerificationError:
            raw.close()
            through = f", or the proxy {self._proxy.where} opens TLS, which is not supported" if self._proxy else ""
            raise PeerError(f"{where} did not show a certificate of this federation for that name{through}") from None
        except (OSError, ssl.SSLError, TimeoutError):
            raw.close()
            raise PeerError(f"{where} ended the connection before TLS 1.3 was agreed") from None

    def _tls(self) -> ssl.SSLContext:
        pem = self._site.certificate
        changed = pem.stat().st_mtime if pem.exists() else 0.0
        if self._context is None or self._context[0] != changed:
            context = ssl.create_default_context(cafile=str(self._site.authority))
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            if changed:
                context.load_cert_chain(pem)
            self._context = (changed, context)
        return self._context[1]

    def _tell(self, trouble: str) -> None:
        """Each new trouble once, and its end."""
        if trouble != self._trouble:
            print(trouble or "connected again", flush=True)
            self._trouble = trouble


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while block := await reader.read(BLOCK):
            writer.write(block)
            await writer.drain()
    except (OSError, ssl.SSLError):
        return


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, words: str) -> None:
    """A 502, after which Flower tries again."""
    body = f"{words}\n".encode()
    head = (
        f"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    )
    try:
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HANDSHAKE_S)
        writer.write(head.encode() + b"\r\n" + body)
        await writer.drain()
    except (OSError, ssl.SSLError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass
    await _close(writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        await asyncio.wait_for(writer.wait_closed(), 2.0)
    except (OSError, ssl.SSLError, TimeoutError):
        return


async def _main(site: SiteFolder, port: int) -> None:
    loopback = site.flower / "loopback"
    server = await Forwarder(site, proxy_of(site)).serve(port, loopback / "server.crt", loopback / "server.key")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print(f"forwarding to {site.coordinator}", flush=True)
    await stop.wait()
    server.close()


def main(arguments: list[str]) -> int:
    try:
        asyncio.run(_main(folder.read(Path(arguments[0])), int(arguments[1])))
    except WardroundError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
