"""Task arithmetic (arXiv 2212.04089, section 2): add the updates of the targets to the base."""

from ..group import BlockMerge, PerTarget, TensorGroup
from . import sums


def task_arithmetic(
    group: TensorGroup, *, weights: PerTarget | None = None, normalize: bool = False, scale: float = 1.0
) -> BlockMerge:
    """base + scale * sum_j w_j delta_j.

    Args:
        weights: w; default: 1/n for each of the n targets.
        normalize: divide by the sum of the weights.
        scale: the paper's lambda.
    """
    factors = group.per_target(weights, parameter="weights", default=1 / len(group.targets))
    factor = scale / sums.checked_sum(factors) if normalize else scale
    return BlockMerge(sums.weighted(factors, factor), factors * factor)
