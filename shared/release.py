"""A release: one file with weights signed for use, and all that a site must know of them.

The file is a zip of stored entries in this order, so that any program can look into it, and nothing else:

    manifest.json          what the release is and the SHA-256 of every file below (shared/release_manifest.py)
    manifest.sig           signature of its bytes (shared/trust/signing.py)
    signer.pem             the signer's certificate, issued by the federation's authority
    campaign.json          what the networks are built from
    weights.safetensors    float32 arrays as shared.weights.to_arrays names them
    card.html              the model card
    reference.safetensors  on request: images that an adaptation must not get worse on (shared/reference.py)

Why not Python's zipfile: a reader of files from elsewhere should accept what its writer writes and nothing else. Here
every byte is either one that `write_release` would have written at this place or one of an entry; an entry that is
compressed, encrypted, doubled, named otherwise, too large, or hidden between two others has no way in, and nothing is
unpacked to a folder.
"""

from __future__ import annotations

import hashlib
import stat
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from shared.checkpoint import write_atomically
from shared.errors import ConfigError, DataError, RefusedError
from shared.release_manifest import Manifest as Manifest

if TYPE_CHECKING:
    from shared.trust.certificates import Pair

MANIFEST, SIGNATURE, SIGNER = "manifest.json", "manifest.sig", "signer.pem"
CAMPAIGN, WEIGHTS, CARD, REFERENCE = "campaign.json", "weights.safetensors", "card.html", "reference.safetensors"
LIMITS: Mapping[str, int] = {
    MANIFEST: 4 * 2**20,
    SIGNATURE: 256,
    SIGNER: 8192,
    CAMPAIGN: 2**20,
    WEIGHTS: 2**30,
    CARD: 8 * 2**20,
    REFERENCE: 2**29,
}
"""Entry -> most bytes, in the order in which entries stand; all are there but for the last, which may be."""
_LOCAL, _CENTRAL, _END = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s4H2IH")
_MAGIC = b"PK\x03\x04"
_DATE = 0x21  # 1980-01-01: a file says in its manifest when it was made
_AGAIN = "fetch it from the coordinator again"


@dataclass(frozen=True, slots=True, eq=False)
class ReleaseFile:
    """What stands in the file; `files` are the entries that the manifest names, by name."""

    manifest: Manifest
    manifest_bytes: bytes
    signature: bytes
    signer_pem: bytes
    files: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest's bytes, and with them of everything: the release digest."""
        return hashlib.sha256(self.manifest_bytes).hexdigest()


def read_release(path: Path) -> ReleaseFile:
    """Structure and digests; who signed it is another question (shared.trust.signing.verify).

    Raises ConfigError where there is no file, DataError for a file that is no release or is cut short, RefusedError for
    a file in it that is not the one that the manifest names.
    """
    release = unpack(path)
    check_digests(release)
    return release


def unpack(path: Path) -> ReleaseFile:
    """Structure alone: `read_release` without its last step, for who wants to see the signature first."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
            raise DataError(f"{path.name} is not a plain file; give the .release file")
        with path.open("rb") as file:
            entries = _entries(file, status.st_size)
    except OSError:
        raise ConfigError(f"no release file {path.name!r} that can be read; give the .release file") from None
    manifest = Manifest.from_json(entries[MANIFEST])
    files = {name: entries[name] for name in entries if name not in (MANIFEST, SIGNATURE, SIGNER)}
    if manifest.files.keys() != files.keys():
        raise DataError(f"the manifest does not name the files of the release; {_AGAIN}")
    return ReleaseFile(manifest, entries[MANIFEST], entries[SIGNATURE], entries[SIGNER], files)


def read_manifest(path: Path) -> Manifest:
    """The manifest alone, of a file that is here and one's own; raises as `read_release` does."""
    try:
        with path.open("rb") as file:
            return Manifest.from_json(_entry(file, file.read(_LOCAL.size), MANIFEST, {}))
    except (OSError, struct.error):
        raise DataError(f"release file {path.name!r} cannot be read; restore it from a backup") from None


def check_digests(release: ReleaseFile) -> None:
    """Raises RefusedError naming the first file that has not the size and SHA-256 that the manifest states."""
    for name, data in release.files.items():
        if release.manifest.files[name] != file_record(data):
            raise RefusedError(f"{name} of the release is not the file that its manifest names (SHA-256); {_AGAIN}")


def file_record(data: bytes) -> dict[str, str | int]:
    """What a manifest says of a file."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def signed(manifest: Manifest, files: Mapping[str, bytes], signer: Pair) -> ReleaseFile:
    """A release of these files by this signer; `manifest.files` must name them."""
    from shared.trust.signing import sign

    content = manifest.to_json()
    release = ReleaseFile(manifest, content, sign(signer.key, content), signer.certificate, dict(files))
    check_digests(release)
    return release


def write_release(path: Path, release: ReleaseFile) -> None:
    """Write the file in one step; the same release gives the same bytes. Raises ConfigError where it cannot be
    written, or an entry is larger than a release may have it."""
    head = {MANIFEST: release.manifest_bytes, SIGNATURE: release.signature, SIGNER: release.signer_pem}
    entries = {**head, **{name: release.files[name] for name in LIMITS if name in release.files}}
    assert release.files.keys() == entries.keys() - head.keys() == release.manifest.files.keys()
    assert entries.keys() | {REFERENCE} == LIMITS.keys()
    for name, data in entries.items():
        if len(data) > LIMITS[name]:
            raise ConfigError(f"{name} of a release has at most {LIMITS[name]} bytes, got {len(data)}")
    try:
        write_atomically(path, _archive(entries))
    except OSError:
        raise ConfigError(f"{path.name} cannot be written there; give a file in a folder that may be written") from None


# --------------------------------------------------------------------------- zip, APPNOTE.TXT 6.3 sections 4.3.7-4.3.16


def _archive(entries: Mapping[str, bytes]) -> bytes:
    parts = [part for name, data in entries.items() for part in (_local(name, data), data)]
    return b"".join([*parts, _directory(entries)])


def _local(name: str, data: bytes) -> bytes:
    size = len(data)
    return _LOCAL.pack(_MAGIC, 20, 0, 0, 0, _DATE, zlib.crc32(data), size, size, len(name), 0) + name.encode()


def _directory(entries: Mapping[str, bytes]) -> bytes:
    """The central directory and the end of the archive."""
    lines, offset = [], 0
    for name, data in entries.items():
        size, sizes = len(data), (len(data), len(data), len(name))
        lines.append(
            _CENTRAL.pack(b"PK\x01\x02", 20, 20, 0, 0, 0, _DATE, zlib.crc32(data), *sizes, 0, 0, 0, 0, 0, offset)
        )
        lines.append(name.encode())
        offset += _LOCAL.size + len(name) + size
    length = sum(map(len, lines))
    return b"".join([*lines, _END.pack(b"PK\x05\x06", 0, 0, len(entries), len(entries), length, offset, 0)])


def _entries(file: BinaryIO, size: int) -> dict[str, bytes]:
    """Front to back; no length of the file's is believed beyond what its entry may have."""
    if size > sum(LIMITS.values()) + 2**16:
        raise DataError(f"a release has at most {sum(LIMITS.values()) // 2**20} MiB; {_AGAIN}")
    found: dict[str, bytes] = {}
    for expected in LIMITS:
        start = file.tell()
        head = file.read(_LOCAL.size)
        if not head.startswith(_MAGIC) or len(head) < _LOCAL.size:
            if expected == REFERENCE:  # the directory begins here
                file.seek(start)
                break
            raise DataError(f"not a release, or one that is cut short: {expected} is missing; {_AGAIN}")
        found[expected] = _entry(file, head, expected, found)
    directory = _directory(found)
    rest = file.read(len(directory) + 1)
    if rest != directory:
        name = "a further entry or bytes" if rest.startswith(_MAGIC) or len(rest) > len(directory) else "no whole end"
        raise DataError(f"the release has {name} behind its entries: it is cut short or was packed anew; {_AGAIN}")
    return found


def _entry(file: BinaryIO, head: bytes, expected: str, found: Mapping[str, bytes]) -> bytes:
    _, _, flags, method, _, _, _, packed, size, name_length, _ = _LOCAL.unpack(head)
    name = file.read(min(name_length, 100)).decode("utf-8", "replace")
    if name in found:
        raise DataError(f"the release has two entries {name}; {_AGAIN}")
    if name != expected:
        raise DataError(f"the release has {name[:60]!r} where {expected} belongs; {_AGAIN}")
    if flags & 1:
        raise DataError(f"{name} of the release is encrypted; entries are stored as they are; {_AGAIN}")
    if method or packed != size:
        raise DataError(f"{name} of the release is compressed; entries are stored as they are; {_AGAIN}")
    if size > LIMITS[name]:
        raise DataError(f"{name} of a release has at most {LIMITS[name]} bytes, got {size}; {_AGAIN}")
    data = file.read(size)
    if len(data) < size:
        raise DataError(f"the release is cut short within {name}; {_AGAIN}")
    if head + name.encode() != _local(name, data):
        raise DataError(f"{name} of the release is damaged (its checksum or header is not what it should be); {_AGAIN}")
    return data
