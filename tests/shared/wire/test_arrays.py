"""The bytes of an array are numpy's own, and nothing else is read as one."""

from __future__ import annotations

import io

import numpy as np
import pytest
from flwr.app import Array

from shared.errors import DataError
from shared.wire.arrays import LARGEST_SCALE, Half, decode_array, decode_half, encode_array, encode_half, npy_header

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


def halved(values: np.ndarray) -> np.ndarray:
    half = encode_half("w", values)
    return half.scale * decode_half("w", half, values.shape).astype(np.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1e-30, 1e-8, 1.0, 1e30])
def test_half_the_bytes_keep_eleven_bits_whatever_the_size(shape: tuple[int, ...], size: float) -> None:
    """Also far below the smallest float16, where an array without its scale would be rounded to nothing."""
    values = np.asarray(size * np.random.default_rng(1).standard_normal(shape), np.float32)
    scale = float(np.abs(values).max(initial=0))
    np.testing.assert_allclose(halved(values), values, rtol=2**-11 + 2**-23, atol=scale * 2**-25)
    half = encode_half("w", values)
    assert len(half.data) - len(npy_header(shape, "<f2")) == values.nbytes / 2


def test_half_the_bytes_of_nothing_are_nothing() -> None:
    zeros = np.zeros((2, 3), np.float32)
    assert encode_half("w", zeros).scale == 0
    np.testing.assert_array_equal(halved(zeros), zeros)


def test_half_the_bytes_are_an_npy_file() -> None:
    values = np.array([[1, -0.5], [0.25, 0]], np.float32)
    np.testing.assert_array_equal(np.load(io.BytesIO(encode_half("w", values).data)), values.astype(np.float16))
    np.testing.assert_array_equal(halved(values.T), values.T)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_does_not_leave(value: float) -> None:
    with pytest.raises(DataError, match="array 'w' holds values that are not finite"):
        encode_half("w", np.array([1, value], np.float32))


SIX = np.zeros((2, 3), np.float16)


@pytest.mark.parametrize(
    "data",
    [
        saved(SIX.astype(np.float32)),
        saved(SIX.astype(">f2")),
        saved(SIX.astype(np.uint16)),
        saved(np.asfortranarray(SIX)),
        saved(SIX.T.copy()),
        saved(SIX)[:-1],
        saved(SIX) + b"\0",
        b"",
    ],
    ids=["float32", "big-endian", "uint16", "fortran", "transposed", "short", "long", "empty"],
)
def test_anything_else_than_float16_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(DataError, match=r"array 'w' is not the bytes of a float16 array of shape \[2, 3\]"):
        decode_half("w", Half(1.0, data), (2, 3))


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf, 1.001, -2, 65504])
def test_half_values_beyond_one_are_refused(value: float) -> None:
    data = saved(np.array([0, value], np.float16))
    with pytest.raises(DataError, match="array 'w' holds values that are not finite, or beyond its scale"):
        decode_half("w", Half(1.0, data), (2,))


@pytest.mark.parametrize("scale", [-1e-9, float("nan"), float("inf"), 2 * LARGEST_SCALE])
def test_a_scale_out_of_bounds_is_refused(scale: float) -> None:
    with pytest.raises(DataError, match="the scale of array 'w' must be a number from 0"):
        decode_half("w", Half(scale, saved(SIX)), (2, 3))


def test_every_float16_within_one_is_read_as_numpy_reads_it() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    within = every[np.abs(every) <= 1]
    assert decode_half("w", Half(1.0, saved(within)), within.shape).tobytes() == within.tobytes()
