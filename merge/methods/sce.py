"""SCE: select, calculate, erase (FuseChat, arXiv 2408.07990, section 3.3, equations 6 to 8).

Two programs are known under this name, and they differ. The released code of the paper selects the elements of largest
variance only to calculate the coefficients, then merges all elements. mergekit sets the unselected ones to 0, so that
with select_topk 0.1 nine tenths of the model stay as they were, and gives equal coefficients where the summed mean
squares are under 1e-6, which they usually are after fine-tuning with small learning rates. Both are here, by name.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ..compute import kernels, selection_kernels
from ..compute.selection import Selection, largest
from ..group import Block, BlockMerge, TensorGroup, normalised
from . import sums

KEPT_VARIANCES = 2**25
"""Elements of the largest tensor whose variances are kept between passes (128 MiB); of a larger one they are computed
again."""
MERGEKIT_UNIFORM_BELOW = 1e-6
MERGEKIT_SMALLEST_DIVISOR = 1e-6


def sce(
    group: TensorGroup,
    *,
    select_topk: Annotated[float, Field(ge=0, le=1)] = 0.1,
    variant: Literal["released", "mergekit"] = "released",
) -> BlockMerge:
    """base + the sign-elected mean of the deltas, weighted by their size where the targets differ most.

    1. Select the k elements with the largest variance over the targets, k = int(select_topk * number of elements with
       variance); 1.0 selects all.
    2. Calculate per target eta_j = E[delta_j^2] / sum_i E[delta_i^2] over the selected elements; equal shares where
       nothing is selected or nothing changed.
    3. Erase, per element, the deltas whose sign is not that of sum_j delta_j (+ where the sum is 0); merge the others:
       sum eta_j delta_j / sum eta_j.

    `variant` mergekit erases and merges the selected elements alone, leaves the others at the base, takes equal shares
    where the summed mean squares are under 1e-6, and divides by at least 1e-6. Where more elements tie at the k-th
    largest variance than fit, the released variant counts them by share, the other picks by a hash of the place.

    Args:
        select_topk: share of elements selected; the paper's is 0.1.
        variant: whose SCE.
    """
    mergekit = variant == "mergekit"
    spread = Spread(group)
    selection: Selection | None = None
    if select_topk < 1:
        # In float32, as both programs multiply: int(100 * 0.29) is 29 there, 28 in float64.
        counts = [lambda present: int(np.float32(present) * np.float32(select_topk))]
        (selection,) = largest(group, lambda block: spread.of(block)[None], counts, order=_topk)
    mean_squares = _selected_squares(group, spread, selection) / max(group.num_elements, 1)
    if mergekit and mean_squares.sum() < MERGEKIT_UNIFORM_BELOW:
        mean_squares = np.zeros_like(mean_squares)
    coefficients, votes = normalised(mean_squares), np.ones(len(group.targets))

    def merge(block: Block) -> np.ndarray:
        masked = selection if mergekit else None
        if masked is not None:
            statistic = spread.of(block)
            for row in block.deltas:
                masked.keep(row, statistic, block)
        floor = MERGEKIT_SMALLEST_DIVISOR if mergekit else 0.0
        return sums.elected(block, votes=votes, weights=coefficients, floor=floor)

    return BlockMerge(merge, coefficients)


class Spread:
    """The variance over the targets of every element of a group."""

    def __init__(self, group: TensorGroup) -> None:
        keeps = group.num_elements <= KEPT_VARIANCES
        self._values = group.allocate("variance", (group.num_elements,), np.float32) if keeps else None
        self._ready = [False] * group.num_blocks

    def of(self, block: Block) -> np.ndarray:
        """float32 [c]."""
        if self._values is None:
            values = np.empty(block.stop - block.start, np.float32)
        else:
            values = self._values[block.start : block.stop]
            if self._ready[block.index]:
                return values
        kernels.variance(block.bits, values)
        self._ready[block.index] = self._values is not None
        return values


def _selected_squares(group: TensorGroup, spread: Spread, selection: Selection | None) -> np.ndarray:
    """float64 [n]: sum of the squared deltas over the selected elements."""

    def squares(block: Block) -> np.ndarray:
        if selection is None:
            return block.squares
        if selection.chosen is not None:
            chosen: np.ndarray = np.square(block.deltas[:, selection.chosen], dtype=np.float64).sum(axis=1)
            return chosen
        above, tied = np.empty(len(group.targets)), np.empty(len(group.targets))
        selection_kernels.squares_where(block.bits, spread.of(block), np.float32(selection.threshold), above, tied)
        return above + tied * selection.tie_share

    total: np.ndarray = np.sum(group.map(squares), axis=0)
    return total


def _topk(values: np.ndarray, k: int) -> np.ndarray:
    import torch

    return torch.topk(torch.from_numpy(values), k).indices.numpy()
