"""Merging tensors in memory: the base and the targets in, one tensor out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusechat.errors import ContractError

from ..files.tensors import MemoryTensor
from ..group import Block, TensorGroup
from ..methods import Method
from .parameters import check_parameters, find_method


def merge_tensors(
    method: str | Method,
    base: Tensor,
    targets: Sequence[Tensor] | Mapping[str, Tensor] | Tensor,
    *,
    tensor_name: str = "",
    **parameters: Any,
) -> Tensor:
    """Merge one tensor of several targets.

    Args:
        method: a name of `merge.methods.METHODS`, or a function of that form; its docstring has the equation.
        base: the pivot's tensor, floating point, any shape.
        targets: n tensors of the base's shape: a sequence, a dict by name, or one tensor [n, *shape].
        tensor_name: the tensor's name; only methods that draw at random use it.
        parameters: of the method.
    Returns:
        The merged tensor, in the base's shape and dtype, on the CPU. Sums are float32 or better whatever the dtypes.
    Raises:
        ConfigError: an unknown method or parameter, a value out of range.
        ContractError: no targets, other shapes than the base's, a dtype that is not floating point, NaN or infinity.
    """
    function = find_method(method)
    checked = check_parameters(function, parameters)
    names = list(targets) if isinstance(targets, Mapping) else [str(i) for i in range(len(targets))]
    tensors = list(targets.values()) if isinstance(targets, Mapping) else list(targets)
    if not tensors:
        raise ContractError("targets: found none, expected at least one tensor to merge into the base")
    for name, tensor in [
        ("base", base),
        *((f"target {name}", tensor) for name, tensor in zip(names, tensors, strict=True)),
    ]:
        _check(name, tensor, base)
    sources = [MemoryTensor(tensor.cpu()) for tensor in (base, *tensors)]
    group = TensorGroup(tensor_name, sources[0], list(sources[1:]), names)
    merged = torch.empty(base.numel(), dtype=base.dtype)
    if base.numel():
        block_merge = function(group, **checked)

        def store(block: Block) -> None:
            values = np.ascontiguousarray(block_merge.merge(block), np.float32)
            merged[block.start : block.stop] = torch.from_numpy(values)

        group.map(store)
    return merged.reshape(base.shape)


def _check(name: str, tensor: Tensor, base: Tensor) -> None:
    if tensor.shape != base.shape:
        raise ContractError(f"{name}: found shape {list(tensor.shape)}, expected the base's {list(base.shape)}")
    if not tensor.is_floating_point():
        raise ContractError(f"{name}: found dtype {tensor.dtype}, expected a floating-point one")
    if not torch.isfinite(tensor).all():
        raise ContractError(f"{name}: holds NaN or infinity; expected finite weights")
