"""X25519 and HKDF against the vectors of their RFCs; seals open for one receiver in one session."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shared.errors import RefusedError
from shared.secagg import keys

SALT = b"s" * 32
PAIR = ("a", "b")


def private(text: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(text))


def public(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def test_agreement_is_that_of_rfc_7748() -> None:
    """Section 6.1."""
    alice = private("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = private("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert public(alice).hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert public(bob).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert keys.agree(alice, public(bob)).hex() == keys.agree(bob, public(alice)).hex() == shared


@pytest.mark.parametrize(
    ("secret", "salt", "info", "length", "expected"),
    [
        (
            "0b" * 22,
            "000102030405060708090a0b0c",
            "f0f1f2f3f4f5f6f7f8f9",
            42,
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            "0b" * 22,
            "",
            "",
            42,
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
)
def test_derivation_is_that_of_rfc_5869(secret: str, salt: str, info: str, length: int, expected: str) -> None:
    """Appendix A, cases 1 and 3."""
    derived = keys.derive(bytes.fromhex(secret), bytes.fromhex(salt), bytes.fromhex(info), length)
    assert derived.hex() == expected


@pytest.mark.parametrize("point", [bytes(32), (1).to_bytes(32, "little")])
def test_a_public_key_of_low_order_is_refused(point: bytes) -> None:
    with pytest.raises(RefusedError, match="low order"):
        keys.agree(X25519PrivateKey.generate(), point)


def test_two_sites_derive_the_same_mask_key_and_no_other_pair_or_session_does() -> None:
    a, b = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    key = keys.pairwise_mask_key(a, public(b), SALT, PAIR)
    assert key == keys.pairwise_mask_key(b, public(a), SALT, PAIR)
    assert len(key) == 32
    assert key != keys.pairwise_mask_key(a, public(b), SALT, ("a", "c"))
    assert key != keys.pairwise_mask_key(a, public(b), b"t" * 32, PAIR)


def test_mask_and_commitment_of_a_seed_are_different_keys() -> None:
    seed = b"x" * 32
    derived = {keys.self_mask_key(seed, SALT, "a").hex(), keys.seed_digest(seed, SALT, "a")}
    derived |= {keys.self_mask_key(seed, SALT, "b").hex(), keys.self_mask_key(seed, b"t" * 32, "a").hex()}
    assert len(derived) == 4


def test_a_seal_opens_for_its_receiver_in_its_session_only() -> None:
    sender, receiver, other = (X25519PrivateKey.generate() for _ in range(3))
    sealed = keys.seal(b"shares", sender, public(receiver), SALT, PAIR)
    assert len(sealed) == len(b"shares") + keys.SEAL_BYTES
    assert keys.unseal(sealed, public(sender), receiver, SALT, PAIR) == b"shares"
    for tried, whose, salt, pair in (
        (sealed[:-1] + bytes([sealed[-1] ^ 1]), receiver, SALT, PAIR),
        (sealed[:-1], receiver, SALT, PAIR),
        (sealed, other, SALT, PAIR),
        (sealed, receiver, b"t" * 32, PAIR),
        (sealed, receiver, SALT, ("a", "c")),
        (sealed, receiver, SALT, ("c", "b")),
    ):
        with pytest.raises(RefusedError, match="cannot be opened"):
            keys.unseal(tried, public(sender), whose, salt, pair)
    with pytest.raises(RefusedError, match="cannot be opened"):
        keys.unseal(sealed, public(other), receiver, SALT, PAIR)
