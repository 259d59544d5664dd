"""The hot loops: float32 blocks in, sums and float32 blocks out, compiled by numba on first use and kept on disk.

Rows of a block are walked in tiles that fit the first-level cache. Sums over a block are float64 (float32 within a tile
of masses). Results do not depend on threads: every loop is serial, and frees the interpreter lock.
Knows nothing about files, methods or models.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numba import float32, float64, uint16, uint32

from fusechat.compilation import kept

P = ParamSpec("P")
R = TypeVar("R")

TILE = 1024
"""Elements per tile: 4 KiB in float32."""


def kernel(function: Callable[P, R], fastmath: bool | set[str] = False, forceinline: bool = False) -> Callable[P, R]:
    options: dict[str, Any] = {
        "nogil": True,
        "fastmath": fastmath,
        "error_model": "numpy",
        "forceinline": forceinline,
    }
    return kept(function, **options)


def _sum_kernel(function: Callable[P, R]) -> Callable[P, R]:
    # Sums may be split over vector lanes. NaN and infinity keep their meaning, so "fastmath" as a whole is out.
    return kernel(function, {"reassoc", "contract", "nsz"})


def inner_sum_kernel(function: Callable[P, R]) -> Callable[P, R]:
    # Inlined, so that its sum is compiled once in each kernel. Left a function, it has two bodies, its own and the
    # caller's copy, split over lanes differently, and which one runs depends on what the disk's cache held.
    return kernel(function, {"reassoc", "contract", "nsz"}, forceinline=True)


def inner_order_kernel(function: Callable[P, R]) -> Callable[P, R]:
    # As above, but every product is rounded before it is added.
    return kernel(function, {"reassoc", "nsz"}, forceinline=True)


def inner_kernel(function: Callable[P, R]) -> Callable[P, R]:
    return kernel(function, forceinline=True)


def _fused_kernel(function: Callable[P, R]) -> Callable[P, R]:
    # The cache on disk knows a kernel by its function, not by its options: each needs a function of its own.
    return kernel(function, {"contract"})


@kernel
def widen_bfloat16(raw: np.ndarray, out: np.ndarray) -> None:
    """bfloat16 bits, uint16 [c] -> float32 bits, uint32 [c]."""
    for i in range(raw.size):
        out[i] = uint32(raw[i]) << uint32(16)


@kernel
def largest_magnitude(bits: np.ndarray, mask: np.unsignedinteger) -> np.unsignedinteger:
    """Largest of bits & mask; unsigned [c], 0 if empty."""
    largest: np.unsignedinteger = bits.dtype.type(0)
    for i in range(bits.size):
        largest = max(largest, bits[i] & mask)
    return largest


@kernel
def narrow_bfloat16(values: np.ndarray, out: np.ndarray) -> None:
    """float32 bits, uint32 [c] -> bfloat16 bits, uint16 [c]; to nearest, ties to even; finite values only."""
    for i in range(values.size):
        bits = values[i]
        out[i] = uint16((bits + uint32(0x7FFF) + ((bits >> uint32(16)) & uint32(1))) >> uint32(16))


@kernel
def _load(rows: np.ndarray, start: int, stop: int, bits: np.ndarray) -> None:
    """Widen a tile of all rows into `bits` [n+1, TILE], which are float32's."""
    shift = uint32(16) if rows.itemsize == 2 else uint32(0)
    for j in range(rows.shape[0]):
        row = rows[j, start:stop]
        out = bits[j, : stop - start]
        for i in range(row.size):
            out[i] = uint32(row[i]) << shift


@kernel
def load_deltas(rows: np.ndarray, start: int, stop: int, bits: np.ndarray, values: np.ndarray) -> None:
    """Widen a tile of all rows into `values` [n+1, TILE], and subtract row 0, the base, from the others."""
    _load(rows, start, stop, bits)
    base = values[0, : stop - start]
    for j in range(1, rows.shape[0]):
        out = values[j, : stop - start]
        for i in range(base.size):
            out[i] -= base[i]


@inner_sum_kernel
def _sum_of_squares(row: np.ndarray) -> float:
    """Of float32 [c], in float64."""
    total = 0.0
    for i in range(row.size):
        total += float64(row[i]) * float64(row[i])
    return total


@kernel
def sums_of_squares(rows: np.ndarray, out: np.ndarray) -> None:
    """out [n] = sum of the squared deltas of each target, in float64.

    Args:
        rows: bits of the base and the targets, [n+1, c]: uint16 for bfloat16, uint32 for float32. So everywhere here.
        out: float64 [n].
    """
    bits = np.empty((rows.shape[0], TILE), np.uint32)
    values = bits.view(np.float32)
    out[:] = 0.0
    for start in range(0, rows.shape[1], TILE):
        stop = min(start + TILE, rows.shape[1])
        load_deltas(rows, start, stop, bits, values)
        for j in range(1, rows.shape[0]):
            out[j - 1] += _sum_of_squares(values[j, : stop - start])


@kernel
def _add_weighted(values: np.ndarray, size: int, weights: np.ndarray, scale: np.float32, out: np.ndarray) -> None:
    """`weighted_sum` of one tile: values float32 [n+1, TILE] are the base and the deltas; out [size]."""
    base = values[0, :size]
    out[:] = float32(0.0)
    for j in range(weights.size):
        row = values[j + 1, :size]
        for i in range(out.size):
            out[i] += weights[j] * row[i]
    for i in range(out.size):
        out[i] = base[i] + scale * out[i]


@kernel
def copy_tile(values: np.ndarray, start: int, stop: int, tile: np.ndarray) -> None:
    """A tile of the rows: rows of a slice would count as strided, and strided loops are scalar.

    Element by element, because Numba compiles an assignment of slices with all that its error message needs, for seconds.
    """
    for j in range(values.shape[0]):
        row = values[j, start:stop]
        for i in range(row.size):
            tile[j, i] = row[i]


@kernel
def weighted_sum(rows: np.ndarray, weights: np.ndarray, scale: np.float32, out: np.ndarray) -> None:
    """out [c] = base + scale * sum_j weights_j * delta_j; weights float32 [n]. In the order of j, every product rounded."""
    bits = np.empty((rows.shape[0], TILE), np.uint32)
    values = bits.view(np.float32)
    for start in range(0, out.size, TILE):
        stop = min(start + TILE, out.size)
        load_deltas(rows, start, stop, bits, values)
        _add_weighted(values, stop - start, weights, scale, out[start:stop])


@kernel
def weighted_sum_of_deltas(values: np.ndarray, weights: np.ndarray, scale: np.float32, out: np.ndarray) -> None:
    """`weighted_sum` where the base and the deltas are there as float32 [n+1, c]."""
    tile = np.empty((values.shape[0], TILE), np.float32)
    for start in range(0, out.size, TILE):
        stop = min(start + TILE, out.size)
        copy_tile(values, start, stop, tile)
        _add_weighted(tile, stop - start, weights, scale, out[start:stop])


@_fused_kernel
def mean_of_targets(rows: np.ndarray, weights: np.ndarray, divisor: np.float32, out: np.ndarray) -> None:
    """out [c] = sum_j weights_j * target_j / divisor; products are added unrounded where the processor can, as in torch's
    addcmul."""
    bits = np.empty((rows.shape[0], TILE), np.uint32)
    values = bits.view(np.float32)
    for start in range(0, out.size, TILE):
        stop = min(start + TILE, out.size)
        _load(rows, start, stop, bits)
        total = out[start:stop]
        total[:] = float32(0.0)
        for j in range(weights.size):
            row = values[j + 1, : total.size]
            for i in range(total.size):
                total[i] += weights[j] * row[i]
        for i in range(total.size):
            total[i] /= divisor


@kernel
def variance(rows: np.ndarray, out: np.ndarray) -> None:
    """Population variance over the targets of each element, computed in float64 and rounded; float32 [c].

    Differences are taken from the first target's delta, so that equal deltas give exactly 0 and nothing cancels.
    """
    count = rows.shape[0] - 1
    factor = 1.0 / (count * count)
    bits = np.empty((rows.shape[0], TILE), np.uint32)
    values = bits.view(np.float32)
    sums = np.empty(TILE, np.float64)
    squares = np.empty(TILE, np.float64)
    for start in range(0, out.size, TILE):
        stop = min(start + TILE, out.size)
        load_deltas(rows, start, stop, bits, values)
        result = out[start:stop]
        first = values[1, : result.size]
        sums[:] = 0.0
        squares[:] = 0.0
        for j in range(2, count + 1):
            row = values[j, : result.size]
            for i in range(row.size):
                difference = float64(row[i]) - float64(first[i])
                sums[i] += difference
                squares[i] += difference * difference
        for i in range(result.size):
            result[i] = float32((count * squares[i] - sums[i] * sums[i]) * factor)


@_sum_kernel
def dot_products(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """(a.a, a.b, b.b) of float32 [c], in float64."""
    aa = 0.0
    ab = 0.0
    bb = 0.0
    for i in range(a.size):
        x = float64(a[i])
        y = float64(b[i])
        aa += x * x
        ab += x * y
        bb += y * y
    return aa, ab, bb


@kernel
def add_low_rank(up: np.ndarray, down: np.ndarray, scale: np.float32, first_row: int, out: np.ndarray) -> None:
    """out [rows, width] += scale * up[first_row : first_row + rows] @ down; float32 [all rows, r], [r, width]."""
    for i in range(out.shape[0]):
        row = out[i]
        for k in range(down.shape[0]):
            factor = scale * up[first_row + i, k]
            other = down[k]
            for m in range(row.size):
                row[m] += factor * other[m]
