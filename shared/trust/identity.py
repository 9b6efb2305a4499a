"""Who a site is to the other sites: two private keys in, one signed line of public ones out, and signatures by it.

`key` is the site's P-384 key that Flower knows as well; it signs (ECDSA with SHA-384, FIPS 186-5, DER). `exchange` is
an X25519 key (RFC 7748) that other sites encrypt to; `key` signs it, so that comparing one fingerprint out of band
settles both. The coordinator is the certificate authority too, so nothing here asks a certificate: a site believes the
public identities that its operator pinned at `approve`, and no other.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shared.errors import ConfigError, DataError, RefusedError
from shared.trust import keystore
from shared.trust.names import checked_name

CONTEXT = b"wardround exchange key 1\n"
"""What a signed exchange key begins with: the key signs other things as well, and none of them passes for one."""
_FIELDS = frozenset({"name", "key", "exchange", "signature"})
_EXCHANGE = re.compile(r"[0-9a-f]{64}")
_LONGEST = {"name": 40, "key": 400, "exchange": 64, "signature": 200}
_ALGORITHM = ec.ECDSA(hashes.SHA384())
_AGAIN = "ask the site for its key.json again"


@dataclass(frozen=True, slots=True)
class PublicIdentity:
    """What a site shows of itself; made by `Identity.public` or checked by `from_json`."""

    name: str
    key: str
    """One OpenSSH line of a P-384 key, without a comment."""
    exchange: str
    """X25519 public key, 64 hexadecimal digits."""
    signature: str
    """Base64 of the DER signature by `key` over CONTEXT, name, a line break and `exchange`."""

    @property
    def fingerprint(self) -> str:
        """What two people compare by telephone; `ssh-keygen -lf key.pub` prints the same."""
        return keystore.fingerprint(self.key)

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "key": self.key, "exchange": self.exchange, "signature": self.signature}

    @classmethod
    def from_json(cls, values: Any) -> PublicIdentity:
        """(1) four short texts (2) a name (3) one P-384 key in its normal form (4) an X25519 key that it signed.

        Raises DataError, for (4) RefusedError.
        """
        # (1)
        if not isinstance(values, Mapping) or values.keys() != _FIELDS:
            raise DataError(f"a public identity must have name, key, exchange and signature; {_AGAIN}")
        for field, longest in _LONGEST.items():
            if not isinstance(values[field], str) or not 0 < len(values[field]) <= longest:
                raise DataError(f"{field} of a public identity must be a text of up to {longest} characters; {_AGAIN}")
        public = cls(**values)
        # (2)
        try:
            checked_name("site name", public.name)
        except ConfigError as error:
            raise DataError(f"{error}; {_AGAIN}") from None
        # (3)
        if keystore.public_line(_public_key(public)) != public.key:
            raise DataError(f"key of {public.name} is not in its normal form, one line without a comment; {_AGAIN}")
        # (4)
        if not _EXCHANGE.fullmatch(public.exchange):
            raise DataError(f"exchange of {public.name} must be 64 hexadecimal digits; {_AGAIN}")
        try:
            signature = base64.b64decode(public.signature, validate=True)
        except (binascii.Error, ValueError):
            raise DataError(f"signature of {public.name} must be base64; {_AGAIN}") from None
        try:
            verify(public, _statement(public.name, public.exchange), signature)
        except RefusedError:
            raise RefusedError(
                f"the exchange key of {public.name} is not signed by its site key, so it is somebody else's; {_AGAIN}"
            ) from None
        return public


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Identity:
    """A site's private keys; never printed, never sent."""

    name: str
    key: ec.EllipticCurvePrivateKey
    exchange: X25519PrivateKey

    @property
    def public(self) -> PublicIdentity:
        exchange = self.exchange.public_key().public_bytes_raw().hex()
        signature = sign(self, _statement(self.name, exchange))
        line = keystore.public_line(self.key.public_key())
        return PublicIdentity(self.name, line, exchange, base64.b64encode(signature).decode())


def create_identity(name: str) -> Identity:
    """New keys in memory, for simulations and tests; a site has its own in files."""
    checked_name("site name", name)
    return Identity(name, ec.generate_private_key(keystore.CURVE()), X25519PrivateKey.generate())


def create_exchange_key(path: Path) -> None:
    """Write a new X25519 private key to a file of mode 0600: 64 hexadecimal digits and a line break."""
    keystore.write_private(path, X25519PrivateKey.generate().private_bytes_raw().hex().encode() + b"\n")


def load_identity(name: str, key_path: Path, exchange_path: Path) -> Identity:
    """The identity of a site's two key files; refuses open ones, raises DataError for damaged ones."""
    checked_name("site name", name)
    try:
        key = serialization.load_ssh_private_key(keystore.read_private(key_path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, keystore.CURVE):
        raise DataError(f"key file {key_path.name} is not an OpenSSH P-384 key; restore it from a backup")
    line = keystore.read_private(exchange_path)[:66].strip()
    if not _EXCHANGE.fullmatch(line.decode("ascii", "replace")):
        raise DataError(f"key file {exchange_path.name} must hold 64 hexadecimal digits; restore it from a backup")
    return Identity(name, key, X25519PrivateKey.from_private_bytes(bytes.fromhex(line.decode())))


def sign(identity: Identity, content: bytes) -> bytes:
    """The signature of `content` by the site key, DER; no two are equal. Content begins with what it is meant for."""
    return identity.key.sign(content, _ALGORITHM)


def verify(public: PublicIdentity, content: bytes, signature: bytes) -> None:
    """Raises RefusedError unless `signature` over `content` is by the key of `public`."""
    try:
        _public_key(public).verify(signature, content, _ALGORITHM)
    except InvalidSignature:
        raise RefusedError(
            f"the signature is not by the key of {public.name} ({public.fingerprint}) that is pinned here"
        ) from None


def _statement(name: str, exchange: str) -> bytes:
    return CONTEXT + name.encode() + b"\n" + exchange.encode()


def _public_key(public: PublicIdentity) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_ssh_public_key(public.key.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, keystore.CURVE):
        raise DataError(f"key of {public.name} is not an OpenSSH P-384 key; {_AGAIN}")
    return key
