"""Shares of a secret: against a slower twin, by exact fractions, and what too few of them tell."""

from __future__ import annotations

import itertools
import random
import secrets
from fractions import Fraction

import pytest

from shared.errors import DataError
from shared.secagg import shamir
from shared.secagg.shamir import PRIME, SECRET_BYTES, SHARE_BYTES, combine, split


def is_prime(n: int, witnesses: int = 64) -> bool:
    """Miller and Rabin; wrong with a probability below 4^-64."""
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    rng = random.Random(0)
    for _ in range(witnesses):
        x = pow(rng.randrange(2, n - 1), odd, n)
        if x in (1, n - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def slow_combine(shares: dict[int, int]) -> int:
    """The twin: Lagrange's weights at 0 as exact fractions, reduced at the very end."""
    total = Fraction(0)
    for x, y in shares.items():
        weight = Fraction(1)
        for other in shares:
            if other != x:
                weight *= Fraction(-other, x - other)
        total += y * weight
    return total.numerator * pow(total.denominator, -1, PRIME) % PRIME


def test_the_prime_is_one_and_larger_than_every_secret() -> None:
    assert is_prime(PRIME)
    assert not is_prime(PRIME - 2)
    assert 2 ** (8 * SECRET_BYTES) < PRIME < 2 ** (8 * SHARE_BYTES)


@pytest.mark.parametrize(("threshold", "count"), [(1, 1), (2, 2), (2, 3), (3, 5), (7, 10), (34, 50)])
def test_any_threshold_of_the_shares_give_the_secret_back(threshold: int, count: int) -> None:
    secret = secrets.token_bytes(32)
    shares = dict(enumerate(split(secret, threshold, count), 1))
    rng = random.Random(1)
    for _ in range(5):
        chosen = {x: shares[x] for x in rng.sample(sorted(shares), threshold)}
        assert combine(chosen) == secret == slow_combine(chosen).to_bytes(32)
    assert combine(shares) == secret  # more than enough lie on the same polynomial


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_the_smallest_and_the_largest_secret_come_back(secret: bytes) -> None:
    shares = dict(enumerate(split(secret, 3, 4), 1))
    for chosen in itertools.combinations(shares, 3):
        assert combine({x: shares[x] for x in chosen}) == secret


def test_shares_lie_on_the_polynomial_by_powers(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([5, 7])
    monkeypatch.setattr(shamir.secrets, "randbelow", lambda below: next(drawn))
    assert split((1234).to_bytes(32), 3, 4) == tuple(1234 + 5 * x + 7 * x**2 for x in (1, 2, 3, 4))


def test_one_share_too_few_fits_every_secret() -> None:
    """For any other secret there is a last share that makes it, so the shares at hand tell nothing of which it is."""
    shares = dict(enumerate(split(secrets.token_bytes(32), 3, 5), 1))
    held = {x: shares[x] for x in (1, 4)}
    for guess in (0, 1, 2**256 - 1):
        last = solve_for_share(held, 5, guess)
        assert int.from_bytes(combine({**held, 5: last})) == guess


def solve_for_share(held: dict[int, int], x: int, secret: int) -> int:
    """The share x with which `held` leads to `secret`: the polynomial through held and (0, secret), at x."""
    points = {0: secret, **held}
    total = 0
    for own, y in points.items():
        above = below = 1
        for other in points:
            if other != own:
                above, below = above * (x - other) % PRIME, below * (own - other) % PRIME
        total += y * above * pow(below, -1, PRIME)
    return total % PRIME


def test_two_sharings_of_one_secret_have_no_share_in_common() -> None:
    secret = bytes(32)
    assert not set(split(secret, 3, 20)) & set(split(secret, 3, 20))


def test_shares_that_lead_to_no_secret_are_told() -> None:
    with pytest.raises(DataError, match="do not fit"):
        combine({1: PRIME - 1})
