"""A secret of 32 bytes in, shares out, and `threshold` of them back to the secret.

Shamir. How to Share a Secret. Communications of the ACM 22(11), 1979.

The secret is the constant term of a random polynomial of degree threshold - 1 over the integers modulo PRIME; share i
is its value at i. Fewer shares tell nothing: any secret fits them. Arithmetic is Python's, whose time depends on the
numbers; it runs where the secret is known anyway, and only its results leave.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from shared.errors import DataError

PRIME = 2**256 + 297
"""The smallest prime above 2^256, so that every secret of 32 bytes is a residue."""
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, threshold: int, count: int) -> tuple[int, ...]:
    """Shares 1 to `count` of a secret of 32 bytes."""
    assert len(secret) == SECRET_BYTES
    assert 1 <= threshold <= count < PRIME
    coefficients = [int.from_bytes(secret), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return tuple(_value(coefficients, x) for x in range(1, count + 1))


def combine(shares: Mapping[int, int]) -> bytes:
    """The secret that `threshold` shares lie around (number of the share -> share); DataError if it is none.

    With fewer shares, or a wrong one among them, the result is another number: the caller checks it by a commitment.
    """
    value = sum(share * _weight_at_0(x, shares) for x, share in shares.items()) % PRIME
    try:
        return value.to_bytes(SECRET_BYTES)
    except OverflowError:
        raise DataError("the shares do not fit one another: one of them is wrong") from None


def _value(coefficients: list[int], x: int) -> int:
    """By Horner's rule."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value


def _weight_at_0(x: int, shares: Mapping[int, int]) -> int:
    """The Lagrange polynomial of share `x` among `shares`, at 0."""
    above, below = 1, 1
    for other in shares:
        if other != x:
            above = above * other % PRIME
            below = below * (other - x) % PRIME
    return above * pow(below, -1, PRIME) % PRIME
