"""The merge methods by name. To add one: write a function `name(group, *, parameters) -> BlockMerge` in a file here.

Every public function of this folder's files that says it returns a BlockMerge is a method; see docs/extending.md.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable

from ..group import BlockMerge

Method = Callable[..., BlockMerge]


def discover() -> dict[str, Method]:
    """Name -> method, from all files of this folder."""
    found: dict[str, Method] = {}
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        for name, function in vars(module).items():
            public = inspect.isfunction(function) and not name.startswith("_")
            # Imported functions belong to another module. An annotation may be a string: `from __future__ import annotations`.
            if public and function.__module__ == module.__name__ and _returns(function) in (BlockMerge, "BlockMerge"):
                found[name] = function
    return found


def _returns(function: Callable) -> object:
    return inspect.signature(function).return_annotation


METHODS = discover()
