"""DARE (arXiv 2311.03099, section 3): drop elements of each update at random, scale up the rest, then merge."""

import hashlib
from typing import Annotated

import numpy as np
from pydantic import Field

from ..group import Block, BlockMerge, PerTarget, TensorGroup
from . import sums

Density = Annotated[float, Field(gt=0, le=1)]


def dare_linear(
    group: TensorGroup,
    *,
    density: Density = 0.5,
    weights: PerTarget | None = None,
    normalize: bool = False,
    scale: float = 1.0,
    seed: int = 0,
) -> BlockMerge:
    """base + scale * sum_j w_j m_j delta_j / density, each m_j drawn from Bernoulli(density) per element.

    Its expectation is task arithmetic with the same weights.

    Args:
        density: share of each update that survives, 1 - p in the paper.
        weights: w; default: 1/n for each of the n targets.
        normalize: divide by the sum of the weights.
        scale: the paper's lambda.
        seed: with the tensor's name, the target's name and the place, decides every draw.
    """
    factors = group.per_target(weights, parameter="weights", default=1 / len(group.targets))
    factor = scale / sums.checked_sum(factors) if normalize else scale
    add = sums.weighted(factors, factor)

    def merge(block: Block) -> np.ndarray:
        drop_and_rescale(group, block, density, seed)
        return add(block)

    return BlockMerge(merge, factors * factor)


def dare_ties(
    group: TensorGroup,
    *,
    density: Density = 0.5,
    weights: PerTarget | None = None,
    normalize: bool = True,
    scale: float = 1.0,
    seed: int = 0,
) -> BlockMerge:
    """base + scale * the disjoint weighted mean of m_j delta_j / density: `dare_linear`'s draws, then TIES' election.

    Args:
        normalize: divide by the summed weights of the agreeing targets; else their sum alone.
        density, weights, scale, seed: as in `dare_linear`.
    """
    factors = group.per_target(weights, parameter="weights", default=1 / len(group.targets))

    def merge(block: Block) -> np.ndarray:
        drop_and_rescale(group, block, density, seed)
        return sums.elected(block, votes=factors, weights=factors, normalize=normalize, scale=scale)

    return BlockMerge(merge, factors * scale)


def drop_and_rescale(group: TensorGroup, block: Block, density: float, seed: int) -> None:
    """Multiply the block's deltas by Bernoulli(density) / density, in place."""
    if density == 1:
        return
    for name, row in zip(group.target_names, block.deltas, strict=True):
        key = hashlib.sha256(f"{seed}\0{group.name}\0{name}\0{block.index}".encode()).digest()
        draws = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
        row *= (draws.random(row.size, np.float32) < density) * np.float32(1 / density)
