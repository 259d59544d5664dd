"""The two last steps that methods share: the weighted sum of the deltas, and the sum after a sign election."""

from collections.abc import Callable

import numpy as np

from fusechat.errors import ConfigError

from ..compute import election_kernels, kernels
from ..group import Block


def weighted(coefficients: np.ndarray, scale: float = 1.0) -> Callable[[Block], np.ndarray]:
    """base + scale * sum_j coefficients_j * delta_j."""
    factors = coefficients.astype(np.float32)

    def merge(block: Block) -> np.ndarray:
        out = np.empty(block.stop - block.start, np.float32)
        if block.has_deltas:
            kernels.weighted_sum_of_deltas(block.base_and_deltas, factors, np.float32(scale), out)
        else:
            kernels.weighted_sum(block.bits, factors, np.float32(scale), out)
        return out

    return merge


def elected(
    block: Block,
    *,
    votes: np.ndarray,
    weights: np.ndarray,
    floor: float = 0.0,
    normalize: bool = True,
    scale: float = 1.0,
) -> np.ndarray:
    """base + scale * the weighted mean (or sum) of the deltas that have the elected sign.

    The sign of an element is that of sum_j votes_j * delta_j, + where the sum is 0. Fills the block's masses.

    Args:
        votes, weights: [n].
        floor: smallest divisor of the mean; with 0, a divisor of 0 counts as 1.
    """
    out, masses = np.empty(block.stop - block.start, np.float32), np.zeros((3, len(weights)))
    settings = (votes.astype(np.float32), weights.astype(np.float32), np.float32(floor), normalize, np.float32(scale))
    if block.has_deltas:
        election_kernels.elected_sum_of_deltas(block.base_and_deltas, *settings, out, masses)
    else:
        election_kernels.elected_sum(block.bits, *settings, out, masses)
        block.squares = masses[2]
    block.mass, block.kept_mass = masses[:2]
    return out


def checked_sum(weights: np.ndarray) -> float:
    """The sum of the weights, by which a weighted mean is divided.

    Raises:
        ConfigError: they add up to 0.
    """
    total = float(weights.sum())
    if abs(total) <= 1e-8 * np.abs(weights).sum():
        raise ConfigError(
            f"merge.parameters.weights: {weights.tolist()} add up to 0 and cannot be normalised; set normalize: false"
        )
    return total
