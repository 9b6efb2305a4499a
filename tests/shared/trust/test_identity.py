"""A site's identity: two keys, one of which signs the other; what is not so is refused with the reason."""

from __future__ import annotations

import base64
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shared.errors import ConfigError, DataError, RefusedError
from shared.trust import keystore
from shared.trust.identity import (
    CONTEXT,
    PublicIdentity,
    create_exchange_key,
    create_identity,
    load_identity,
    sign,
    verify,
)


def test_a_public_identity_survives_json() -> None:
    public = create_identity("north").public
    assert PublicIdentity.from_json(public.to_json()) == public


def test_the_fingerprint_is_that_of_the_site_key() -> None:
    identity = create_identity("north")
    line = keystore.public_line(identity.key.public_key())
    assert identity.public.fingerprint == keystore.fingerprint(line)
    assert identity.public.fingerprint.startswith("SHA256:")


def test_identities_load_from_the_files_of_a_site(tmp_path: Path) -> None:
    keystore.create_site_key(tmp_path / "key")
    create_exchange_key(tmp_path / "exchange.key")
    assert stat.S_IMODE((tmp_path / "exchange.key").stat().st_mode) == 0o600
    identity = load_identity("north", tmp_path / "key", tmp_path / "exchange.key")
    assert identity.public.key == keystore.read_public_line(tmp_path / "key.pub")
    held = bytes.fromhex((tmp_path / "exchange.key").read_text().strip())
    assert identity.public.exchange == X25519PrivateKey.from_private_bytes(held).public_key().public_bytes_raw().hex()
    assert identity.name == "north"


def test_an_open_exchange_key_is_refused(tmp_path: Path) -> None:
    keystore.create_site_key(tmp_path / "key")
    create_exchange_key(tmp_path / "exchange.key")
    (tmp_path / "exchange.key").chmod(0o640)
    with pytest.raises(RefusedError, match="must have mode 0600"):
        load_identity("north", tmp_path / "key", tmp_path / "exchange.key")


@pytest.mark.parametrize("content", [b"", b"ab" * 31 + b"\n", b"zz" * 32, b"ab" * 33, b"\xff" * 64])
def test_a_damaged_exchange_key_is_told(tmp_path: Path, content: bytes) -> None:
    keystore.create_site_key(tmp_path / "key")
    keystore.write_private(tmp_path / "exchange.key", content)
    with pytest.raises(DataError, match="64 hexadecimal digits"):
        load_identity("north", tmp_path / "key", tmp_path / "exchange.key")


def test_a_damaged_site_key_is_told(tmp_path: Path) -> None:
    keystore.write_private(tmp_path / "key", b"nonsense")
    create_exchange_key(tmp_path / "exchange.key")
    with pytest.raises(DataError, match="not an OpenSSH P-384 key"):
        load_identity("north", tmp_path / "key", tmp_path / "exchange.key")


def test_an_exchange_key_of_somebody_else_is_refused() -> None:
    mine, other = create_identity("north").public, create_identity("north").public
    with pytest.raises(RefusedError, match="not signed by its site key"):
        PublicIdentity.from_json(replace(mine, exchange=other.exchange).to_json())


def test_an_identity_is_not_valid_under_another_name() -> None:
    with pytest.raises(RefusedError, match="not signed by its site key"):
        PublicIdentity.from_json(replace(create_identity("north").public, name="south").to_json())


def test_a_site_key_on_another_curve_is_told() -> None:
    line = keystore.public_line(ec.generate_private_key(ec.SECP256R1()).public_key())
    with pytest.raises(DataError, match="not an OpenSSH P-384 key"):
        PublicIdentity.from_json(replace(create_identity("north").public, key=line).to_json())


def test_a_key_with_a_comment_is_told() -> None:
    public = create_identity("north").public
    with pytest.raises(DataError, match="not in its normal form"):
        PublicIdentity.from_json(replace(public, key=public.key + " root@host").to_json())


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {},
        {"name": "a", "key": "k", "exchange": "e"},
        {"name": "a", "key": 1, "exchange": "e", "signature": "s"},
        {"name": "a", "key": "k" * 401, "exchange": "e", "signature": "s"},
        {"name": "a/b", "key": "k", "exchange": "e", "signature": "s"},
        {"name": "a", "key": "nonsense", "exchange": "e", "signature": "s"},
        {"name": "a", "key": "k", "exchange": "", "signature": "s"},
        {"name": "a", "key": "k", "exchange": "e", "signature": "s", "more": "m"},
    ],
)
def test_malformed_identities_are_told(values: object) -> None:
    with pytest.raises(DataError):
        PublicIdentity.from_json(values)


@pytest.mark.parametrize(("field", "value"), [("exchange", "ab"), ("exchange", "A" * 64), ("signature", "no base64!")])
def test_malformed_parts_of_an_identity_are_told(field: str, value: str) -> None:
    with pytest.raises(DataError, match=field):
        PublicIdentity.from_json({**create_identity("north").public.to_json(), field: value})


def test_a_signature_is_by_one_key_over_one_content() -> None:
    mine, other = create_identity("north"), create_identity("north")
    signature = sign(mine, b"content")
    verify(mine.public, b"content", signature)
    for public, content, tried in (
        (other.public, b"content", signature),
        (mine.public, b"other content", signature),
        (mine.public, b"content", signature[:-1]),
        (mine.public, b"content", b""),
    ):
        with pytest.raises(RefusedError, match="not by the key of north"):
            verify(public, content, tried)


def test_what_the_exchange_signature_is_over_is_what_the_docstring_says() -> None:
    public = create_identity("north").public
    verify(public, CONTEXT + b"north\n" + public.exchange.encode(), base64.b64decode(public.signature))


def test_private_keys_are_not_printed() -> None:
    identity = create_identity("north")
    assert identity.exchange.private_bytes_raw().hex() not in repr(identity)


def test_a_name_must_be_one() -> None:
    with pytest.raises(ConfigError):
        create_identity("../north")
