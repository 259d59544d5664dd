"""Compiled loops of the released mode: the warping path, the choice of a source row.

In: token texts as code points, each distinct text once, and the tokens as indices of them. Knows nothing about files.
"""

import numpy as np

from fusechat.compilation import kept

DIAGONAL, PIVOT_BACK, SOURCE_BACK = 0, 1, 2
ONE_HOT, EMPTY = -1, -2
"""Instead of a source row: all mass on the label; no entries at all."""


@kept
def warp(costs: np.ndarray, source: np.ndarray, pivot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The warping path of least cost, from the two ends back to the two starts.

    Ties in the step go diagonally, then back along the pivot, then back along the source.

    Args:
        costs: int32 [distinct source texts, distinct pivot texts].
        source, pivot: int32, indices of distinct texts.
    Returns:
        (first, last): int32 [pivot tokens] each, the source tokens that stand at each pivot token. A path moves by at
        most one, so they are consecutive.
    """
    n, m = len(source), len(pivot)
    steps = np.empty((n, m), np.uint8)
    row = np.empty(m, np.int32)
    infinite = np.int32(2**30)
    for i in range(n):
        of_row = costs[source[i]]
        left = infinite  # best total at (i, j-1)
        diagonal = infinite if i else np.int32(0)  # best total at (i-1, j-1)
        for j in range(m):
            up = row[j] if i else infinite
            best, move = diagonal, DIAGONAL
            if left < best:
                best, move = left, PIVOT_BACK
            if up < best:
                best, move = up, SOURCE_BACK
            steps[i, j] = move
            left = best + of_row[pivot[j]]
            diagonal = up
            row[j] = left
    first, last = np.zeros(m, np.int32), np.zeros(m, np.int32)
    _trace(steps, first, last)
    return first, last


@kept
def _trace(steps: np.ndarray, first: np.ndarray, last: np.ndarray) -> None:
    """Walk back from the two ends; steps uint8 [source tokens, pivot tokens], first and last int32 [pivot tokens]."""
    i, j = steps.shape[0] - 1, steps.shape[1] - 1
    last[j] = first[j] = i
    while i > 0 or j > 0:
        move = steps[i, j]
        if move != PIVOT_BACK:
            i -= 1
        if move != SOURCE_BACK:
            j -= 1
            last[j] = i
        first[j] = i


@kept
def _ends_with(
    points: np.ndarray, start: int, stop: int, other_points: np.ndarray, other_start: int, other_stop: int
) -> bool:
    """Whether one of two texts ends with the other."""
    length = min(stop - start, other_stop - other_start)
    same = 0
    while same < length and points[stop - 1 - same] == other_points[other_stop - 1 - same]:
        same += 1
    return same == length


@kept
def _starts_with(
    points: np.ndarray, start: int, stop: int, other_points: np.ndarray, other_start: int, other_stop: int
) -> bool:
    length = other_stop - other_start
    if length > stop - start:
        return False
    same = 0
    while same < length and points[start + same] == other_points[other_start + same]:
        same += 1
    return same == length


@kept
def choose_rows(
    pivot: np.ndarray, source: np.ndarray, first: np.ndarray, last: np.ndarray, p_points: np.ndarray,
    p_offsets: np.ndarray, s_points: np.ndarray, s_offsets: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """The source token whose row each pivot token gets, int32 [pivot tokens]; ONE_HOT or EMPTY where none.

    With one source token: it, if either text ends with the other. With several: the first for which that holds of the
    stripped texts; else the last of those that spell the pivot's token one after the other.

    Args:
        pivot, source: int32, indices of distinct texts, laid out as in `WarpingTexts`.
        first, last: int32 [pivot tokens], of `warp`.
    """
    chosen = np.full(len(pivot), ONE_HOT, np.int32)
    for i in range(len(pivot)):
        p_start, p_middle, p_stop = p_offsets[2 * pivot[i]], p_offsets[2 * pivot[i] + 1], p_offsets[2 * pivot[i] + 2]
        if first[i] == last[i]:
            s = source[first[i]]
            if _ends_with(p_points, p_middle, p_stop, s_points, s_offsets[2 * s + 1], s_offsets[2 * s + 2]):
                chosen[i] = first[i]
            continue
        for j in range(first[i], last[i] + 1):
            s = source[j]
            if _ends_with(p_points, p_start, p_middle, s_points, s_offsets[2 * s], s_offsets[2 * s + 1]):
                chosen[i] = j
                break
        if chosen[i] == ONE_HOT:
            chosen[i] = _spelling_row(source, first[i], last[i], p_points[p_start:p_middle], s_points, s_offsets)
    return chosen


@kept
def _spelling_row(
    source: np.ndarray, first: int, last: int, text: np.ndarray, s_points: np.ndarray, s_offsets: np.ndarray
) -> int:
    """Several source tokens, none of which ends the pivot's token: do some of them spell it in order?"""
    read, total, last_used = 0, 0, -1
    for j in range(first, last + 1):
        start, stop = s_offsets[2 * source[j]], s_offsets[2 * source[j] + 1]
        total += stop - start
        if _starts_with(text, read, len(text), s_points, start, stop):
            read += stop - start
            last_used = j
    if read == len(text) and last_used >= 0:
        return last_used
    # All of them together, last letters first, against the token: then the released code leaves the row empty.
    j, place = last, s_offsets[2 * source[last] + 1]
    for back in range(1, min(len(text), total) + 1):
        while place == s_offsets[2 * source[j]]:
            j -= 1
            place = s_offsets[2 * source[j] + 1]
        place -= 1
        if text[len(text) - back] != s_points[place]:
            return ONE_HOT
    return EMPTY
