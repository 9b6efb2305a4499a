"""Bytes and their name in, an encrypted file out, and back: refused with another key, cut, changed, swapped or renamed.

    8 bytes    "WRSEAL1" and a line feed
    16 bytes   random, of this file
    chunks     AES-256-GCM of 1 MiB of plain bytes each, the last one of fewer (0 or more), 16 bytes longer than that

Each file has its own key, HKDF-SHA256 of the folder's data key with the 16 bytes as salt, so that chunks are numbered
from 0 in their nonces: 11 bytes of the chunk's number and one that is 1 on the last chunk alone (the STREAM
construction of Hoang, Reyhanitabar, Rogaway and Vizar, CRYPTO 2015). A chunk that is moved, left out or put in has
another nonce, a file that was cut has no last chunk, and the file's name is associated data of every chunk.

Not prevented: that a whole file is put back as it was earlier, under its own name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.errors import DataError
from shared.files import sync

SUFFIX = ".sealed"
MAGIC = b"WRSEAL1\n"
CHUNK = 1 << 20
TAG = 16
_SALT = 16
_HEADER = len(MAGIC) + _SALT
_PURPOSE = b"wardround sealed file 1"


@dataclass(frozen=True, slots=True)
class Vault:
    """The data key of a folder, and the folder: a file's name is its path below it."""

    folder: Path
    key: bytes = field(repr=False)

    def name_of(self, path: Path) -> str:
        """What a file is bound to: the path of its plain form, below the folder."""
        return os.path.relpath(os.path.abspath(path), self.folder).removesuffix(SUFFIX)

    def write(self, path: Path, content: bytes | bytearray | memoryview, *, named: Path | None = None) -> Path:
        """Encrypt `content` as `path`.sealed, whole or not at all; no plain byte reaches the disk.

        `named`: where its folder is renamed to before anybody reads it.
        """
        target = path.with_name(path.name + SUFFIX)
        partial = path.with_name(f"{path.name}{SUFFIX}.part")
        with partial.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            for piece in seal(self.key, self.name_of(named or path), memoryview(content)):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        sync(target.parent)
        return target

    def read(self, path: Path) -> bytearray:
        """The content of `path`.sealed, in anonymous memory. DataError as `opened`; FileNotFoundError."""
        target = path.with_name(path.name + SUFFIX)
        with target.open("rb") as file:
            return opened(self.key, self.name_of(path), memoryview(file.read()))


def seal(key: bytes, name: str, content: memoryview) -> Iterator[bytes]:
    """The pieces of the encrypted file, in order."""
    salt = os.urandom(_SALT)
    cipher, bound = _cipher(key, salt), MAGIC + salt + name.encode()
    yield MAGIC + salt
    content = content.cast("B")
    count = len(content) // CHUNK
    for number in range(count + 1):  # the last is shorter than a chunk, so that no length is ambiguous
        piece = content[number * CHUNK : (number + 1) * CHUNK]
        yield cipher.encrypt(_nonce(number, last=number == count), piece, bound)


def opened(key: bytes, name: str, data: memoryview) -> bytearray:
    """The plain bytes; DataError where one byte of the file is not what was written under this name and key."""
    damaged = DataError(
        "an encrypted file was cut, changed or swapped, or belongs to another key; restore it from a backup"
    )
    if len(data) < _HEADER + TAG or bytes(data[: len(MAGIC)]) != MAGIC:
        raise damaged
    salt, body = bytes(data[len(MAGIC) : _HEADER]), data[_HEADER:]
    cipher, bound = _cipher(key, salt), MAGIC + salt + name.encode()
    count, rest = divmod(len(body), CHUNK + TAG)
    if rest < TAG:
        raise damaged
    plain = bytearray(count * CHUNK + rest - TAG)
    view = memoryview(plain)
    try:
        for number in range(count + 1):
            piece = body[number * (CHUNK + TAG) : (number + 1) * (CHUNK + TAG)]
            place = view[number * CHUNK : number * CHUNK + len(piece) - TAG]
            place[:] = cipher.decrypt(_nonce(number, last=number == count), piece, bound)
    except InvalidTag:
        raise damaged from None
    return plain


def _cipher(key: bytes, salt: bytes) -> AESGCM:
    return AESGCM(HKDF(hashes.SHA256(), 32, salt, _PURPOSE).derive(key))


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])
