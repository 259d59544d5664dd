"""Lays a source's rows on the pivot's tokens and vocabulary.

Start at `stage.py`. `map_vocabulary`, `align_released` and `project_released` are the functions of use on their own.
"""

import importlib
from typing import Any

_HOMES = {"align_released": ".released", "project_released": ".released", "map_vocabulary": ".vocabulary_mapping"}
__all__ = ["align_released", "map_vocabulary", "project_released"]


def __getattr__(name: str) -> Any:
    """Load the compiled modules only when one of the functions is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
