"""Valid files and a generator in, one hostile file out: what breaks readers of DICOM, by kind.

Each mutation is a function of (content, rng, all seeds). Most change one place and leave the rest as it was, so that
the damage is met deep inside a reader and not at its door; some of them are put one upon another.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from simulation.fuzz.elements import ITEM, ITEM_END, PIXELS, SEQUENCE_END, UNDEFINED, Element, elements
from simulation.fuzz.seeds import CANARY, Seed

Rng = np.random.Generator
Mutation = Callable[[bytes, Rng, Sequence[Seed]], bytes]

VRS = b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV ZZ \0\0"
LENGTHS = (0, 1, 2, 7, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFE, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, UNDEFINED)
NUMBERS = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100, 255, 256, 4095, 32767, 32768, 60000, 65535)
TEXTS = (
    *(b"", b"0", b"1", b"-1", b"00", b"2", b"3", b"9999", b"10001", b"2147483648", b"1e309", b"-1e309", b"nan", b"inf"),
    *(b"1e-320", b"1e-9", b"1e9", b"1e38", b"0.0001", b"1\\2", b"1\\2\\3", b"0\\0\\0", b"0\\0\\0\\0\\0\\0", b"\\\\\\"),
    *(b"1\\0\\0\\0\\1\\0", b"1\\0\\0\\1\\0\\0", b"1e9\\1e9", b"1e-9\\1e-9", b"-1\\-1", b"nan\\nan", b"1_0", b"0x10"),
    *(b"CT", b"MR", b"SEG", b"US", b"OT", b"YES", b"NO", b"MONOCHROME1", b"MONOCHROME2", b"PALETTE COLOR", b"RGB"),
    *(b"YBR_FULL", b"YBR_FULL_422", b"YBR_RCT", b"YBR_ICT", b"BINARY", b"FRACTIONAL", b"LABELMAP", b"DERIVED\\X"),
    *(b"20231332", b"99999999", b"0000", b"235960.999999", b"999Y", b"-01Y", b"\0" * 64, b" " * 64, b"\x1b$B\x1b(J"),
    *(b"\xff\xfe\xfd", b"\xed\xa0\x80", b"%s%n{0}{x}", b"../../../etc/passwd", b"/dev/null", b"\n\x1b[31m", b"A" * 999),
    *(b"1.2.840.10008.1.2", b"1.2.3", b"0.0.0", b"9" * 64, b"1." * 200, CANARY.encode(), f"{CANARY}^{CANARY}".encode()),
)  # fmt: skip
CHARSETS = (
    *(
        b"",
        b"ISO_IR 192",
        b"ISO_IR 13",
        b"ISO 2022 IR 87",
        b"\\ISO 2022 IR 149",
        b"GB18030",
        b"GBK",
        b"utf-16",
        b"idna",
    ),
    *(
        b"unicode_escape",
        b"base64",
        b"zlib",
        b"punycode",
        b"ISO 2022 IR 6\\ISO 2022 IR 58",
        CANARY.encode(),
        b"\\\\\\\\",
    ),
)
SYNTAXES = (
    *(b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0", b"1.2.840.10008.1.2.1.99"),
    *(b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.51", b"1.2.840.10008.1.2.4.57"),
    *(b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.4.81", b"1.2.840.10008.1.2.4.90"),
    *(b"1.2.840.10008.1.2.4.91", b"1.2.840.10008.1.2.4.201", b"1.2.840.10008.1.2.4.202", b"1.2.840.10008.1.2.4.203"),
    *(b"1.2.840.10008.1.2.4.100", b"1.2.840.10008.1.2.4.94", b"1.2.840.113619.5.2", b"1.2.3.4\0", b"", b"\0\0"),
)  # fmt: skip
GROUP_28 = (0x0002, 0x0004, 0x0006, 0x0008, 0x0010, 0x0011, 0x0030, 0x0100, 0x0101, 0x0102, 0x0103, 0x1052, 0x1053)


def mutated(seeds: Sequence[Seed], rng: Rng) -> tuple[str, bytes]:
    """(what was done to which seed, the file)."""
    # Every other input from our own seeds, which reach further than most of the odd ones.
    own = 18 if rng.random() < 0.5 else len(seeds)
    seed = seeds[int(rng.integers(min(own, len(seeds))))]
    content, done = seed.content, []
    for _ in range(int(rng.choice((1, 1, 1, 2, 2, 3, 6)))):
        mutation = MUTATIONS[int(rng.choice(len(MUTATIONS), p=_WEIGHTS))]
        content = mutation(content, rng, seeds)
        done.append(mutation.__name__)
    return f"{seed.name}: {', '.join(done)}", content[:MOST_BYTES]


MOST_BYTES = 1 << 20


def _one(items: Sequence[bytes], rng: Rng) -> bytes:
    return items[int(rng.integers(len(items)))]


def _any(content: bytes, rng: Rng) -> Element | None:
    found = elements(content)
    return found[int(rng.integers(len(found)))] if found else None


def _put(content: bytes, start: int, end: int, new: bytes) -> bytes:
    return content[:start] + new + content[end:]


def _valued(content: bytes, item: Element, value: bytes) -> bytes:
    """The element with another value and, as far as its field holds it, the right length."""
    order = ">" if item.big else "<"
    value += b"\0" * (len(value) % 2)
    size = struct.pack(order + ("I" if item.length_size == 4 else "H"), len(value) & (256**item.length_size - 1))
    return _put(content, item.length_at, item.end, size + value)


def _element(tag: int, vr: bytes, value: bytes) -> bytes:
    """Explicit VR little endian."""
    head = struct.pack("<2H", tag >> 16, tag & 0xFFFF) + vr
    long = vr in (b"OB", b"OW", b"SQ", b"UN", b"UT")
    return head + (struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value) & 0xFFFF)) + value


def _insert(content: bytes, rng: Rng, new: bytes) -> bytes:
    item = _any(content, rng)
    return content + new if item is None else _put(content, item.start, item.start, new)


# ------------------------------------------------------------------------------------------------------------- bytes


def flip(content: bytes, rng: Rng, seeds: Sequence[Seed]) -> bytes:
    """A few bits, anywhere."""
    changed = bytearray(content)
    for place in rng.integers(len(changed), size=int(rng.integers(1, 9))) if changed else ():
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def cut(content: bytes, rng: Rng, seeds: Sequence[Seed]) -> bytes:
    """The end of it, or a piece from the middle, is missing."""
    if rng.random() < 0.5:
        return content[: int(rng.integers(len(content) + 1))]
    start = int(rng.integers(len(content) + 1))
    return _put(content, start, start + int(rng.integers(1, 200)), b"")


def splice(content: bytes, rng: Rng, seeds: Sequence[Seed]) -> bytes:
    """The beginning of one, the end of another."""
    other = seeds[int(rng.integers(len(seeds)))].content
    return content[: int(rng.integers(len(content) + 1))] + other[int(rng.integers(len(other) + 1)) :]


# ----------------------------------------------------------------------------------------------------------- elements


def length(content: bytes, rng: Rng, seeds: Sequence[Seed]) -> bytes:
    """A length that lies."""
    item = _any(content, rng)
    if item is None:
        return content
    most = 256**item.length_size - 1
    near = (item.length - 1, item.length + 1, item.length + 2, item.length * 2, len(content), len(content) * 2)
    wrong = int(rng.choice(LENGTHS + near)) & most
    order = (">" if item.big else "<") + ("I" if item.length_size == 4 else "H")
    return _put(content, item.length_at, item.value_at, struct.pack(order, wrong))


def kind(content: bytes, rng: Rng, seeds: Sequence[Seed]) -> bytes:
    """Another value representation, the value as it was."""
    item = _any(content, rng)
    if item is None or not item.vr:
        return content
    return _put(content, item.start + 4, item.start + 6, _one(VRS.split(b" "), rng))


def tag(content: bytes, rng: Rng, seeds: Sequence[Seed]) -> bytes:
    """A tag that belongs to another element, is private, or is none."""
    item, other = _any(content, rng), _any(content, rng)
    if item is None or other is None:
        return content
    odd = (
        other.tag,
        0,
        0x00090010,
        0x00091001,
        ITEM,
        ITEM_END,
        SEQUENCE_END,
        PIXELS,
        0xFFFFFFFF,
        0x00280000,
        0x60003000,
    )
    new = int(rng.choice(odd))
    return _put(content, item.start, item.start + 4, struct.pack(">2H" if item.big else "<2H", new >> 16, new & 0xFFFF))


def value(content: bytes, rng: Rng, seeds: Sequence[Seed]) -> bytes:
    """A value that is no value of its kind."""
    item = _any(content, rng)
    if item is None or item.length == UNDEFINED:
        return content
    new = rng.bytes(int(rng.integers(0, 65))) if rng.random() < 0.25 else _one(TEXTS, rng)
    return _valued(content, item, new)


def moved(content: bytes, rng: Rng, seeds: Sequence[Seed]) -> bytes:
    """An element left out, doubled, or somewhere else."""
    item = _any(content, rng)
    if item is None:
        return content
    taken = content[item.start : item.end]
    without = _put(content, item.start, item.end, b"") if rng.random() < 0.6 else content
    return without if rng.random() < 0.4 else _insert(without, rng, taken)


def private(content: bytes, rng: Rng, seeds: Sequence[Seed]) -> bytes:
    """Private elements without a creator, group lengths, unknown ones, with the canary in them."""
    new = (
        _element(0x00091010, b"UN", CANARY.encode() + b" "),
        _element(0x00110010, b"LO", CANARY.encode() + b" ") * 3,
        _element(0x00080000, b"UL", struct.pack("<I", int(rng.choice(LENGTHS)))),
        _element(0x00280000, b"UL", struct.pack("<I", 4)),
        _element(0x00091011, b"UN", b"") [:-4] + b"\xff\xff\xff\xff",
        _element(0x60003000, b"OW", CANARY.encode() + b" "),
        _element(0x00324000, b"LT", CANARY.encode() + b" "),
    )  # fmt: skip
    return _insert(content, rng, _one(new, rng))


def nested(content: bytes, rng: Rng, seeds: Sequence[Seed]) -> bytes:
    """Sequences within sequences, of given or of open length, closed or not."""
    depth = int(rng.choice((2, 17, 18, 40, 100, 300, 1000, 10_000), p=(0.2, 0.2, 0.2, 0.15, 0.1, 0.1, 0.04, 0.01)))
    opened = struct.pack("<2H2sHI", 0x0008, 0x1111, b"SQ", 0, UNDEFINED) + struct.pack(
        "<2HI", 0xFFFE, 0xE000, UNDEFINED
    )
    closed = struct.pack("<2HI", 0xFFFE, 0xE00D, 0) + struct.pack("<2HI", 0xFFFE, 0xE0DD, 0)
    return _insert(content, rng, opened * depth + closed * (depth if rng.random() < 0.7 else depth // 2))


# -------------------------------------------------------------------------------------------------------------- image


def _tagged(content: bytes, rng: Rng, wanted: Callable[[Element], bool]) -> Element | None:
    found = [item for item in elements(content) if wanted(item)]
    return found[int(rng.integers(len(found)))] if found else None


def pixel_module(content: bytes, rng: Rng, seeds: Sequence[Seed]) -> bytes:
    """Rows, columns, bits, frames, samples and colour that are not those of the pixels."""
    item = _tagged(content, rng, lambda item: item.tag >> 16 == 0x28 and item.tag & 0xFFFF in GROUP_28)
    if item is None:
        return content
    if item.vr == b"US" or item.tag & 0xFFFF in (0x10, 0x11, 0x100, 0x101, 0x102, 0x103):
        return _valued(content, item, struct.pack(">H" if item.big else "<H", int(rng.choice(NUMBERS))))
    return _valued(content, item, _one(TEXTS, rng))


def frames(content: bytes, rng: Rng, seeds: Sequence[Seed]) -> bytes:
    """A number of frames that lies."""
    count = _one((b"0 ", b"2 ", b"-1", b"3 ", b"9999", b"100000 ", b"99999999999 ", b"1\\2 ", b"1.5 ", b"x "), rng)
    item = _tagged(content, rng, lambda item: item.tag == 0x00280008)
    if item is not None:
        return _valued(content, item, count)
    place = _tagged(content, rng, lambda item: item.tag == 0x00280010)
    new = _element(0x00280008, b"IS", count)
    return content if place is None else _put(content, place.start, place.start, new)


def tables(content: bytes, rng: Rng, seeds: Sequence[Seed]) -> bytes:
    """Descriptors and data of palettes and look-up tables that do not fit, or a palette where there was none."""
    item = _tagged(content, rng, lambda item: item.tag >> 16 == 0x28 and 0x1101 <= item.tag & 0xFFFF <= 0x3006)
    if item is None or rng.random() < 0.3:
        item = _tagged(content, rng, lambda item: item.tag == 0x00280004)
        return content if item is None else _valued(content, item, b"PALETTE COLOR ")
    if rng.random() < 0.5:
        three = [int(rng.choice(NUMBERS)) for _ in range(int(rng.choice((0, 1, 2, 3, 3, 3, 4))))]
        return _valued(content, item, struct.pack(f"<{len(three)}H", *three))
    return _valued(content, item, rng.bytes(int(rng.integers(0, 600))))


def charset(content: bytes, rng: Rng, seeds: Sequence[Seed]) -> bytes:
    """A character set that is none, or none of the text's."""
    item = _tagged(content, rng, lambda item: item.tag == 0x00080005)
    return content if item is None else _valued(content, item, _one(CHARSETS, rng))


def syntax(content: bytes, rng: Rng, seeds: Sequence[Seed]) -> bytes:
    """Another transfer syntax than that of the pixels."""
    item = _tagged(content, rng, lambda item: item.tag == 0x00020010)
    return content if item is None else _valued(content, item, _one(SYNTAXES, rng))


def meta(content: bytes, rng: Rng, seeds: Sequence[Seed]) -> bytes:
    """No preamble, no file meta information, or one whose length lies."""
    which = int(rng.integers(4))
    if which == 0:
        return content[132:]
    rest = next((item.start for item in elements(content) if item.tag >> 16 != 2), 132)
    if which == 1:
        return content[:132] + content[rest:]
    if which == 2:
        return content[rest:]
    return _put(content, 140, 144, struct.pack("<I", int(rng.choice(LENGTHS))))


def fragments(content: bytes, rng: Rng, seeds: Sequence[Seed]) -> bytes:
    """Damage within the pixels: in a codestream's head or body, its markers, the offset table, the fragments' frame."""
    pixels = next((item for item in elements(content) if item.tag == PIXELS), None)
    if pixels is None or pixels.value_at >= len(content):
        return content
    near = pixels.value_at + min(200, len(content) - pixels.value_at)
    end = near if rng.random() < 0.6 else len(content)
    changed = bytearray(content)
    for place in rng.integers(pixels.value_at, end, size=int(rng.integers(1, 6))):
        changed[place] = int(rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, int(rng.integers(256)))))
    if rng.random() < 0.2:
        place = int(rng.integers(pixels.value_at, len(changed)))
        del changed[place : place + int(rng.integers(1, 100))]
    return bytes(changed)


def deflated(content: bytes, rng: Rng, seeds: Sequence[Seed]) -> bytes:
    """The dataset deflated, sometimes with a bomb or with damage in the stream."""
    item = _tagged(content, rng, lambda item: item.tag == 0x00020010)
    if item is None:
        return content
    content = _valued(content, item, b"1.2.840.10008.1.2.1.99")
    rest = next((item.end for item in elements(content) if item.tag == 0x00020010), len(content))
    plain = content[rest:]
    if rng.random() < 0.1:
        plain += _element(0x00091010, b"UN", bytes(int(rng.choice((1 << 20, 1 << 24, 1 << 27), p=(0.7, 0.28, 0.02)))))
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    stream = bytearray(packer.compress(plain) + packer.flush())
    if rng.random() < 0.3:
        stream[int(rng.integers(len(stream)))] ^= 1 << int(rng.integers(8))
    return content[:rest] + bytes(stream)


_WEIGHTED: Sequence[tuple[Mutation, float]] = (
    *((flip, 8), (cut, 5), (splice, 3), (length, 10), (kind, 8), (tag, 6), (value, 16), (moved, 8), (private, 4)),
    *((nested, 2), (pixel_module, 10), (frames, 4), (tables, 4), (charset, 2), (syntax, 4), (meta, 2), (fragments, 12)),
    (deflated, 1),
)
MUTATIONS = [mutation for mutation, _ in _WEIGHTED]
_WEIGHTS = np.array([weight for _, weight in _WEIGHTED], float) / sum(weight for _, weight in _WEIGHTED)
