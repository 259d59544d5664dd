"""VaRM, variation ratio merging (FuseChat version 1, arXiv 2402.16107, equation 5)."""

from typing import Literal

from ..group import BlockMerge, TensorGroup, normalised
from . import sums


def varm(group: TensorGroup, *, granularity: Literal["matrix", "layer", "model"] = "matrix") -> BlockMerge:
    """base + sum_j W_jm delta_j with W_jm = E[delta_jm^2] / sum_i E[delta_im^2]; m is the matrix, its layer or the model.

    E is the mean over all elements of m. (The released script adds up the means of a layer's matrices instead, and
    gives equal weights to what stands in no layer; here a tensor in no layer is a layer of its own.) Where no target
    changed m, the weights are equal.

    Args:
        granularity: over what the mean is taken. `layer` and `model` need a whole checkpoint: `merge_checkpoints`
            collects the means beforehand. A single tensor is its own layer and model.
    """
    means = group.scope_mean_squares if granularity != "matrix" else None
    coefficients = normalised(group.mean_squares() if means is None else means)
    return BlockMerge(sums.weighted(coefficients), coefficients)
