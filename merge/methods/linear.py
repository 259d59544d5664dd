"""Linear merging: the weighted mean of the targets ("Model soups", arXiv 2203.05482, section 2)."""

import numpy as np

from ..compute import kernels
from ..group import Block, BlockMerge, PerTarget, TensorGroup
from . import sums


def linear(group: TensorGroup, *, weights: PerTarget | None = None, normalize: bool = True) -> BlockMerge:
    """sum_j w_j theta_j / sum_j w_j. The base itself has no weight.

    Args:
        weights: w; default: 1 for each target.
        normalize: divide by the sum of the weights; without it the result is sum_j w_j theta_j.
    """
    factors = group.per_target(weights, parameter="weights", default=1.0)
    total = sums.checked_sum(factors) if normalize else 1.0
    rounded = factors.astype(np.float32)
    divisor = rounded.sum() if normalize else np.float32(1)

    def merge(block: Block) -> np.ndarray:
        out = np.empty(block.stop - block.start, np.float32)
        kernels.mean_of_targets(block.bits, rounded, divisor, out)
        return out

    return BlockMerge(merge, factors / total)
