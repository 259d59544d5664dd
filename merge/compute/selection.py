"""The k largest elements of a tensor that is only seen in blocks, exactly, in constant memory.

Non-negative float32 numbers sort like their bits read as integers. A first pass counts the upper 16 bits, a second the
lower 16 bits of the elements that share the upper half of the k-th largest: then the k-th largest is known exactly.
Counts are integers, so that neither threads nor the order of blocks matter. Knows nothing about what is selected for.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..group import Block, TensorGroup
from . import selection_kernels

ORDERED_ELEMENTS = 65_536
"""Largest tensor whose ties are broken in the order of a library's function, which has to see it whole."""
Statistic = Callable[[Block], np.ndarray]
"""Block -> float32 [m, c]: m statistics of every element; their absolute values are compared."""


@dataclass(frozen=True)
class Selection:
    """Which elements are selected: those above the threshold, and a share of those that equal it."""

    threshold: float
    tie_share: float
    """Of the elements that equal the threshold, the share that is selected."""
    chosen: np.ndarray | None = None
    """bool [all elements]: the selection itself, for a small tensor whose ties do not all fit."""

    def keep(self, row: np.ndarray, statistic: np.ndarray, block: Block) -> None:
        """Set the elements of `row` that are not selected to 0, in place; float32 [c].

        Which ties stay is decided by a hash of their place, so that they are spread over the tensor.
        """
        if self.chosen is not None:
            row *= self.chosen
        else:
            selection_kernels.keep_selected(
                row, statistic, np.float32(self.threshold), round(self.tie_share * 2**32), block.start
            )


def largest(
    group: TensorGroup,
    statistic: Statistic,
    counts: list[Callable[[int], int]],
    *,
    order: Callable[[np.ndarray, int], np.ndarray],
) -> list[Selection]:
    """Select the largest elements of each of m statistics.

    Args:
        counts: m functions: number of elements that are not 0 -> k, how many to select.
        order: (float32 [c], k) -> indices of k largest; asked only where a tensor of at most ORDERED_ELEMENTS has ties
            that do not all fit. There the selection is that of the library function which other implementations call.
    """
    high = _Counts((len(counts), selection_kernels.LANES, 2**15))
    present = np.sum(group.map(lambda block: _count_high(statistic(block), high.mine())), axis=0)
    wanted = [count(int(size)) for count, size in zip(counts, present, strict=True)]
    places = [_rank_in(row, k) for row, k in zip(high.total(), wanted, strict=True)]

    low = _Counts((len(counts), 1, 2**16))
    group.map(lambda block: _count_low(statistic(block), places, low.mine()))
    selections = []
    for number, (place, row) in enumerate(zip(places, low.total(), strict=True)):
        if place is None:
            selections.append(Selection(float("inf"), 0.0))
            continue
        within = _rank_in(row, place.wanted)
        assert within is not None  # the upper half was found in these very counts
        threshold = np.array(place.index << 16 | within.index, np.uint32).view(np.float32)
        selection = Selection(float(threshold), within.wanted / int(row[within.index]))
        if selection.tie_share < 1 and group.num_elements <= ORDERED_ELEMENTS and group.num_blocks == 1:
            selection = _chosen(group, statistic, number, selection, order, place.k)
        selections.append(selection)
    return selections


@dataclass(frozen=True)
class _Place:
    """Where the k-th largest lies: the index of its bin, and how many of that bin are wanted."""

    index: int
    wanted: int
    k: int


def _rank_in(counts: np.ndarray, k: int) -> _Place | None:
    """The bin that holds the k-th largest; None where k is 0."""
    if k <= 0:
        return None
    from_top = np.cumsum(counts[::-1])
    position = int(np.searchsorted(from_top, k))
    index = len(counts) - 1 - position
    return _Place(index, k - int(from_top[position] - counts[index]), k)


def _chosen(
    group: TensorGroup,
    statistic: Statistic,
    number: int,
    selection: Selection,
    order: Callable[[np.ndarray, int], np.ndarray],
    k: int,
) -> Selection:
    values = np.abs(group.map(statistic)[0][number])
    chosen = np.zeros(values.size, bool)
    chosen[order(values, k)] = True
    return Selection(selection.threshold, selection.tie_share, chosen)


class _Counts:
    """Counts, one array per thread, so that blocks need no lock; up to 2**32 equal elements per thread."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape, self._local = shape, threading.local()
        self._all: list[np.ndarray] = []

    def mine(self) -> np.ndarray:
        if not hasattr(self._local, "counts"):
            self._local.counts = np.zeros(self._shape, np.uint32)
            self._all.append(self._local.counts)
        counts: np.ndarray = self._local.counts
        return counts

    def total(self) -> np.ndarray:
        """[m, bins]: over threads and lanes."""
        return np.array([np.sum(rows, axis=(0, 1), dtype=np.int64) for rows in zip(*self._all, strict=True)])


def _count_high(statistics: np.ndarray, counts: np.ndarray) -> list[int]:
    """Counts each row of statistics; returns how many of each are not 0."""
    return [
        selection_kernels.count_high(row.view(np.uint32), lanes) for row, lanes in zip(statistics, counts, strict=True)
    ]


def _count_low(statistics: np.ndarray, places: list[_Place | None], counts: np.ndarray) -> None:
    for row, place, totals in zip(statistics, places, counts, strict=True):
        if place is not None:
            selection_kernels.count_low(row.view(np.uint32), place.index, totals)
