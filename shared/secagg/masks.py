"""Packed integers and keys in, the same integers with the keys' masks added or taken away, in place.

A mask is the keystream of AES-256 in counter mode (NIST SP 800-38A) from counter 0, under a key that serves once: for
every BLOCK of values first their low 32 bits, then their high 8. So what is added to a value is uniform modulo 2^40.
All masks are added to a block before the next is begun: block, keystream and carries stay in the processor's cache, and
nothing but the packed integers grows with the update.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from shared.secagg.fixed_point import BLOCK, BYTES, halves

_COUNTER = bytes(16)
_ZEROS = bytes(BYTES * BLOCK)
_SLACK = 15
"""What `update_into` wants of room beside the output: a block of the cipher, less one byte."""


def apply(data: bytearray, plus: Sequence[bytes] = (), minus: Sequence[bytes] = ()) -> None:
    """Add the masks of the keys in `plus` to packed integers modulo 2^40, and take those of `minus` away."""
    low, high = halves(data)
    adding, subtracting = [_keystream(key) for key in plus], [_keystream(key) for key in minus]
    stream = bytearray(BYTES * BLOCK + _SLACK)
    carry = np.empty(BLOCK, np.bool_)
    for start in range(0, low.size, BLOCK):
        part = slice(start, start + BLOCK)
        block = low[part], high[part], carry[: low[part].size]
        for context in adding:
            _add(*block, *_next(context, stream, low[part].size))
        for context in subtracting:
            _subtract(*block, *_next(context, stream, low[part].size))


def _keystream(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES256(key), modes.CTR(_COUNTER)).encryptor()


def _next(
    context: CipherContext, stream: bytearray, count: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
    written = context.update_into(memoryview(_ZEROS)[: BYTES * count], stream)
    assert written == BYTES * count
    low = np.frombuffer(stream, "<u4", count)
    return low, np.frombuffer(stream, np.uint8, count, offset=4 * count)


def _add(
    low: npt.NDArray[np.uint32], high: npt.NDArray[np.uint8], carry: npt.NDArray[np.bool_],
    mask_low: npt.NDArray[np.uint32], mask_high: npt.NDArray[np.uint8],
) -> None:  # fmt: skip
    low += mask_low
    np.less(low, mask_low, out=carry)  # it wrapped around
    high += mask_high
    high += carry.view(np.uint8)


def _subtract(
    low: npt.NDArray[np.uint32], high: npt.NDArray[np.uint8], borrow: npt.NDArray[np.bool_],
    mask_low: npt.NDArray[np.uint32], mask_high: npt.NDArray[np.uint8],
) -> None:  # fmt: skip
    np.less(low, mask_low, out=borrow)
    low -= mask_low
    high -= mask_high
    high -= borrow.view(np.uint8)
