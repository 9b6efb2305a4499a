"""A folder whose files are encrypted in, its data key out; made once, with a key file or a passphrase.

    sealed.json    how the data key is wrapped: by a key file (32 random bytes, 0600), or by scrypt of a passphrase with
                   the parameters that stand there (RFC 7914; 128 MB and half a second for each program that opens it)

The data key is random and never changes; AES-256-GCM wraps it, so that a wrong key file or passphrase is told at once.
Where to find them: WARDROUND_KEY_FILE or the path in sealed.json; WARDROUND_PASSPHRASE, or a question at the terminal.
"""

from __future__ import annotations

import base64
import getpass
import json
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from shared.errors import ConfigError, DataError, RefusedError
from shared.trust import keystore
from shared.trust.sealed import Vault

FILE = "sealed.json"
KEY_FILE, PASSPHRASE = "WARDROUND_KEY_FILE", "WARDROUND_PASSPHRASE"
SHORTEST_PASSPHRASE = 12
SCRYPT = {"n": 2**17, "r": 8, "p": 1}
_LIMITS = {"n": 2**20, "r": 16, "p": 4}
"""What a sealed.json may ask for: it must not be a way to fill the memory."""
_DOMAIN = b"wardround data key 1"
_DEEPEST = 8  # runs/NAME/phases/PHASE/checkpoints/round_00001 and a folder of a simulation above


def create(folder: Path, key_file: Path | None) -> Vault:
    """Make sealed.json in a site's or a coordinator's folder, with a key file (made where it is missing) or, without
    one, a passphrase. One that is there already is opened instead, and must fit."""
    if (folder / FILE).exists():
        return unlock(folder)
    data_key = os.urandom(32)
    if key_file is not None:
        if not key_file.exists():
            keystore.create_secret(key_file)
        how: dict[str, Any] = {"kind": "file", "file": str(key_file.resolve())}
        wrapping = _from_file(key_file)
    else:
        how = {"kind": "scrypt", **SCRYPT, "salt": os.urandom(16).hex()}
        wrapping = _from_passphrase(how, _passphrase(new=True))
    nonce = os.urandom(12)
    wrapped = nonce + AESGCM(wrapping).encrypt(nonce, data_key, _DOMAIN)
    values = {"format": 1, "key": how, "wrapped": base64.b64encode(wrapped).decode()}
    partial = folder / f".partial-{FILE}"
    partial.unlink(missing_ok=True)
    keystore.write_private(partial, (json.dumps(values, indent=1) + "\n").encode())
    partial.replace(folder / FILE)
    return Vault(Path(os.path.abspath(folder)), data_key)


def vault_of(path: Path) -> Vault | None:
    """The vault that a file or folder lies in; None where nothing above it is encrypted."""
    path = Path(os.path.abspath(path))
    for folder in (path, *path.parents[:_DEEPEST]):
        try:
            status = (folder / FILE).stat()
        except OSError:
            continue
        return _unlocked(folder, status.st_mtime_ns)
    return None


def unlock(folder: Path) -> Vault:
    """The vault of the folder that holds sealed.json; RefusedError for a wrong key, ConfigError where there is none."""
    return _unlocked(Path(os.path.abspath(folder)), (folder / FILE).stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _unlocked(folder: Path, changed: int) -> Vault:
    try:
        values = json.loads((folder / FILE).read_text())
        how, wrapped = dict(values["key"]), base64.b64decode(values["wrapped"], validate=True)
        kind, form = how["kind"], values["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{FILE} cannot be read; restore it from a backup: without it the data are lost") from None
    if form != 1 or kind not in ("file", "scrypt"):
        raise DataError(f"{FILE} is not of format 1; use the version of Wardround that made it")
    if kind == "file":
        wrapping = _from_file(Path(os.environ.get(KEY_FILE) or str(how.get("file"))))
    else:
        wrapping = _from_passphrase(how, _passphrase(new=False))
    try:
        data_key = AESGCM(wrapping).decrypt(wrapped[:12], wrapped[12:], _DOMAIN)
    except (InvalidTag, ValueError):
        os.environ.pop(PASSPHRASE, None) if kind == "scrypt" and sys.stdin.isatty() else None
        what = "key file" if kind == "file" else "passphrase"
        raise RefusedError(
            f"wrong {what}: it does not open {FILE}; give the one that this folder was encrypted with"
        ) from None
    return Vault(folder, data_key)


def _from_file(path: Path) -> bytes:
    if not path.exists():
        raise ConfigError(f"the key file {path.name} is not there; mount it, or say where it is in {KEY_FILE}")
    content = keystore.read_private(path)
    if len(content) != keystore.SECRET_BYTES:
        raise DataError(f"the key file {path.name} must hold {keystore.SECRET_BYTES} bytes, got {len(content)}")
    return content


def _from_passphrase(how: dict[str, Any], passphrase: str) -> bytes:
    numbers = {name: how.get(name) for name in SCRYPT}
    try:
        salt = bytes.fromhex(how["salt"])
        whole = all(type(number) is int and 1 <= number <= _LIMITS[name] for name, number in numbers.items())
        if not whole or len(salt) < 16:
            raise ValueError
        return Scrypt(salt=salt, length=32, **numbers).derive(passphrase.encode())  # type: ignore[arg-type]
    except (ValueError, KeyError, TypeError):
        limits = ", ".join(f"{name} up to {limit}" for name, limit in _LIMITS.items())
        raise DataError(f"{FILE}: scrypt takes {limits} and a salt of 16 bytes; restore it from a backup") from None


def _passphrase(*, new: bool) -> str:
    """From the environment or the terminal; one that was typed goes to the programs that this one starts."""
    given = os.environ.get(PASSPHRASE)
    if given is None:
        if not sys.stdin.isatty():
            raise ConfigError(f"this folder is encrypted and nobody is there to ask; set {PASSPHRASE}")
        given = getpass.getpass("Passphrase: ")
        if new and getpass.getpass("The same again: ") != given:
            raise ConfigError("the two are not the same; nothing was changed")
    if new and len(given) < SHORTEST_PASSPHRASE:
        raise ConfigError(f"the passphrase must have {SHORTEST_PASSPHRASE} characters or more, got {len(given)}")
    os.environ[PASSPHRASE] = given
    return given
