"""Masks against a slower twin in Python integers, and the properties that make them masks."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from shared.secagg.fixed_point import BLOCK, pack, unpack
from shared.secagg.masks import apply

KEYS = [bytes([i]) * 32 for i in range(1, 6)]


def slow_mask(key: bytes, count: int) -> list[int]:
    """The twin: the docstring of the module, value by value, with the counter encrypted one block of AES at a time."""
    electronic = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
    stream = b"".join(electronic.update(i.to_bytes(16)) for i in range((5 * count + 15) // 16))
    values = []
    for start in range(0, count, BLOCK):
        size, block = min(BLOCK, count - start), stream[5 * start :]
        for i in range(size):
            low = int.from_bytes(block[4 * i : 4 * i + 4], "little")
            values.append(low + (block[4 * size + i] << 32))
    return values


@pytest.mark.parametrize("count", [0, 1, 7, 1000, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
def test_masks_are_those_of_the_slow_twin(count: int) -> None:
    rng = np.random.default_rng(0)
    vector = rng.integers(0, 2**40, count, dtype=np.uint64)
    data = bytearray(pack(vector))
    apply(data, plus=KEYS[:2], minus=KEYS[2:3])
    one, two, three = (slow_mask(key, count) for key in KEYS[:3])
    expected = [(int(v) + a + b - c) % 2**40 for v, a, b, c in zip(vector, one, two, three, strict=True)]
    assert unpack(bytes(data), count).tolist() == expected


def test_the_keystream_is_that_of_nist_sp_800_38a() -> None:
    """F.5.5 begins at another counter; what it encrypts there is what AES-256 gives for it, which is what masks use."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    output = Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor().update(bytes(16))
    assert output.hex() == "0bdf7df1591716335e9a8b15c860c502"


def test_what_is_added_is_taken_away() -> None:
    vector = np.random.default_rng(1).integers(0, 2**40, 100_000, dtype=np.uint64)
    data = bytearray(pack(vector))
    apply(data, plus=KEYS[:3], minus=KEYS[3:])
    assert not np.array_equal(unpack(bytes(data), vector.size), vector)
    apply(data, plus=KEYS[3:], minus=KEYS[:3])
    np.testing.assert_array_equal(unpack(bytes(data), vector.size), vector)


def test_every_byte_of_a_mask_is_uniform_and_two_masks_are_independent() -> None:
    count = 200_000
    data, other = bytearray(5 * count), bytearray(5 * count)
    apply(data, plus=KEYS[:1])
    apply(other, plus=KEYS[1:2])
    for stream in (data, other):
        seen = np.bincount(np.frombuffer(bytes(stream), np.uint8), minlength=256)
        chi_squared = float(((seen - len(stream) / 256) ** 2 / (len(stream) / 256)).sum())
        assert chi_squared < 255 + 6 * (2 * 255) ** 0.5  # six standard deviations
    one, two = (unpack(bytes(stream), count).astype(np.float64) for stream in (data, other))
    assert abs(np.corrcoef(one, two)[0, 1]) < 6 / count**0.5
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 6 / count**0.5


def test_a_vector_of_zeros_is_hidden_as_well_as_any() -> None:
    zeros, vector = bytearray(5 * 1000), bytearray(pack(np.arange(1000, dtype=np.uint64)))
    apply(zeros, plus=KEYS[:1])
    apply(vector, plus=KEYS[:1])
    difference = (unpack(bytes(vector), 1000) - unpack(bytes(zeros), 1000)) & np.uint64(2**40 - 1)
    np.testing.assert_array_equal(difference, np.arange(1000))
