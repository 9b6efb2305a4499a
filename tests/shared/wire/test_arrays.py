"""The bytes of an array are numpy's own, and nothing else is read as one."""

from __future__ import annotations

import io

import numpy as np
import pytest
from flwr.app import Array

from shared.errors import DataError
from shared.wire.arrays import decode_array, encode_array, npy_header

SHAPES: list[tuple[int, ...]] = [(), (0,), (5,), (2, 3), (4, 1, 3, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_are_those_of_numpy_save(shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    expected = io.BytesIO()
    np.save(expected, values)
    assert encode_array(values) == expected.getvalue()


@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_gives_back_what_was_encoded_without_a_copy(shape: tuple[int, ...]) -> None:
    values = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    data = encode_array(values)
    decoded = decode_array("w", data, shape)
    np.testing.assert_array_equal(decoded, values)
    assert decoded.dtype == np.float32
    assert not decoded.flags.writeable
    assert not decoded.flags.owndata


def test_a_strided_array_travels_in_c_order() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    np.testing.assert_array_equal(decode_array("w", encode_array(values), (4, 3)), values)


def test_flowers_own_array_reads_our_bytes() -> None:
    values = np.random.default_rng(0).random((2, 3), dtype=np.float32)
    array = Array(dtype="float32", shape=(2, 3), stype="numpy.ndarray", data=encode_array(values))
    np.testing.assert_array_equal(array.numpy(), values)
    assert Array(values).data == array.data


def saved(values: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=allow_pickle)
    return buffer.getvalue()


def test_a_shape_whose_size_overflows_is_refused() -> None:
    with pytest.raises(DataError):
        decode_array("w", npy_header((2**32, 2**32)), (2**32, 2**32))


@pytest.mark.parametrize(
    "data",
    [
        saved(np.zeros((2, 3), np.float64)),
        saved(np.zeros((2, 3), ">f4")),
        saved(np.asfortranarray(np.zeros((2, 3), np.float32))),
        saved(np.zeros((3, 2), np.float32)),
        saved(np.zeros((2, 3), np.float32))[:-1],
        saved(np.zeros((2, 3), np.float32)) + b"\0",
        saved(np.array([{"a": 1}] * 6, dtype=object).reshape(2, 3), allow_pickle=True),
        b"",
        b"\x93NUMPY" + b"(" * 5000,
    ],
    ids=["float64", "big-endian", "fortran", "transposed", "short", "long", "pickle", "empty", "nested"],
)
def test_anything_else_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(DataError, match=r"array 'w' is not the bytes of a float32 array of shape \[2, 3\]"):
        decode_array("w", data, (2, 3))
