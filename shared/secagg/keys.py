"""Private and public X25519 keys in, keys for one purpose out; shares in, sealed bytes for one receiver out, and back.

X25519 by RFC 7748, HKDF-SHA-256 by RFC 5869, ChaCha20-Poly1305 by RFC 8439. Every derived key is for one session (its
salt is the digest of the terms), one purpose and one ordered pair of sites (its info), so no key serves twice.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.errors import RefusedError

KEY_BYTES = 32
SEAL_BYTES = 16  # the tag of ChaCha20-Poly1305
_NONCE = bytes(12)  # every key seals one message


def agree(private: X25519PrivateKey, public: bytes) -> bytes:
    """The shared secret, 32 bytes; RefusedError for a public key of low order, with which it would be known to all."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise RefusedError("an X25519 public key of low order was offered, whose secret everybody knows") from None


def derive(secret: bytes, salt: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """HKDF-SHA-256, extract and expand."""
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(secret)


def pairwise_mask_key(private: X25519PrivateKey, public: bytes, salt: bytes, pair: tuple[str, str]) -> bytes:
    """The key of the mask that two sites share; `pair` in the order of the cohort, so that both get the same."""
    return derive(agree(private, public), salt, _info("pairwise mask", *pair))


def self_mask_key(seed: bytes, salt: bytes, site: str) -> bytes:
    """The key of the mask that is a site's own."""
    return derive(seed, salt, _info("self mask", site))


def seed_digest(seed: bytes, salt: bytes, site: str) -> str:
    """What a site commits to its seed with: of 256 random bits it tells nothing, and no other seed has it."""
    return derive(seed, salt, _info("seed commitment", site)).hex()


def seal(shares: bytes, sender: X25519PrivateKey, receiver: bytes, salt: bytes, pair: tuple[str, str]) -> bytes:
    """Shares from `pair[0]` to `pair[1]`: the sender's key is made for this one offer and thrown away after it.

    So whoever takes a site's keys later cannot read what it once sent, only what `t` receivers' keys would open.
    """
    key = derive(agree(sender, receiver), salt, _info("shares", *pair) + _public(sender) + receiver)
    return ChaCha20Poly1305(key).encrypt(_NONCE, shares, salt + _info("shares", *pair))


def unseal(sealed: bytes, sender: bytes, receiver: X25519PrivateKey, salt: bytes, pair: tuple[str, str]) -> bytes:
    """Raises RefusedError unless `sealed` was made in this session, by that sender, for this receiver."""
    key = derive(agree(receiver, sender), salt, _info("shares", *pair) + sender + _public(receiver))
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, salt + _info("shares", *pair))
    except InvalidTag:
        raise RefusedError(
            f"the shares from {pair[0]} cannot be opened by {pair[1]}: they were changed, or meant for another site "
            "or session"
        ) from None


def _info(purpose: str, *sites: str) -> bytes:
    """Names hold no line break, so no two lists of them read the same."""
    return "\n".join(("wardround secagg 1", purpose, *sites, "")).encode()


def _public(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()
