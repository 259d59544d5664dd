"""Lays a source's rows on the pivot's tokens and vocabulary.

Start at `stage.py`. `map_vocabulary`, `align_released` and `project_released` are the functions of use on their own;
their compiled modules are loaded when one of them is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .released.released import align_released, project_released
    from .vocabulary.vocabulary_mapping import map_vocabulary

__all__ = ["align_released", "map_vocabulary", "project_released"]


def __getattr__(name: str) -> Any:
    if name == "align_released":
        from .released.released import align_released

        return align_released
    if name == "project_released":
        from .released.released import project_released

        return project_released
    if name == "map_vocabulary":
        from .vocabulary.vocabulary_mapping import map_vocabulary

        return map_vocabulary
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
