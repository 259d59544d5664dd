"""TIES (arXiv 2306.01708, section 3): trim each update, elect a sign per element, merge what agrees with it."""

from collections.abc import Callable

import numpy as np

from fusechat.errors import ConfigError

from ..compute.selection import largest
from ..group import Block, BlockMerge, PerTarget, TensorGroup
from . import sums


def ties(
    group: TensorGroup,
    *,
    density: PerTarget = 0.2,
    weights: PerTarget | None = None,
    normalize: bool = True,
    scale: float = 1.0,
) -> BlockMerge:
    """base + scale * the disjoint weighted mean of the trimmed, sign-elected updates.

    1. Trim: of delta_j keep the max(1, int(density * size)) elements of largest magnitude.
    2. Elect: the sign of an element is that of sum_j w_j delta_j, + where the sum is 0.
    3. Merge: over the targets whose delta_j has that sign, sum w_j delta_j / sum w_j.

    Where more elements tie at the threshold than fit, a hash of their place picks (see `selection`).

    Args:
        density: share kept of each update, above 0 and at most 1; the paper's default is 0.2.
        weights: w; default: 1/n for each of the n targets.
        normalize: divide by the summed weights; else step 3 is the sum alone.
        scale: the paper's lambda.
    Raises:
        ConfigError: a density out of range.
    """
    factors = group.per_target(weights, parameter="weights", default=1 / len(group.targets))
    shares = group.per_target(density, parameter="density", default=1.0)
    if not ((shares > 0) & (shares <= 1)).all():
        raise ConfigError(f"merge.parameters.density: found {shares.tolist()}, expected shares above 0 and at most 1")
    size = group.num_elements
    trims = shares < 1
    selections = []
    if trims.any():
        kept = [max(1, int(share * size)) for share in shares]
        selections = largest(group, lambda block: block.deltas, [_at_most(k) for k in kept], order=_descending)

    def merge(block: Block) -> np.ndarray:
        if selections:
            for row, selection, trim in zip(block.deltas, selections, trims, strict=True):
                if trim:
                    selection.keep(row, row, block)
        return sums.elected(block, votes=factors, weights=factors, normalize=normalize, scale=scale)

    return BlockMerge(merge, factors * scale)


def _at_most(k: int) -> Callable[[int], int]:
    return lambda present: min(present, k)


def _descending(values: np.ndarray, k: int) -> np.ndarray:
    import torch

    return torch.argsort(torch.from_numpy(values), descending=True)[:k].numpy()
