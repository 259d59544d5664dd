"""The values of one tensor of a merge's inputs."""

import numpy as np
import torch

from merge.group import Block, TensorGroup
from merge.inputs import Inputs


def values(inputs: Inputs, tensor: str, target: int = 0) -> torch.Tensor:
    """A tensor of a target, as merging reads it."""
    source = inputs.sources(tensor)[target]
    group = TensorGroup(tensor, source, [source], ["x"])
    rows = np.concatenate([Block(group, index).base for index in range(group.num_blocks)])
    return torch.from_numpy(rows).reshape(source.shape)
