"""How a site reaches its coordinator: straight, or through the hospital's HTTPS proxy by CONNECT (RFC 9110 9.3.6).

`site.json` says "proxy": "http://HOST:PORT", or "none"; without it the environment's https_proxy and no_proxy count, as
for other programs. TLS runs through the proxy from end to end: one that opens it shows a certificate of another
authority, and is refused.
"""

from __future__ import annotations

import base64
import socket
import urllib.parse
import urllib.request
from dataclasses import dataclass

from client.folder import SiteFolder
from shared.errors import PeerError, RefusedError

CONNECT_S = 10.0
MAX_HEAD = 8192
_WAY_OUT = 'write "proxy": "http://HOST:PORT" (or "none") into site.json'


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that passes CONNECT on; `repr` leaves a password out."""

    host: str
    port: int
    credentials: str = ""
    """USER:PASSWORD, for Basic."""

    def __repr__(self) -> str:
        return f"Proxy({self.host}:{self.port})"

    @property
    def where(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """With credentials: for libraries, not for people."""
        user, _, password = self.credentials.partition(":")
        shown = f"{urllib.parse.quote(user)}:{urllib.parse.quote(password)}@" if self.credentials else ""
        return f"http://{shown}{self.where}"

    @property
    def headers(self) -> dict[str, str]:
        if not self.credentials:
            return {}
        return {"Proxy-Authorization": f"Basic {base64.b64encode(self.credentials.encode()).decode()}"}


def proxy_of(site: SiteFolder) -> Proxy | None:
    """The proxy on the way to the coordinator; RefusedError for one that cannot be kept."""
    return proxy_to(site.host, site.proxy)


def proxy_to(host: str, said: str = "") -> Proxy | None:
    """`said` is what site.json says; the environment never puts a proxy before loopback."""
    if said == "none":
        return None
    if said:
        return _parsed(said, "site.json")
    if host in ("localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(host):
        return None
    found = urllib.request.getproxies().get("https")
    return _parsed(found, "https_proxy") if found else None


def _parsed(text: str, whence: str) -> Proxy:
    address = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
    if address.scheme != "http":
        raise RefusedError(
            f"the proxy in {whence} must be http://HOST:PORT, which passes TLS on untouched; got {address.scheme}://, "
            f"which is not supported: {_WAY_OUT}"
        )
    try:
        host, port = address.hostname, address.port
    except ValueError:
        host, port = None, None
    if host is None or port is None or address.path not in ("", "/"):
        raise RefusedError(f"the proxy in {whence} is not http://HOST:PORT; {_WAY_OUT}")
    user, password = (urllib.parse.unquote(part or "") for part in (address.username, address.password))
    return Proxy(host, port, f"{user}:{password}" if user else "")


def connected(host: str, port: int, proxy: Proxy | None) -> socket.socket:
    """A TCP connection to host:port, through the proxy where there is one. Raises PeerError in words."""
    if proxy is None:
        try:
            return socket.create_connection((host, port), timeout=CONNECT_S)
        except OSError:
            raise PeerError(f"{host}:{port} does not answer; does the firewall allow it outbound?") from None
    try:
        connection = socket.create_connection((proxy.host, proxy.port), timeout=CONNECT_S)
    except OSError:
        raise PeerError(f"the proxy {proxy.where} does not answer; {_WAY_OUT}") from None
    try:
        _tunnel(connection, host, port, proxy)
    except BaseException:
        connection.close()
        raise
    return connection


def _tunnel(connection: socket.socket, host: str, port: int, proxy: Proxy) -> None:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", *(f"{key}: {it}" for key, it in proxy.headers.items())]
    head = b""
    try:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        while not head.endswith(b"\r\n\r\n"):
            byte = connection.recv(1)  # one at a time: what follows the head is TLS, and not ours to read
            if not byte or len(head) > MAX_HEAD:
                raise OSError
            head += byte
    except OSError:
        raise PeerError(f"the proxy {proxy.where} ended the connection; is CONNECT to port {port} allowed?") from None
    status = head.split(b" ", 2)[1:2]
    if status == [b"407"]:
        raise PeerError(
            f"the proxy {proxy.where} asks for a name and password; {_WAY_OUT}, as http://USER:PASSWORD@..."
        )
    if status != [b"200"]:
        raise PeerError(f"the proxy {proxy.where} does not allow CONNECT to {target}; ask who runs it")
