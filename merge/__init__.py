"""Targets become the fused model: base and targets in, one model of the same shape out.

`merge_tensors` merges tensors in memory, `merge_checkpoints` whole checkpoints on disk. Both are imported on first use,
so that `import merge` costs nothing.
"""

import importlib
from typing import Any

_HOMES = {"merge_tensors": "tensor_merge", "merge_checkpoints": "checkpoint_merge"}

__all__ = ["merge_checkpoints", "merge_tensors"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
