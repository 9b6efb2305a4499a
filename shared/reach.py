"""Is somebody there, and is it the right one: a TLS connection and a health question. Also: is a port free."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from shared.errors import PeerError

TIMEOUT_S = 5.0


def check_reachable(
    host: str, port: int, authority: Path, who: str = "coordinator", *,
    certificate: Path | None = None, connect: Callable[[], socket.socket] | None = None,
) -> None:  # fmt: skip
    """Ask `https://host:port/health` under this authority alone; raises PeerError with what to look at.

    `certificate` (with its key, PEM) is shown to a gateway; `connect` brings a connection to it another way.
    """
    where = f"{who} at {host}:{port}"
    try:
        context = ssl.create_default_context(cafile=str(authority))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if certificate is not None:
            context.load_cert_chain(certificate)
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
        if connect is not None:
            connection.sock = context.wrap_socket(connect(), server_hostname=host)
        connection.request("GET", "/health")
        status = connection.getresponse().status
        connection.close()
    except ssl.SSLCertVerificationError:
        raise PeerError(
            f"{where} did not show a certificate of this federation for that name; compare ca.crt and the host name "
            "with the coordinator"
        ) from None
    except (OSError, http.client.HTTPException):
        raise PeerError(f"{where} does not answer; is it serving, and does the firewall allow it outbound?") from None
    if status != 200:
        raise PeerError(f"{where} answers, but not as a coordinator (status {status}); check host and port")


def is_free(host: str, port: int) -> bool:
    """Whether this process could listen on a TCP port now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connections are only winding down is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
