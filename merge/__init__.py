"""Targets become the fused model: base and targets in, one model of the same shape out.

`merge_tensors` merges tensors in memory, `merge_checkpoints` whole checkpoints on disk. Both are imported on first use,
so that `import merge` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint_merge import merge_checkpoints
    from .compute.tensor_merge import merge_tensors

__all__ = ["merge_checkpoints", "merge_tensors"]


def __getattr__(name: str) -> Any:
    if name == "merge_tensors":
        from .compute.tensor_merge import merge_tensors

        return merge_tensors
    if name == "merge_checkpoints":
        from .checkpoint_merge import merge_checkpoints

        return merge_checkpoints
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
