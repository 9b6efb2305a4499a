"""An invitation: what one site needs to join, once, before a day. In: names and addresses. Out: a text of 2 kB.

The token in it is ID.SECRET, 128 and 256 bits of the operating system's randomness. Who holds the text can join in the
site's name, so it travels as a password does; the coordinator keeps the secret's hash alone and compares in constant
time. The authority's certificate and its fingerprint travel in it, so that a join needs nothing else, and its operator
can read the fingerprint out by telephone.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from shared.errors import ConfigError, DataError, RefusedError
from shared.trust import certificates
from shared.trust.names import checked_address, checked_name

FORMAT = 1
MAX_INVITATION = 16_384  # bytes
_TOKEN = re.compile(r"(?P<id>[0-9a-f]{32})\.(?P<secret>[0-9a-f]{64})")
_AGAIN = "ask the coordinator for the invitation again"


@dataclass(frozen=True, slots=True)
class Invitation:
    """What the text says. `repr` leaves the token out."""

    federation: str
    site: str
    expires: str
    """ISO 8601, UTC."""
    coordinator: str
    """HOST:PORT for training messages; with `gateway`, only under a site's certificate."""
    join: str
    """HOST:PORT of the Enrolment service."""
    services: str
    """HOST:PORT of the Site service, under mutual TLS."""
    gateway: bool
    authority_fingerprint: str
    """SHA-256 of the authority's DER, hexadecimal."""
    authority: str
    """The authority's certificate, PEM."""
    token: str

    def __repr__(self) -> str:
        return f"Invitation({self.federation}, {self.site}, until {self.expires})"

    @property
    def expires_at(self) -> dt.datetime:
        return dt.datetime.fromisoformat(self.expires)

    def to_text(self) -> str:
        return json.dumps({"format": FORMAT, "wardround": "invitation", **asdict(self)}, indent=1) + "\n"


def read_invitation(text: str) -> Invitation:
    """(1) small JSON, these keys (2) possible names, addresses and token (3) the authority that its fingerprint is of.

    Raises DataError, for (3) RefusedError.
    """
    # (1)
    if len(text) > MAX_INVITATION:
        raise DataError(f"the invitation is longer than {MAX_INVITATION} characters; {_AGAIN}")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"the invitation is not the text that `invite` wrote; {_AGAIN}") from None
    if not isinstance(values, Mapping) or values.get("wardround") != "invitation" or values.get("format") != FORMAT:
        raise DataError(f"the file is not an invitation of format {FORMAT}; {_AGAIN}")
    invitation = Invitation(**{each.name: _typed(values, each.name, each.type) for each in fields(Invitation)})
    # (2)
    try:
        checked_name("federation name", invitation.federation)
        checked_name("site name", invitation.site)
        for address in (invitation.coordinator, invitation.join, invitation.services):
            checked_address(address)
        if invitation.expires_at.tzinfo is None:
            raise ValueError
    except (ConfigError, ValueError):
        raise DataError(f"the invitation has a name, an address or a date that cannot be; {_AGAIN}") from None
    split_token(invitation.token)
    # (3)
    authority = invitation.authority.encode()
    if not certificates.is_authority(authority):
        raise RefusedError(f"the invitation's certificate is not an authority's; {_AGAIN}")
    if not hmac.compare_digest(certificates.fingerprint(authority), invitation.authority_fingerprint.lower()):
        raise RefusedError(
            "the invitation's certificate is not the one that its fingerprint is of: somebody changed it; compare the "
            "fingerprint with the coordinator by telephone"
        )
    return invitation


def _typed(values: Mapping[str, Any], name: str, kind: Any) -> Any:
    expected = bool if kind == "bool" else str
    if not isinstance(values.get(name), expected):
        raise DataError(f"the invitation has no usable {name!r}; {_AGAIN}")
    return values[name]


def new_token() -> str:
    """ID.SECRET."""
    return f"{secrets.token_hex(16)}.{secrets.token_hex(32)}"


def split_token(token: str) -> tuple[str, str]:
    """The name of the invitation and what proves that one holds it; DataError for anything else, which is not shown."""
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise DataError(f"the token is not one that `invite` made; {_AGAIN}")
    return match["id"], match["secret"]


def secret_hash(secret: str) -> str:
    """SHA-256 in hexadecimal: the secret has 256 random bits, so nothing slower protects it better."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_secret(secret: str, expected_hash: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(secret_hash(secret), expected_hash)


def join_statement(token: str, request: bytes) -> bytes:
    """What Flower's key signs at a join: this request for a certificate, under this invitation."""
    return b"wardround join 1\n" + hashlib.sha256(token.encode()).digest() + request


def renew_statement(site: str, request: bytes) -> bytes:
    """What Flower's key signs at a renewal."""
    return b"wardround renew 1\n" + site.encode() + b"\n" + request
