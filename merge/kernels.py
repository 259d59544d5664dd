"""The hot loops: float32 blocks in, sums and float32 blocks out, compiled by numba on first use and kept on disk.

Rows of a block are walked in tiles that fit the first-level cache. Sums over a block are float64 (float32 within a tile
of masses). Results do not depend on threads: every loop is serial, and frees the interpreter lock.
Knows nothing about files, methods or models.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float32, float64, njit, uint16, uint32, uint64

TILE = 1024
"""Elements per tile: 4 KiB in float32."""


def _kernel(function: Callable, fastmath: bool | set[str] = False) -> Any:
    options: dict[str, Any] = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba finds no folder it may write to: compile again in every process
        return njit(**options)(function)


def _sum_kernel(function: Callable) -> Any:
    # Sums may be split over vector lanes. NaN and infinity keep their meaning, so "fastmath" as a whole is out.
    return _kernel(function, {"reassoc", "contract", "nsz"})


@_kernel
def widen_bfloat16(raw, out):
    """bfloat16 bits, uint16 [c] -> float32 bits, uint32 [c]."""
    for i in range(raw.size):
        out[i] = uint32(raw[i]) << uint32(16)


@_kernel
def narrow_bfloat16(values, out):
    """float32 bits, uint32 [c] -> bfloat16 bits, uint16 [c]; to nearest, ties to even; finite values only."""
    for i in range(values.size):
        bits = values[i]
        out[i] = uint16((bits + uint32(0x7FFF) + ((bits >> uint32(16)) & uint32(1))) >> uint32(16))


@_sum_kernel
def sums_of_squares(deltas, out):
    """out [n] = sum of the squares of each row of float32 [n, c], in float64."""
    for j in range(deltas.shape[0]):
        row = deltas[j]
        total = 0.0
        for i in range(row.size):
            total += float64(row[i]) * float64(row[i])
        out[j] = total


@_sum_kernel
def sums_of_squared_differences(base, targets, out):
    """out [n] = sum of the squares of targets - base; float32 [n, c] and [c], in float64."""
    for j in range(targets.shape[0]):
        row = targets[j]
        total = 0.0
        for i in range(row.size):
            difference = float64(row[i] - base[i])
            total += difference * difference
        out[j] = total


def _weighted_sum(rows, weights, out):
    """out [c] = sum_j weights_j * rows_j, in the order of j; float32 [n, c] and [n]."""
    for start in range(0, out.size, TILE):
        stop = min(start + TILE, out.size)
        total = out[start:stop]
        for i in range(total.size):
            total[i] = float32(0.0)
        for j in range(rows.shape[0]):
            row = rows[j, start:stop]
            weight = weights[j]
            for i in range(total.size):
                total[i] += weight * row[i]


weighted_sum = _kernel(_weighted_sum)
"""Every product is rounded before it is added, as torch does where it multiplies and adds in two steps."""
fused_weighted_sum = _kernel(_weighted_sum, {"contract"})
"""Products are added unrounded where the processor can, as in torch's addcmul."""


@_sum_kernel
def variance(deltas, out):
    """Population variance over the targets of each element, computed in float64 and rounded; float32 [n, c] -> [c].

    Differences are taken from the first target, so that equal targets give exactly 0 and nothing cancels.
    """
    count = deltas.shape[0]
    factor = 1.0 / (count * count)
    sums = np.empty(TILE, np.float64)
    squares = np.empty(TILE, np.float64)
    for start in range(0, out.size, TILE):
        stop = min(start + TILE, out.size)
        first = deltas[0, start:stop]
        result = out[start:stop]
        for i in range(result.size):
            sums[i] = 0.0
            squares[i] = 0.0
        for j in range(1, count):
            row = deltas[j, start:stop]
            for i in range(result.size):
                difference = float64(row[i]) - float64(first[i])
                sums[i] += difference
                squares[i] += difference * difference
        for i in range(result.size):
            result[i] = float32((count * squares[i] - sums[i] * sums[i]) * factor)


@_kernel
def count_high(bits, counts):
    """counts [32768] += how many elements have these upper 16 bits, the sign bit left out; bits uint32 [c].

    Returns the number of elements that are not 0.
    """
    present = 0
    for i in range(bits.size):
        magnitude = bits[i] & uint32(0x7FFFFFFF)
        counts[magnitude >> uint32(16)] += 1
        present += 1 if magnitude != uint32(0) else 0
    return present


@_kernel
def count_low(bits, high, counts):
    """counts [65536] += how many elements have these lower 16 bits, among those whose upper bits are `high`."""
    for i in range(bits.size):
        if (bits[i] & uint32(0x7FFFFFFF)) >> uint32(16) == uint32(high):
            counts[bits[i] & uint32(0xFFFF)] += 1


@_sum_kernel
def squares_where(deltas, statistic, threshold, above, tied):
    """above, tied [n] = sums of the squared deltas where statistic > threshold and where they are equal (float64)."""
    for j in range(deltas.shape[0]):
        row = deltas[j]
        first = 0.0
        second = 0.0
        for i in range(row.size):
            square = float64(row[i]) * float64(row[i])
            first += square if statistic[i] > threshold else 0.0
            second += square if statistic[i] == threshold else 0.0
        above[j] = first
        tied[j] = second


@_kernel
def keep_selected(row, statistic, threshold, tie_limit, offset):
    """row [c] = 0 where |statistic| < threshold; ties stay if the hash of their place is below tie_limit (of 2**32)."""
    for i in range(row.size):
        value = abs(statistic[i])
        if value < threshold:
            row[i] = float32(0.0)
        elif value == threshold:
            mixed = uint32(uint64(offset + i) * uint64(2654435761))
            if uint64(mixed) >= uint64(tie_limit):
                row[i] = float32(0.0)


@_sum_kernel
def _masses(row, signs, vote):
    """Sum of |row|, and of the part whose sign, times the vote's, is the elected one."""
    everything = float32(0.0)
    kept = float32(0.0)
    for i in range(row.size):
        size = abs(row[i])
        everything += size
        kept += size if vote * row[i] * signs[i] > float32(0.0) else float32(0.0)
    return everything, kept


@_kernel
def elected_sum(base, deltas, votes, weights, floor, normalize, scale, out, mass, kept):
    """Sign election and disjoint weighted sum (TIES, section 3; the erase step of SCE).

    s = 1 where sum_j votes_j * delta_j >= 0, else -1; target j agrees where votes_j * delta_j has the sign s.
    out = base + scale * sum over agreeing j of weights_j * delta_j, divided by their summed weights if `normalize`.
    Sums run in the order of j and every product is rounded, as in torch.

    Args:
        base, out: float32 [c]. deltas: float32 [n, c]. votes, weights: float32 [n].
        floor: smallest divisor; 0: a divisor of 0 counts as 1.
        mass, kept: float64 [n]; += sum of |delta_j|, all and agreeing.
    """
    one = float32(1.0)
    zero = float32(0.0)
    signs = np.empty(TILE, np.float32)
    numerator = np.empty(TILE, np.float32)
    divisor = np.empty(TILE, np.float32)
    for start in range(0, out.size, TILE):
        stop = min(start + TILE, out.size)
        result = out[start:stop]
        first = base[start:stop]
        for i in range(result.size):
            signs[i] = zero
            numerator[i] = zero
            divisor[i] = zero
        for j in range(deltas.shape[0]):
            row = deltas[j, start:stop]
            vote = votes[j]
            for i in range(result.size):
                signs[i] += vote * row[i]
        for i in range(result.size):
            signs[i] = one if signs[i] >= zero else -one
        for j in range(deltas.shape[0]):
            row = deltas[j, start:stop]
            vote = votes[j]
            for i in range(result.size):
                weight = weights[j] if vote * row[i] * signs[i] > zero else zero
                numerator[i] += weight * row[i]
                divisor[i] += weight
            everything, agreeing = _masses(row, signs[: row.size], vote)
            mass[j] += float64(everything)
            kept[j] += float64(agreeing)
        for i in range(result.size):
            total = divisor[i]
            if floor > zero:
                total = max(total, floor)
            elif total == zero:
                total = one
            if not normalize:
                total = one
            result[i] = first[i] + scale * (numerator[i] / total)


@_sum_kernel
def dot_products(a, b):
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


@_kernel
def add_low_rank(up, down, scale, first_row, out):
    """out [rows, width] += scale * up[first_row : first_row + rows] @ down; float32 [all rows, r], [r, width]."""
    for i in range(out.shape[0]):
        row = out[i]
        for k in range(down.shape[0]):
            factor = scale * up[first_row + i, k]
            other = down[k]
            for m in range(row.size):
                row[m] += factor * other[m]
