"""Float32 arrays in, the bytes of an .npy file out, and back without a copy.

The layout is numpy's format 1.0, which is also what Flower calls `numpy.ndarray`, so that Flower's own tools can read
our messages. Reading never parses a header that a peer wrote: the header that *must* be there follows from the shape
that was agreed, and is compared byte for byte. No pickle, no `literal_eval`, no object dtype can get in.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from shared.errors import DataError

Float32 = npt.NDArray[np.float32]


@lru_cache(maxsize=4096)
def npy_header(shape: tuple[int, ...]) -> bytes:
    """What stands before the values of a little-endian, C-ordered float32 array of this shape."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
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
