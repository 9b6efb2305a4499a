"""Float32 arrays in, the bytes of an .npy file out, and back without a copy; in half the bytes where that will do.

The layout is numpy's format 1.0, which is also what Flower calls `numpy.ndarray`, so that Flower's own tools can read
our messages. Reading never parses a header that a peer wrote: the header that *must* be there follows from the shape
that was agreed, and is compared byte for byte. No pickle, no `literal_eval`, no object dtype can get in.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from shared.errors import DataError

Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]

LARGEST_SCALE = float(np.finfo(np.float32).max)
_MAGNITUDE = np.uint16(0x7FFF)
_ONE = np.uint16(0x3C00)  # 1.0 as float16; infinities and NaN have more bits set


@dataclass(frozen=True, slots=True, eq=False)
class Half:
    """An array as `scale` times float16 values within [-1, 1]: the .npy bytes of those.

    Off by at most 2^-11 of a value, or 2^-25 of the scale where the value is below 2^-14 of it. Without the scale a
    weight change of 1e-8 would be rounded to nothing.
    """

    scale: float
    data: bytes


@lru_cache(maxsize=4096)
def npy_header(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    """What stands before the values of a little-endian, C-ordered array of this shape; float32, or `<f2`."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def encode_array(values: Float32) -> bytes:
    """One copy: header and values in one bytes object."""
    assert values.dtype == np.float32, values.dtype
    flat = np.ascontiguousarray(values, dtype="<f4").reshape(-1)
    return b"".join((npy_header(values.shape), flat.view(np.uint8).data))


def decode_array(name: str, data: bytes, shape: tuple[int, ...]) -> Float32:
    """A read-only view into `data`; DataError when it is not exactly a float32 array of `shape`."""
    header = npy_header(shape)
    size = math.prod(shape)
    if len(data) != len(header) + 4 * size or not data.startswith(header):
        raise DataError(f"array {name!r} is not the bytes of a float32 array of shape {list(shape)}")
    return np.frombuffer(data, dtype="<f4", offset=len(header)).reshape(shape)


def encode_half(name: str, values: Float32) -> Half:
    """The scale is the array's largest magnitude; DataError when a value is not finite."""
    assert values.dtype == np.float32, values.dtype
    scale = float(np.abs(values).max(initial=0))
    if not math.isfinite(scale):
        raise DataError(f"array {name!r} holds values that are not finite; lower training.learning_rate")
    flat = np.ascontiguousarray(values / np.float32(scale or 1), dtype="<f2").reshape(-1)
    return Half(scale, b"".join((npy_header(values.shape, "<f2"), flat.view(np.uint8).data)))


def decode_half(name: str, half: Half, shape: tuple[int, ...]) -> Float16:
    """A read-only view of what is to be multiplied by the scale; DataError when it is not exactly a float16 array of
    `shape`, or a value is not within [-1, 1]."""
    if not 0 <= half.scale <= LARGEST_SCALE:
        raise DataError(f"the scale of array {name!r} must be a number from 0 to {LARGEST_SCALE:.3g}")
    header = npy_header(shape, "<f2")
    if len(half.data) != len(header) + 2 * math.prod(shape) or not half.data.startswith(header):
        raise DataError(f"array {name!r} is not the bytes of a float16 array of shape {list(shape)}")
    bits = np.frombuffer(half.data, dtype="<u2", offset=len(header))
    if ((bits & _MAGNITUDE) > _ONE).any():
        raise DataError(f"array {name!r} holds values that are not finite, or beyond its scale")
    return bits.view("<f2").reshape(shape)
