"""Named float32 arrays and their weights in, one vector of integers modulo 2^40 out; and a sum of such, back to a mean.

A site sends weight * round(value / step) for every value, all arrays flattened in order. Integers add exactly, so the
sum under masks is the sum of what the sites rounded, whatever the order. The step is the finest for which no sum can
wrap around: |value| <= range and a total weight of at most `max_total_weight` keep every sum within 2^39 - 1. The
weighted mean of the sites then lies within half a step of the mean of the values themselves, float32 rounding apart.

On the wire a value takes 5 bytes, 1.25 times a float32: first the low 32 bits of all values (little-endian), then the
high 8 bits of all. So the two halves are added and packed as what they are, a uint32 and a uint8, without a shift.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shared.errors import ConfigError, DataError
from shared.types import Arrays

BITS = 40
BYTES = BITS // 8
LARGEST: int = 2 ** (BITS - 1) - 1
"""Largest magnitude of a sum."""
BLOCK = 32_768
"""Values that are worked on at a time: few enough to stay in the processor's cache."""
_MODULO = np.uint64(2**BITS - 1)
_SIGN = np.uint64(2 ** (BITS - 1))
_HIGH = np.uint64(32)
_LARGEST_WRAPPED = 2**62
"""Steps of a value that is an int64 for sure; times a weight it may wrap around modulo 2^64, and so modulo 2^40."""

Vector: TypeAlias = npt.NDArray[np.uint64]
"""Integers modulo 2^40, one for every value of an update."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What all sites of a campaign round to."""

    range: float
    """Largest magnitude of a value, in the unit of the weights."""
    max_total_weight: int
    """Largest sum of weights over the sites of a round."""

    @property
    def levels(self) -> int:
        """Steps between 0 and `range`."""
        return int(LARGEST // self.max_total_weight)

    @property
    def step(self) -> float:
        return self.range / self.levels


def grid_for(range: float, max_total_weight: int) -> Grid:
    """The finest grid for these bounds; ConfigError when fewer than 2^10 levels were left, which rounds too much."""
    if not 0 < range < float("inf"):
        raise ConfigError(f"secagg.range must be a number above 0, got {range}")
    if max_total_weight < 1 or LARGEST // max_total_weight < 2**10:
        raise ConfigError(
            f"the total weight of a round must lie in 1 to {LARGEST >> 10} for sums of {BITS} bits, got "
            f"{max_total_weight}; choose strategy.weight_by=equal, or fewer steps or sites"
        )
    return Grid(float(range), max_total_weight)


def quantise(arrays: Arrays, weights: Mapping[str, int], grid: Grid, *, wraps: bool = False) -> Vector:
    """weight * round(value / step) modulo 2^40 for every value; `weights` holds one integer for every array.

    Raises DataError, naming the array and never the value, where one is not finite or larger than the grid's range.
    With `wraps` a value may be larger, as a share of noise may: parts that wrap around still add up to what their sum
    wraps to, which is the sum itself where that is in range.
    """
    assert arrays.keys() == weights.keys(), "a weight for every array"
    vector = np.empty(sum(values.size for values in arrays.values()), np.uint64)
    at = 0
    for name, values in arrays.items():
        if not 0 <= weights[name] <= grid.max_total_weight:
            raise DataError(
                f"weight of array {name!r} must lie in 0 to {grid.max_total_weight}, got {weights[name]}; "
                "more images were counted than the campaign's steps draw"
            )
        for block in _blocks(np.asarray(values, np.float32).reshape(-1)):
            vector[at : at + block.size] = _rounded(name, block, weights[name], grid, wraps=wraps)
            at += block.size
    return vector


def _rounded(name: str, block: npt.NDArray[np.float32], weight: int, grid: Grid, *, wraps: bool) -> Vector:
    scaled = block.astype(np.float64)
    scaled /= grid.step
    largest = _LARGEST_WRAPPED if wraps else grid.levels
    # Also false for what is not a number.
    if not (np.abs(scaled).max(initial=0.0) <= largest):
        raise DataError(
            f"array {name!r} of the update holds a value that is not finite or beyond secagg.range={grid.range:g}; "
            "nothing was sent. Lower the learning rate, or agree on a larger secagg.range"
        )
    integers = np.rint(scaled, out=scaled).astype(np.int64)
    integers *= weight
    return integers.view(np.uint64) & _MODULO


def pack(vector: Vector) -> bytes:
    """5 bytes a value: all low halves, then all high ones."""
    return bytes(packed(vector))


def packed(vector: Vector) -> bytearray:
    """What `pack` gives, to be worked on in place."""
    data = bytearray(BYTES * vector.size)
    low, high = halves(data)
    for start in range(0, vector.size, BLOCK):
        part = slice(start, start + BLOCK)
        low[part] = vector[part]  # keeps the low 32 bits
        high[part] = vector[part] >> _HIGH  # keeps the low 8 of these
    return data


def unpack(data: bytes | bytearray, count: int) -> Vector:
    """What `pack` made of `count` values; DataError for any other length."""
    vector = np.zeros(count, np.uint64)
    add_packed(vector, data)
    return vector


def add_packed(total: Vector, data: bytes | bytearray) -> None:
    """Add a packed vector to `total` in place, modulo 2^40; DataError, and nothing added, for any other length."""
    if len(data) != BYTES * total.size:
        raise DataError(f"expected a masked update of {BYTES * total.size} bytes, got {len(data)}")
    low, high = halves(data)
    for start in range(0, total.size, BLOCK):
        part = slice(start, start + BLOCK)
        block = total[part]
        block += low[part]
        block += high[part].astype(np.uint64) << _HIGH
        block &= _MODULO


def halves(data: bytes | bytearray) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
    """The low and the high halves in packed bytes, without a copy; a bytearray's can be written to."""
    count = len(data) // BYTES
    assert len(data) == BYTES * count
    return np.frombuffer(data, "<u4", count), np.frombuffer(data, np.uint8, count, offset=4 * count)


def mean(
    total: Vector, shapes: Mapping[str, tuple[int, ...]], total_weights: Mapping[str, int], grid: Grid
) -> Arrays:  # fmt: skip
    """An unmasked sum over the sites' weights, as float32 arrays; 0 where nobody trained an array (total weight 0).

    Raises DataError when the weights are more than the grid was made for: such a sum may have wrapped around.
    """
    assert shapes.keys() == total_weights.keys(), "a weight for every array"
    assert total.size == sum(_size(shape) for shape in shapes.values())
    arrays: Arrays = {}
    at = 0
    for name, shape in shapes.items():
        weight = total_weights[name]
        if not 0 <= weight <= grid.max_total_weight:
            raise DataError(f"total weight of {name!r} must lie in 0 to {grid.max_total_weight}, got {weight}")
        flat = np.zeros(_size(shape), np.float32)
        if weight:
            for start in range(0, flat.size, BLOCK):
                part = slice(start, min(start + BLOCK, flat.size))
                flat[part] = _signed(total[at + part.start : at + part.stop]) * (grid.step / weight)
        arrays[name] = flat.reshape(shape)
        at += flat.size
    return arrays


def _signed(block: Vector) -> npt.NDArray[np.int64]:
    """Integers modulo 2^40 as those in [-2^39, 2^39)."""
    return ((block & _MODULO) ^ _SIGN).view(np.int64) - np.int64(_SIGN)


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _blocks(values: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
    for start in range(0, values.size, BLOCK):
        yield values[start : start + BLOCK]
