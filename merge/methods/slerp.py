"""Spherical linear interpolation between two models (Shoemake, SIGGRAPH 1985), a whole tensor as one vector."""

import math
from typing import Annotated

import numpy as np
from pydantic import Field

from fusechat.errors import ConfigError

from ..compute import kernels
from ..group import Block, BlockMerge, TensorGroup

PARALLEL = 0.9995
"""Cosine from which on two vectors count as parallel and are interpolated on the line between them, as mergekit does."""


def slerp(group: TensorGroup, *, t: Annotated[float, Field(ge=0, le=1)] = 0.5) -> BlockMerge:
    """(sin((1-t) a) u + sin(t a) v) / sin(a), a the angle between u and v.

    Args:
        t: 0 gives u, 1 gives v. With one target, u is the base and v the target; with two, they are u and v.
    Raises:
        ConfigError: more than two targets.
    """
    count = len(group.targets)
    if count > 2:
        raise ConfigError(f"slerp: found {count} targets, expected one (base to target) or two (first to second)")

    def ends(block: Block) -> tuple[np.ndarray, np.ndarray]:
        return (block.base, block.targets[0]) if count == 1 else (block.targets[0], block.targets[1])

    uu, uv, vv = np.sum(group.map(lambda block: kernels.dot_products(*ends(block))), axis=0)
    lengths = math.sqrt(uu) * math.sqrt(vv)
    cosine = min(1.0, max(-1.0, uv / lengths)) if lengths > 0 else 0.0
    if abs(cosine) > PARALLEL:
        first, second = 1 - t, t
    else:
        angle = math.acos(cosine)
        first, second = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)

    def merge(block: Block) -> np.ndarray:
        u, v = ends(block)
        return np.float32(first) * u + np.float32(second) * v

    return BlockMerge(merge, [second] if count == 1 else [first, second])
