"""Sign election and disjoint sum, compiled as `kernels` are: float32 blocks in, the merged block and the targets' masses out."""

import numpy as np
from numba import float32, float64

from .kernels import TILE, copy_tile, inner_kernel, inner_order_kernel, kernel, load_deltas


@inner_order_kernel
def _add_agreeing(
    row: np.ndarray, signs: np.ndarray, vote: np.float32, weight: np.float32, numerator: np.ndarray, divisor: np.ndarray
) -> tuple[np.float32, np.float32, float]:
    """Add weight * row to the numerator and the weight to the divisor where vote * row has the elected sign.

    Args:
        row, signs, numerator, divisor: float32 [c].
    Returns:
        sums of |row|, of the part that agrees, and of the squares.
    """
    everything = float32(0.0)
    kept = float32(0.0)
    squares = 0.0
    for i in range(row.size):
        value = row[i]
        size = abs(value)
        agrees = vote * value * signs[i] > float32(0.0)
        added = weight if agrees else float32(0.0)
        numerator[i] += added * value
        divisor[i] += added
        everything += size
        kept += size if agrees else float32(0.0)
        squares += float64(size) * float64(size)
    return everything, kept, squares


@inner_kernel
def _elect(
    values: np.ndarray, size: int, votes: np.ndarray, weights: np.ndarray, floor: np.float32, normalize: bool,
    scale: np.float32, scratch: np.ndarray, out: np.ndarray, masses: np.ndarray,
) -> None:  # fmt: skip
    """`elected_sum` of one tile: values float32 [n+1, TILE] are the base and the deltas; scratch float32 [3, TILE]."""
    one = float32(1.0)
    zero = float32(0.0)
    base = values[0, :size]
    signs = scratch[0, :size]
    numerator = scratch[1, :size]
    divisor = scratch[2, :size]
    scratch[:] = zero
    for j in range(votes.size):
        row = values[j + 1, :size]
        vote = votes[j]
        for i in range(row.size):
            signs[i] += vote * row[i]
    for i in range(signs.size):
        signs[i] = one if signs[i] >= zero else -one
    for j in range(votes.size):
        row = values[j + 1, :size]
        everything, agreeing, squares = _add_agreeing(row, signs, votes[j], weights[j], numerator, divisor)
        masses[0, j] += float64(everything)
        masses[1, j] += float64(agreeing)
        masses[2, j] += squares
    for i in range(out.size):
        total = divisor[i]
        if floor > zero:
            total = max(total, floor)
        elif total == zero:
            total = one
        if not normalize:
            total = one
        out[i] = base[i] + scale * (numerator[i] / total)


@kernel
def elected_sum(
    rows: np.ndarray, votes: np.ndarray, weights: np.ndarray, floor: np.float32, normalize: bool, scale: np.float32,
    out: np.ndarray, masses: np.ndarray,
) -> None:  # fmt: skip
    """Sign election and disjoint weighted sum (TIES, section 3; the erase step of SCE).

    s = 1 where sum_j votes_j * delta_j >= 0, else -1; target j agrees where votes_j * delta_j has the sign s.
    out = base + scale * sum over agreeing j of weights_j * delta_j, divided by their summed weights if `normalize`.
    Sums run in the order of j and every product is rounded, as in torch.

    Args:
        votes, weights: float32 [n].
        floor: smallest divisor; 0: a divisor of 0 counts as 1.
        out: float32 [c].
        masses: float64 [3, n]; += sum of |delta_j|, of the agreeing ones, and of delta_j squared.
    """
    bits = np.empty((rows.shape[0], TILE), np.uint32)
    values = bits.view(np.float32)
    scratch = np.empty((3, TILE), np.float32)
    for start in range(0, out.size, TILE):
        stop = min(start + TILE, out.size)
        load_deltas(rows, start, stop, bits, values)
        _elect(values, stop - start, votes, weights, floor, normalize, scale, scratch, out[start:stop], masses)


@kernel
def elected_sum_of_deltas(
    values: np.ndarray, votes: np.ndarray, weights: np.ndarray, floor: np.float32, normalize: bool, scale: np.float32,
    out: np.ndarray, masses: np.ndarray,
) -> None:  # fmt: skip
    """`elected_sum` where the base and the deltas are there as float32 [n+1, c]."""
    scratch = np.empty((3, TILE), np.float32)
    tile = np.empty((values.shape[0], TILE), np.float32)
    for start in range(0, out.size, TILE):
        stop = min(start + TILE, out.size)
        copy_tile(values, start, stop, tile)
        _elect(tile, stop - start, votes, weights, floor, normalize, scale, scratch, out[start:stop], masses)
