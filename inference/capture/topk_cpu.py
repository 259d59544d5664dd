"""Top-k, log-sum-exp and label logit of rows of logits on a CPU: two passes over each row while it is in the cache.

Goes in: bfloat16 or float32 logits [rows, columns]. Comes out: per row the k largest in the order of `topk.py`, their
columns, the log-sum-exp and the label's logit, all float32. Compiled by numba, which vLLM brings along; about five
times as fast as the same in PyTorch's operations, which pass over memory once for each.

The first pass takes the best of every block of columns, by integers that are ordered as the floats are: only the k best
blocks can hold the k best columns. The second sums the exponentials.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from fusechat.compilation import kept

BLOCK = 128
"""Columns of one block."""
RUN = 4096
"""Columns whose exponentials are summed in float32; the sums of the runs add up in float64."""
LOG2_E = np.float32(1.4426950408889634)
LOWEST = np.float32(-126.0)
"""Powers of two below this are no normal float32; to a sum of at least 1 they add nothing."""
REASSOCIATE = {"reassoc", "nsz", "contract"}
"""What the sum of exponentials may do; NaN and infinity stay what they are."""


def reduce_rows(logits: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reduce each row; the rows are shared out between as many threads as torch uses.

    Args:
        logits: [rows, columns], bfloat16 or float32; a row stands in one piece, rows may stand apart. Left as they are.
        labels: int64 [rows]; outside of the columns the label's logit is -inf.
        k: at most the columns.
    Returns:
        values float32 [rows, k], columns int64 [rows, k], label logit float32 [rows, 1], log-sum-exp float32 [rows, 1].
    """
    rows, width = logits.shape
    step = logits.stride(0)
    flat = logits.as_strided(((rows - 1) * step + width,), (1,))
    bits = flat.view(torch.int16 if logits.dtype == torch.bfloat16 else torch.int32).numpy()
    values, columns = torch.empty(rows, k), torch.empty(rows, k, dtype=torch.int64)
    label, logsumexp = torch.empty(rows, 1), torch.empty(rows, 1)
    arrays = (labels.numpy(), values.numpy(), columns.numpy(), label.numpy(), logsumexp.numpy())

    def reduce_part(start: int, stop: int) -> None:
        _reduce(bits[start * step :], step, width, *(array[start:stop] for array in arrays))

    threads = min(torch.get_num_threads(), rows)
    cuts = [rows * part // threads for part in range(threads + 1)]
    if threads == 1:
        reduce_part(0, rows)
    else:
        list(_pool(threads).map(reduce_part, cuts[:-1], cuts[1:]))
    return values, columns, label, logsumexp


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="topk")


def _intrinsic(generator: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """numba's `intrinsic` of one value: compiled code calls it without the typing context."""
    made: Callable[[Any], Any] = intrinsic(generator)
    return made


@_intrinsic
def _float_of(typing_context: Any, bits: Any) -> Any:
    """The float32 of the bits of a bfloat16 (int16) or a float32 (int32)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = arguments[0]
        if bits == types.int16:
            wide = builder.shl(builder.zext(wide, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(wide, ir.FloatType())

    return types.float32(bits), generate


@_intrinsic
def _ordered(typing_context: Any, bits: Any) -> Any:
    """Integers of the same width in the order of the floats that the bits stand for; -0.0 and 0.0 are one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, value = arguments[0].type, arguments[0]
        sign = builder.ashr(value, ir.Constant(kind, bits.bitwidth - 1))
        flipped = builder.xor(value, builder.and_(sign, ir.Constant(kind, 2 ** (bits.bitwidth - 1) - 1)))
        is_minus_zero = builder.icmp_signed("==", flipped, ir.Constant(kind, -1))
        return builder.add(flipped, builder.zext(is_minus_zero, kind))

    return bits(bits), generate


@kept(nogil=True)
def _reduce(
    bits: np.ndarray, step: int, columns: int, labels: np.ndarray, out_values: np.ndarray, out_columns: np.ndarray,
    out_label: np.ndarray, out_logsumexp: np.ndarray,
) -> None:  # fmt: skip
    """`reduce_rows` of some rows: bits int16 or int32, rows `step` apart; the arrays as they are there."""
    rows, k = out_values.shape
    ordered, best = np.empty(columns, bits.dtype), np.empty(-(-columns // BLOCK), bits.dtype)
    maxima, blocks = np.empty(min(k, len(best)), bits.dtype), np.empty(min(k, len(best)), np.int64)
    values = np.empty(k, bits.dtype)
    for r in range(rows):
        row = bits[r * step : r * step + columns]
        _order_row(row, ordered, best)
        _best_columns(ordered, best, maxima, blocks, values, out_columns[r])
        for j in range(k):
            out_values[r, j] = _float_of(row[out_columns[r, j]])
        label = labels[r]
        out_label[r, 0] = _float_of(row[label]) if 0 <= label < columns else -np.inf
        top = out_values[r, 0]
        out_logsumexp[r, 0] = top + np.log(_sum_of_exponentials(row, top))


@kept(nogil=True)
def _order_row(bits: np.ndarray, ordered: np.ndarray, best: np.ndarray) -> None:
    """Write a row's ordered integers ([columns], the dtype of `bits`), and the largest of each block of them."""
    for j in range(len(bits)):
        ordered[j] = _ordered(bits[j])
    whole = len(bits) // BLOCK
    for block in range(whole):
        largest = ordered[block * BLOCK]
        for j in range(BLOCK):  # a fixed length: with a computed one LLVM makes a loop of single steps, 20 times slower
            largest = max(largest, ordered[block * BLOCK + j])
        best[block] = largest
    if whole < len(best):
        best[whole] = ordered[whole * BLOCK]
        for j in range(whole * BLOCK, len(bits)):
            best[whole] = max(best[whole], ordered[j])


@kept(nogil=True)
def _insert(values: np.ndarray, places: np.ndarray, value: np.signedinteger, place: int) -> None:
    """Put a value into a list that descends, behind its equals; the last one falls out."""
    at = len(values) - 1
    while at > 0 and values[at - 1] < value:
        values[at], places[at] = values[at - 1], places[at - 1]
        at -= 1
    values[at], places[at] = value, place


@kept(nogil=True)
def _sort(numbers: np.ndarray) -> None:
    """Ascending, in place; a handful of them."""
    for i in range(1, len(numbers)):
        number, at = numbers[i], i
        while at > 0 and numbers[at - 1] > number:
            numbers[at] = numbers[at - 1]
            at -= 1
        numbers[at] = number


@kept(nogil=True)
def _best_columns(
    ordered: np.ndarray, best: np.ndarray, maxima: np.ndarray, blocks: np.ndarray, values: np.ndarray,
    columns: np.ndarray,
) -> None:  # fmt: skip
    """The k best of a row of ordered integers, of equals the first; `maxima` and `blocks` hold the best blocks.

    A column outside of the k best blocks is beaten by the best column of each of them.
    """
    for block in range(len(maxima)):
        maxima[block] = best[block]
        at = block
        while at > 0 and maxima[at - 1] < best[block]:
            maxima[at], blocks[at] = maxima[at - 1], blocks[at - 1]
            at -= 1
        maxima[at], blocks[at] = best[block], block
    for block in range(len(maxima), len(best)):
        if best[block] > maxima[-1]:
            _insert(maxima, blocks, best[block], block)
    count = 0
    _sort(blocks)  # so that of equals the first column stands first
    for block in blocks:
        for column in range(block * BLOCK, min((block + 1) * BLOCK, len(ordered))):
            if count < len(values):
                values[count], columns[count] = ordered[column], column
                count += 1
                _insert(values[:count], columns[:count], ordered[column], column)
            elif ordered[column] > values[-1]:
                _insert(values, columns, ordered[column], column)


@kept(nogil=True)
def _sum_of_exponentials(bits: np.ndarray, top: np.float32) -> np.float64:
    """Sum of exp(x - top) over one row."""
    total = np.float64(0.0)
    for start in range(0, len(bits), RUN):
        total += _sum_of_run(bits[start : start + RUN], top)
    return total


@kept(nogil=True, fastmath=REASSOCIATE)
def _sum_of_run(bits: np.ndarray, top: np.float32) -> np.float32:
    """Two to a fraction is a polynomial that is off by less than 3e-9, so that only float32 rounds."""
    total = np.float32(0.0)
    for j in range(len(bits)):
        power = (_float_of(bits[j]) - top) * LOG2_E
        power = LOWEST if power < LOWEST else power
        whole = np.floor(power)
        x = power - whole
        fraction = np.float32(2.18775050e-4)
        fraction = fraction * x + np.float32(1.23878219e-3)
        fraction = fraction * x + np.float32(9.68458038e-3)
        fraction = fraction * x + np.float32(5.54804280e-2)
        fraction = fraction * x + np.float32(2.40230501e-1)
        fraction = fraction * x + np.float32(6.93146944e-1)
        fraction = fraction * x + np.float32(1.0)
        total += fraction * _float_of(np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)))
    return total
