"""Identifiers in, keyed pseudonyms out: HMAC-SHA256 under a secret that never leaves the site.

Why keyed: a plain hash of a patient ID can be found by hashing all IDs a hospital may use. With the secret the same
patient keeps one pseudonym over imports, and nobody without it can test a guess. Each purpose has its own label, so
that a patient's pseudonym tells nothing about the shift of the same patient's dates.
"""

from __future__ import annotations

import hashlib
import hmac

from shared.errors import ConfigError

SHORTEST_SECRET_BYTES = 16
DATE_SHIFT_DAYS = (30, 3650)
"""Dates move back by a number of days in this range, the same for all dates of a patient."""


def check_secret(secret: bytes) -> None:
    """Refuse a secret that could be guessed."""
    if len(secret) < SHORTEST_SECRET_BYTES:
        raise ConfigError(f"the site secret must hold {SHORTEST_SECRET_BYTES} bytes or more, got {len(secret)}")


def keyed_digest(secret: bytes, purpose: str, *parts: str | bytes) -> bytes:
    """32 bytes of HMAC-SHA256 over the purpose and the parts, each with its length: no two lists collide."""
    mac = hmac.new(secret, digestmod=hashlib.sha256)
    for part in (purpose, *parts):
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        mac.update(len(data).to_bytes(8, "big") + data)
    return mac.digest()


def keyed_id(secret: bytes, purpose: str, *parts: str | bytes) -> str:
    """128 bits of the keyed digest in hexadecimal."""
    return keyed_digest(secret, purpose, *parts)[:16].hex()


def keyed_uid(secret: bytes, uid: str) -> str:
    """PS3.15 action U: a valid UID under 2.25 (PS3.5 B.2), the same for the same input at this site only."""
    return f"2.25.{int.from_bytes(keyed_digest(secret, 'uid', uid)[:16], 'big')}"


def date_shift_days(secret: bytes, patient: str) -> int:
    """Days, negative, by which this patient's dates move."""
    first, last = DATE_SHIFT_DAYS
    return -(first + int.from_bytes(keyed_digest(secret, "dates", patient)[:8], "big") % (last - first))
