"""Keys and secrets in files: made with mode 0600 from the first byte, refused when others could read them.

In: a path. Out: bytes that nobody but their owner could have read or replaced. A site's key pair is EC P-384 in OpenSSH
format (what Flower's SuperNode authentication reads); the private half never leaves the folder it was made in.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shared.errors import ConfigError, DataError, RefusedError

CURVE = ec.SECP384R1
SECRET_BYTES = 32
MAX_KEY_FILE = 8192  # bytes; an OpenSSH P-384 key takes about 600


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner may enter (mode 0700), with its parents."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)  # one that was there already
    except OSError:
        raise ConfigError(f"folder {path.name!r} cannot be made or is not yours; choose another folder") from None
    return path


def write_private(path: Path, content: bytes) -> None:
    """Create a file of mode 0600; raises ConfigError when it exists, so that no key is ever overwritten."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path.name} exists already and is never overwritten; choose another folder") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def check_private(path: Path) -> None:
    """Refuse a key that is missing, not a plain file, not ours, or open to group or others."""
    try:
        status = path.lstat()
    except OSError:
        raise DataError(f"key file {path.name} is missing; run init in a new folder, or restore it") from None
    if not stat.S_ISREG(status.st_mode):
        raise RefusedError(f"key file {path.name} must be a plain file, got a link or something else; replace it")
    if status.st_uid != os.geteuid():
        raise RefusedError(f"key file {path.name} belongs to another user; chown it to the user that runs this")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise RefusedError(f"key file {path.name} must have mode 0600, got {mode:04o}: chmod 600 it, or make a new key")


def read_private(path: Path) -> bytes:
    """The content of a key file that passed `check_private`."""
    check_private(path)
    return path.read_bytes()


def create_secret(path: Path) -> None:
    """Write 32 random bytes to a new file of mode 0600."""
    write_private(path, secrets.token_bytes(SECRET_BYTES))


def create_site_key(path: Path) -> Path:
    """Make a P-384 key pair; `path` holds the private half (0600), `path`.pub the public one. Returns the latter."""
    key = ec.generate_private_key(CURVE())
    encryption = serialization.NoEncryption()
    write_private(path, key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, encryption))
    public = path.with_name(path.name + ".pub")
    public.write_text(public_line(key.public_key()) + "\n")
    return public


def public_line(key: ec.EllipticCurvePublicKey) -> str:
    """The one-line OpenSSH form, without a comment: comments tend to hold user and machine names."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def read_public_line(path: Path) -> str:
    """A site's public key file into its normal form; raises DataError unless it is one P-384 key and nothing else."""
    wanted = "expected one line `ecdsa-sha2-nistp384 ...` as wardround-site init writes it (key.pub)"
    try:
        content = path.read_bytes()[: MAX_KEY_FILE + 1]
    except OSError:
        raise DataError(f"public key file {path.name} cannot be read; {wanted}") from None
    if b"PRIVATE KEY" in content:
        raise RefusedError(
            f"{path.name} is a private key: it must never leave its site. Send key.pub, and make a new key"
        )
    try:
        key = serialization.load_ssh_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise DataError(f"{path.name} is not an OpenSSH public key; {wanted}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, CURVE):
        raise DataError(f"{path.name} is not a P-384 key; {wanted}")
    return public_line(key)


def fingerprint(line: str) -> str:
    """The fingerprint that `ssh-keygen -lf` prints: what two people compare by telephone."""
    blob = base64.b64decode(line.split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
