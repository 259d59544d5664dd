"""The hot loops that choose elements by magnitude: counts by their bits, masses above a threshold, and what is kept.

As in `kernels.py`: `rows` are bits of the base and the targets, taken in tiles; serial, float64 sums, compiled on first use.
"""

import numpy as np
from numba import float32, float64, uint32, uint64

from .kernels import TILE, inner_sum_kernel, kernel, load_deltas

LANES = 4
"""Tables that neighbouring elements are counted in; a power of two."""


@kernel
def count_high(bits: np.ndarray, counts: np.ndarray) -> int:
    """How many elements have which upper 16 bits, the sign bit left out; bits uint32 [c].

    Args:
        counts: uint32 [LANES, 32768]; += the counts, in several lanes, because equal neighbours would wait for each other.
    Returns:
        The number of elements that are not 0.
    """
    present = 0
    for i in range(bits.size):
        magnitude = bits[i] & uint32(0x7FFFFFFF)
        counts[i & (LANES - 1), magnitude >> uint32(16)] += uint32(1)
        present += 1 if magnitude != uint32(0) else 0
    return present


@kernel
def count_low(bits: np.ndarray, high: int, counts: np.ndarray) -> None:
    """counts uint32 [1, 65536] += how many have which lower 16 bits, among those whose upper bits are `high`."""
    for i in range(bits.size):
        if (bits[i] & uint32(0x7FFFFFFF)) >> uint32(16) == uint32(high):
            counts[0, bits[i] & uint32(0xFFFF)] += uint32(1)


@inner_sum_kernel
def _squares_where(row: np.ndarray, statistic: np.ndarray, threshold: np.float32) -> tuple[float, float]:
    """`squares_where` of one target's tile: row and statistic float32 [c]."""
    above = 0.0
    tied = 0.0
    for i in range(row.size):
        square = float64(row[i]) * float64(row[i])
        above += square if statistic[i] > threshold else 0.0
        tied += square if statistic[i] == threshold else 0.0
    return above, tied


@kernel
def squares_where(
    rows: np.ndarray, statistic: np.ndarray, threshold: np.float32, above: np.ndarray, tied: np.ndarray
) -> None:
    """above, tied [n] = sums of the squared deltas where statistic > threshold and where they are equal (float64)."""
    bits = np.empty((rows.shape[0], TILE), np.uint32)
    values = bits.view(np.float32)
    above[:] = 0.0
    tied[:] = 0.0
    for start in range(0, rows.shape[1], TILE):
        stop = min(start + TILE, rows.shape[1])
        load_deltas(rows, start, stop, bits, values)
        for j in range(1, rows.shape[0]):
            first, second = _squares_where(values[j, : stop - start], statistic[start:stop], threshold)
            above[j - 1] += first
            tied[j - 1] += second


@kernel
def keep_selected(row: np.ndarray, statistic: np.ndarray, threshold: np.float32, tie_limit: int, offset: int) -> None:
    """row [c] = 0 where |statistic| < threshold; ties stay if the hash of their place is below tie_limit (of 2**32).

    `row` and `statistic` may be the same memory.
    """
    magnitudes = np.empty(TILE, np.float32)  # a copy, because loops over memory that overlaps are scalar
    for start in range(0, row.size, TILE):
        tile = row[start : start + TILE]
        for i in range(tile.size):
            magnitudes[i] = abs(statistic[start + i])
        for i in range(tile.size):
            tile[i] = tile[i] if magnitudes[i] >= threshold else float32(0.0)
        if tie_limit < 2**32:
            first = uint64(offset + start)
            for i in range(tile.size):
                mixed = ((first + uint64(i)) * uint64(2654435761)) & uint64(0xFFFFFFFF)
                leaves = (magnitudes[i] == threshold) & (mixed >= uint64(tie_limit))
                tile[i] = float32(0.0) if leaves else tile[i]
