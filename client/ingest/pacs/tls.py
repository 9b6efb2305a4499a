"""TLS towards a PACS and from its peers: verified on our side always, on theirs where we listen. TLS 1.2 or later."""

from __future__ import annotations

import ssl

from shared.errors import ConfigError


def client_context(ca: str | None, certificate: str | None, key: str | None) -> ssl.SSLContext:
    """What we connect with: host name and issuer are checked; `ca` None means the authorities of this machine."""
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError):
        raise _unusable() from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def server_context(ca: str, certificate: str, key: str) -> ssl.SSLContext:
    """What we listen with: a peer without a certificate of `ca` does not get through the handshake."""
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca)
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError):
        raise _unusable() from None
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _no_password() -> str:
    """OpenSSL would ask at the terminal."""
    raise ValueError


def _unusable() -> ConfigError:
    return ConfigError("pacs.json: ca, certificate or key is not usable PEM (a key must match and have no password)")
