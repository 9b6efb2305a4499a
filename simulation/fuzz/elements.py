"""The bytes of a DICOM file in; where its data elements stand, out (PS3.5 section 7), for mutation only.

No value is decoded and nothing is refused: the walk ends where the bytes stop making sense. Deflated files have no
elements beyond their file meta information.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXELS = 0x7FE00010
IMPLICIT, BIG, DEFLATED = b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99"


@dataclass(frozen=True, slots=True)
class Element:
    """Offsets into the file."""

    start: int
    tag: int
    vr: bytes
    """Empty where implicit."""
    length_at: int
    length_size: int
    value_at: int
    length: int
    big: bool

    @property
    def end(self) -> int:
        return self.value_at + (0 if self.length == UNDEFINED else self.length)


def elements(content: bytes) -> list[Element]:
    """In the order of the file, those of sequences between their own."""
    if content[128:132] != b"DICM":
        return []
    meta = list(_walk(content, 132, explicit=True, big=False, meta=True))
    syntax = next((content[item.value_at : item.end] for item in meta if item.tag == 0x00020010), b"")
    start = meta[-1].end if meta else 132
    if syntax.startswith(DEFLATED):
        return meta
    big = syntax.startswith(BIG)
    return meta + list(_walk(content, start, explicit=syntax != IMPLICIT, big=big, meta=False))


def _walk(content: bytes, at: int, *, explicit: bool, big: bool, meta: bool) -> Iterator[Element]:
    order, in_pixels = ">" if big else "<", False
    while at + 8 <= len(content):
        group, number = struct.unpack_from(order + "2H", content, at)
        tag = group << 16 | number
        if meta and group != 2:
            return
        if tag in (ITEM, ITEM_END, SEQUENCE_END) or not explicit:
            vr, length_at, size = b"", at + 4, 4
        else:
            vr = content[at + 4 : at + 6]
            length_at, size = (at + 8, 4) if vr in LONG else (at + 6, 2)
        if length_at + size > len(content):
            return
        (length,) = struct.unpack_from(order + ("I" if size == 4 else "H"), content, length_at)
        element = Element(at, tag, vr, length_at, size, length_at + size, length, big)
        yield element
        # Into sequences and items; the items of encapsulated pixels are fragments.
        fragment = tag == ITEM and in_pixels
        in_pixels = in_pixels if tag in (ITEM, ITEM_END) else tag == PIXELS
        inside = (vr == b"SQ" or tag == ITEM or length == UNDEFINED) and not fragment
        at = element.value_at if inside else element.end
