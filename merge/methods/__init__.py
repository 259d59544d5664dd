"""The merge methods by name. To add one: write a function in a file of its own, and name it here."""

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
    "sce": sce,
    "varm": varm,
    "linear": linear,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare_ties": dare_ties,
    "dare_linear": dare_linear,
    "slerp": slerp,
}
