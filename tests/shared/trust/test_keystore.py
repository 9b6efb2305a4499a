"""Keys in files: private from the first byte, never overwritten, refused when open."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from shared.errors import ConfigError, DataError, RefusedError
from shared.trust import keystore


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_site_key_is_private_even_under_a_generous_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        public = keystore.create_site_key(tmp_path / "key")
        keystore.create_secret(tmp_path / "secret")
    finally:
        os.umask(before)
    assert mode(tmp_path / "key") == mode(tmp_path / "secret") == 0o600
    assert len(keystore.read_private(tmp_path / "secret")) == keystore.SECRET_BYTES
    assert b"PRIVATE" not in public.read_bytes()


def test_public_half_belongs_to_the_private_half(tmp_path: Path) -> None:
    public = keystore.create_site_key(tmp_path / "key")
    private = serialization.load_ssh_private_key((tmp_path / "key").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.curve.name == "secp384r1"
    assert keystore.public_line(private.public_key()) == keystore.read_public_line(public) == public.read_text().strip()


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="the oracle is ssh-keygen")
def test_fingerprint_is_that_of_ssh_keygen(tmp_path: Path) -> None:
    public = keystore.create_site_key(tmp_path / "key")
    printed = subprocess.run(("ssh-keygen", "-lf", str(public)), capture_output=True, text=True, check=True).stdout
    assert printed.split()[1] == keystore.fingerprint(keystore.read_public_line(public))


def test_fingerprint_of_a_known_key() -> None:
    """SHA-256 of three zero bytes is 709e80c8 8487a241 ... 70f8147c; OpenSSH prints it in base64 without padding."""
    assert keystore.fingerprint("ecdsa-sha2-nistp384 AAAA") == "SHA256:cJ6AyISHokEeHuTfufIqhhSS0gxHZRUMDHlKvXD4FHw"


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    keystore.create_secret(tmp_path / "secret")
    before = (tmp_path / "secret").read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        keystore.create_secret(tmp_path / "secret")
    assert (tmp_path / "secret").read_bytes() == before


@pytest.mark.parametrize("open_mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_key_open_to_others_is_refused(tmp_path: Path, open_mode: int) -> None:
    keystore.create_secret(tmp_path / "secret")
    (tmp_path / "secret").chmod(open_mode)
    with pytest.raises(RefusedError, match=f"got {open_mode:04o}"):
        keystore.read_private(tmp_path / "secret")


def test_a_link_in_place_of_a_key_is_refused(tmp_path: Path) -> None:
    keystore.create_secret(tmp_path / "secret")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(RefusedError, match="plain file"):
        keystore.read_private(tmp_path / "link")
    with pytest.raises(ConfigError, match="never overwritten"):
        keystore.write_private(tmp_path / "link", b"x")


def test_a_missing_key_is_bad_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        keystore.check_private(tmp_path / "none")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    keystore.create_secret(tmp_path / "secret")
    os.chown(tmp_path / "secret", 65534, 65534)
    with pytest.raises(RefusedError, match="another user"):
        keystore.check_private(tmp_path / "secret")


def test_a_private_key_handed_over_by_mistake_is_refused_and_said_to_be_burnt(tmp_path: Path) -> None:
    keystore.create_site_key(tmp_path / "key")
    with pytest.raises(RefusedError, match="must never leave its site"):
        keystore.read_public_line(tmp_path / "key")


def other_keys() -> list[bytes]:
    form = serialization.PublicFormat.OpenSSH
    p256 = ec.generate_private_key(ec.SECP256R1()).public_key()
    edwards = ed25519.Ed25519PrivateKey.generate().public_key()
    return [key.public_bytes(serialization.Encoding.OpenSSH, form) for key in (p256, edwards)]


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"ecdsa-sha2-nistp384 AAAA", b"\xff" * 9000, *other_keys()],
    ids=["empty", "word", "short", "long", "p256", "ed25519"],  # fresh keys in the ids would differ between workers
)
def test_what_is_no_p384_public_key_is_bad_data(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.pub").write_bytes(content)
    with pytest.raises(DataError, match="expected one line"):
        keystore.read_public_line(tmp_path / "odd.pub")
    with pytest.raises(DataError, match="cannot be read"):
        keystore.read_public_line(tmp_path / "none.pub")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="choose another folder"):
        keystore.private_folder(tmp_path / "taken" / "site")
