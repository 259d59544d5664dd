"""The merge methods by name. To add one: write a function `name(group, *, parameters) -> BlockMerge` and list it here.

See docs/extending.md.
"""

from collections.abc import Callable

from ..group import BlockMerge
from .dare import dare_linear, dare_ties
from .linear import linear
from .sce import sce
from .slerp import slerp
from .task_arithmetic import task_arithmetic
from .ties import ties
from .varm import varm

Method = Callable[..., BlockMerge]

METHODS: dict[str, Method] = {
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
    "linear": linear,
    "sce": sce,
    "slerp": slerp,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "varm": varm,
}
"""Name in the run file -> method."""
