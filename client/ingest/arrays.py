"""A path and an array or bytes in, a file on the disk out, and back: plain, or encrypted where the site's folder is.

Plain arrays are .npy files that numpy maps without copying. Encrypted ones (shared/trust/sealed.py, `<name>.sealed`)
are decrypted whole into anonymous memory: no plain byte of them is on any disk but the swap, which belongs to the
machine. The last ones read are kept, RECENT_BYTES of them at most.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from shared.errors import DataError
from shared.files import sync
from shared.trust.sealed import SUFFIX
from shared.trust.vault import vault_of

RECENT_BYTES = 256 << 20
_recent: OrderedDict[tuple[Path, int], npt.NDArray[Any]] = OrderedDict()


def write_content(path: Path, content: bytes | memoryview) -> None:
    """Whole or not at all under its final name, on the disk when it returns."""
    vault = vault_of(path.parent)
    if vault is not None:
        vault.write(path, content)
        path.unlink(missing_ok=True)  # the plain one of before the folder was encrypted
        return
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_content(path: Path) -> bytes | bytearray:
    """Plain bytes of a file, encrypted or not; FileNotFoundError, DataError."""
    if (sealed := sealed_path(path)).exists():
        vault = vault_of(sealed)
        if vault is None:
            raise DataError("the store is encrypted and sealed.json is missing; restore it from a backup of the folder")
        return vault.read(path)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        if sealed.exists():  # it was encrypted in this very moment
            return read_content(path)
        raise


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """An array on the disk, whole or not at all under its final name."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write_content(path, content.getbuffer())


def read_array(path: Path) -> npt.NDArray[Any]:
    """Read-only; raises OSError, ValueError or EOFError where it is no .npy file, DataError for an encrypted one."""
    sealed = sealed_path(path)
    try:
        changed = sealed.stat().st_mtime_ns
    except FileNotFoundError:
        try:
            return cast(npt.NDArray[Any], np.load(path, mmap_mode="r", allow_pickle=False))
        except FileNotFoundError:
            if not sealed.exists():
                raise
            changed = sealed.stat().st_mtime_ns
    if (path, changed) in _recent:
        _recent.move_to_end((path, changed))
        return _recent[path, changed]
    array = _array(read_content(path))
    _recent[path, changed] = array
    while sum(kept.nbytes for kept in _recent.values()) > RECENT_BYTES and len(_recent) > 1:
        _recent.popitem(last=False)
    return array


def _array(content: bytes | bytearray) -> npt.NDArray[Any]:
    """A view of the bytes behind the .npy header (NEP 1): nothing is copied a second time."""
    file = io.BytesIO(content[:4096])
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not version 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran or dtype.hasobject:
        raise ValueError("not written by write_array")
    array = np.frombuffer(content, dtype, count=int(np.prod(shape)), offset=file.tell()).reshape(shape)
    array.flags.writeable = False
    return array


def content_digest(path: Path) -> str:
    """SHA-256 of the plain bytes."""
    return hashlib.sha256(read_content(path)).hexdigest()


def remove(path: Path) -> None:
    """Both forms of a file, where they are there."""
    for form in (path, sealed_path(path)):
        form.unlink(missing_ok=True)


def forget_recent() -> None:
    """Let go of everything that was decrypted."""
    _recent.clear()


def sealed_path(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def seal_file(path: Path) -> None:
    """Replace a plain file by its encrypted form: written, read again and compared before the plain one goes."""
    vault = vault_of(path)
    assert vault is not None
    content = path.read_bytes()
    vault.write(path, content)
    if vault.read(path) != content:
        raise DataError("what was encrypted cannot be read back; check the disk. The plain file is still there")
    path.unlink()
    sync(path.parent)
